"""The stages on prompts as people have them: a table, contexts with files, long texts, a Thinker that answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from talker_rl.cli import main
from talker_rl.data.records import Prompt
from talker_rl.omni.checkpoint import load_omni
from talker_rl.omni.conditioning import compute_conditioning
from talker_rl.omni.conditioning_cache import ConditioningCache
from talker_rl.omni.config import ConditioningConfig, ModelConfig
from talker_rl.run_dir import read_json

ANSWER = [{"role": "user", "content": "music mountain river bottle."}]


def test_a_table_with_images_and_long_texts_is_conditioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.zeros((60, 60, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    parts = [{"type": "image", "image": "x.png"}, {"type": "text", "text": "?"}]
    seen = json.dumps([{"role": "user", "content": parts}])
    with open(tmp_path / "train.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([
            ["sentence", "voice", "context", "mood"],
            ["river garden. window yellow, paper money winter. music bottle.", "Chelsie", "", "glad"],
            ["happy captain.", "Ethan", seen, "sad"],
        ])
    for name in ("dev", "eval"):
        (tmp_path / f"{name}.txt").write_text({"dev": "music bottle.\n", "eval": "seven orange.\n"}[name])
    settings = [f"prompts.train={tmp_path}/train.csv", f"prompts.dev={tmp_path}/dev.txt", "prompts.max_words=5",
                f"prompts.eval={tmp_path}/eval.txt",
                "prompts.columns={text: sentence, speaker: voice, messages: context}"]
    run = ["--run-dir", str(tmp_path / "run")]
    assert main(["prompts", *run, *settings]) == 0
    told = capsys.readouterr().err
    assert "columns left aside: mood" in told and "1 long texts" in told
    assert "1 pieces of long texts left out" in told  # "music bottle." is a dev prompt
    assert main(["condition", *run, *settings]) == 0
    stored = ConditioningCache(tmp_path / "run" / "conditioning", strict=True).load()
    assert len(stored) == 5  # two pieces, the prompt with an image, dev and eval
    assert sorted(c.reply_text for c in stored.values()) == [
        "happy captain.", "music bottle.", "river garden.", "seven orange.", "window yellow, paper money winter."]
    assert [c.reply_text for c in stored.values() if c.position_ids is not None] == ["happy captain."]
    (tmp_path / "x.png").write_bytes(b"other")
    assert main(["condition", *run, *settings, "--force-stage", "conditioning"]) == 0
    assert "(20.0%): The image file changed" in capsys.readouterr().err


def test_a_thinker_that_answers_instead_of_reading_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": "River garden", "speaker": "Ethan", "messages": [{"role": "user", "content": "river garden."}]},
            {"text": "happy captain.", "speaker": "Ethan", "messages": ANSWER}]
    for name, row in (("train", rows[0]), ("dev", rows[1]), ("eval", {"text": "seven orange."})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    run = ["--run-dir", str(tmp_path / "run"), "conditioning.mode=generate",
           *(f"prompts.{name}={tmp_path}/{name}.jsonl" for name in ("train", "dev", "eval"))]
    assert main(["prompts", *run]) == 0 and main(["condition", *run]) == 0
    told = capsys.readouterr().err
    assert "skipped 1 of 3 prompts (33.3%): the Thinker does not read the text aloud" in told
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert manifest["stages"]["conditioning"]["counts"] == {"prompts": 2, "skipped": 1}
    assert len(read_json(tmp_path / "run" / "conditioning" / "skipped.json")) == 1
    (answered,) = compute_conditioning(
        load_omni(ModelConfig(path="micro"), parts=("thinker",)), [Prompt("happy captain.", "Ethan", messages=ANSWER)],
        ConditioningConfig(mode="generate", max_reply_wer=None),
    )  # fmt: skip
    assert answered.reply_text == "music mountain river bottle."
