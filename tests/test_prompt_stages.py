"""The stages on prompts as people have them: a table, contexts with files, long texts, a Thinker that answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from talker_rl.base.disk import read_json
from talker_rl.base.errors import DataError
from talker_rl.cli import main
from talker_rl.data.prompts import read_prompts
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.speech.cache import ConditioningCache
from talker_rl.speech.config import ConditioningConfig, ModelConfig
from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni
from talker_rl.speech.qwen2_5_omni.conditioning import compute_conditioning
from talker_rl.stages.conditioning import _note, _told
from talker_rl.stages.remote import item_of
from talker_rl.stages.worker import AudioSpec, _keep_audio

ANSWER = [{"role": "user", "content": "music mountain river bottle."}]


def empty(folder: Path) -> str:
    """A configuration that leaves all defaults."""
    (folder / "empty.yaml").write_text("name: run\n")
    return str(folder / "empty.yaml")


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
    run = ["-c", empty(tmp_path), "--run-dir", str(tmp_path / "run")]
    assert main(["prompts", *run, *settings]) == 0
    told = capsys.readouterr().err
    assert "columns left aside: mood" in told and "1 long text of" in told
    assert "1 piece of long texts left out" in told  # "music bottle." is a dev prompt
    assert main(["condition", *run, *settings]) == 0
    stored = ConditioningCache(tmp_path / "run" / "conditioning", strict=True).load()
    assert len(stored) == 5  # two pieces, the prompt with an image, dev and eval
    assert sorted(c.reply_text for c in stored.values()) == [
        "happy captain.", "music bottle.", "river garden.", "seven orange.", "window yellow, paper money winter."]
    assert [c.reply_text for c in stored.values() if c.position_ids is not None] == ["happy captain."]
    (tmp_path / "x.png").write_bytes(b"other")
    assert main(["condition", *run, *settings, "--force-stage", "conditioning"]) == 0
    told = capsys.readouterr().err
    assert "(20.0%): The image file changed" in told and "x.png)" in told
    (note,) = read_json(tmp_path / "run" / "conditioning" / "skipped.json").values()
    assert note["where"].endswith(f"{tmp_path}/x.png") and "restore it" in note["fix"]


def test_a_thinker_that_answers_instead_of_reading_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": "River garden", "speaker": "Ethan", "messages": [{"role": "user", "content": "river garden."}]},
            {"text": "happy captain.", "speaker": "Ethan", "messages": ANSWER}]
    for name, row in (("train", rows[0]), ("dev", rows[1]), ("eval", {"text": "seven orange."})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    run = ["-c", empty(tmp_path), "--run-dir", str(tmp_path / "run"), "conditioning.mode=generate",
           *(f"prompts.{name}={tmp_path}/{name}.jsonl" for name in ("train", "dev", "eval"))]
    assert main(["prompts", *run]) == 0 and main(["condition", *run]) == 0
    told = capsys.readouterr().err
    assert "skipped 1 of 3 prompts (33.3%): the Thinker does not read the text aloud" in told
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert manifest["stages"]["conditioning"]["counts"] == {"prompts": 2, "skipped": 1}
    (note,) = read_json(tmp_path / "run" / "conditioning" / "skipped.json").values()
    assert "'music mountain river bottle.'" in note["where"] and "'music mountain river bottle.'" in told
    assert "model.instruction" in note["fix"]
    (answered,) = compute_conditioning(
        load_omni(ModelConfig(path="micro"), parts=("thinker",)), [Prompt("happy captain.", "Ethan", messages=ANSWER)],
        ConditioningConfig(mode="generate", max_reply_wer=None),
    )  # fmt: skip
    assert answered.reply_text == "music mountain river bottle."


def test_speech_is_kept_inside_its_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "audio"
    spec = AudioSpec(folder=folder, format="flac", prompt_ids=None)
    sound = np.zeros(2400, dtype=np.float32)

    def keep(prompt_id: str) -> None:
        candidate = Candidate(prompt_id, f"{prompt_id}-0", "Ann", 0, [1], 8294, "eos", [0.0, 0.0])
        _keep_audio(spec, [candidate], {candidate.candidate_id: sound})

    keep("fine")
    for prompt_id in ("../../escape", "spk1/utt1", str(tmp_path / "x")):
        with pytest.raises(DataError, match="no file name"):
            keep(prompt_id)
    assert [f.name for f in tmp_path.rglob("*") if f.is_file()] == ["fine-0.flac"]


def test_the_longest_id_goes_through_files_and_the_service(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"text": "One two. Three four.", "prompt_id": "x" * 200}))
    piece = read_prompts(str(tmp_path / "p.jsonl"), default_speaker="Ann", max_words=2).prompts[-1]
    candidate = Candidate(piece.prompt_id, f"{piece.prompt_id}-15", "Ann", 0, [1], 8294, "eos", [0.0, 0.0])
    assert item_of(piece, candidate, 0).id == f"{'x' * 200}_2-15"
    _keep_audio(AudioSpec(folder=tmp_path / "audio", format="opus", prompt_ids=None), [candidate],
                {candidate.candidate_id: np.zeros(2400, dtype=np.float32)})
    assert (tmp_path / "audio" / f"{candidate.candidate_id}.opus").is_file()


def test_reasons_are_told_by_their_number_and_with_a_place() -> None:
    skipped = {f"p{i}": {"what": "bad", "where": f"prompt p{i}: /a\n/{'x' * 400}/{i}.wav", "fix": ""} for i in range(3)}
    skipped |= {f"q{i}": _note(f"reason {i:02}") for i in range(11)}  # as noted by earlier versions
    lines = _told(skipped, 20)
    assert lines[0].startswith("skipped 3 of 20 prompts (15.0%): bad (prompt p0: /a /xxx")
    assert lines[0].endswith("x/0.wav and 2 more)") and len(lines[0]) < 230 and "\n" not in lines[0]
    assert lines[1] == "skipped 1 of 20 prompts (5.0%): reason 00"
    assert len(lines) == 11 and lines[-1] == "2 more reasons: see conditioning/skipped.json"


def test_a_run_that_can_speak_nothing_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "s.wav", np.full(8000, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    part = {"type": "audio", "audio": "s.wav"}
    for name, text in (("train", "river garden."), ("dev", "happy captain."), ("eval", "seven orange.")):
        row = {"text": text, "messages": [{"role": "user", "content": [part]}]}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    run = ["-c", empty(tmp_path), "--run-dir", str(tmp_path / "run"),
           *(f"prompts.{n}={tmp_path}/{n}.jsonl" for n in ("train", "dev", "eval"))]
    assert main(["prompts", *run]) == 0 and main(["condition", *run]) == 1
    told = capsys.readouterr().err
    assert "none of the prompts" in told and "NaN or infinite" in told and "s.wav" in told and "Traceback" not in told
