"""What is made to be shared names things, never places: no path of the machine that made it is in any of it."""

from __future__ import annotations

import base64
import binascii
import json
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from pipeline_helpers import write_world
from said import said
from sharded_checkpoint import write_sharded

from talker_rl import cli, tracking
from talker_rl.base.disk import read_json, write_json
from talker_rl.base.errors import ConfigError
from talker_rl.base.names import folder_name, model_name, without_paths, without_places
from talker_rl.config import load_data
from talker_rl.data.export import export_pairs
from talker_rl.data.import_pairs import import_pairs
from talker_rl.records.pair import Pair, pair_id_of
from talker_rl.records.prompt import Prompt
from talker_rl.report.dashboards import write_dashboards
from talker_rl.reward.recognizer_config import RecognizerConfig, recognizer_name
from talker_rl.store.run_dir import RunDir
from talker_rl.train.card import model_card

MARKER = "secret-user-name"


def layers(blob: bytes) -> Iterator[bytes]:
    """A file's bytes, and what is packed inside them."""
    yield blob
    for head in (b"\x1f\x8b\x08", b"x\x9c", b"x\xda"):
        for found in re.finditer(re.escape(head), blob):
            try:
                yield zlib.decompressobj(47).decompress(blob[found.start() :])
            except zlib.error:
                continue
    for packed in re.findall(rb"[A-Za-z0-9+/]{40,}={0,2}", blob):
        try:
            yield base64.b64decode(packed[: len(packed) // 4 * 4])
        except binascii.Error:
            continue


def tells(file: Path, marker: str = MARKER) -> bool:
    """Whether a file holds the marker, plainly or packed."""
    if file.suffix == ".parquet":
        table = pq.read_table(file)
        return marker in str(table.to_pylist()) or marker in str(table.schema.metadata)
    return any(marker.encode() in layer for layer in layers(file.read_bytes()))


def telling(*folders: Path) -> list[str]:
    """The files below that hold the marker."""
    files = [f for folder in folders for f in (sorted(folder.rglob("*")) if folder.is_dir() else [folder])]
    assert files
    return [str(f) for f in files if f.is_file() and tells(f)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a base, prompts, recordings and a run that began with an adapter of another run."""
    home = tmp_path_factory.mktemp("home") / MARKER
    write_sharded(home / "base")
    for name in ("config.json", "tokenizer_config.json"):
        held = json.loads((home / "base" / name).read_text())
        (home / "base" / name).write_text(json.dumps(held | {"_name_or_path": str(home / "base")}))
    base = {"path": str(home / "base"), "instruction": "Read aloud: {text}"}
    args = {"max_steps": 2, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-2,
            "per_device_train_batch_size": 2, "lr_scheduler_type": "constant"}
    train = {"loss": {"type": "dpo", "beta": 0.1}, "lora": {"r": 2, "lora_alpha": 4}, "args": args}
    common: dict[str, Any] = dict(
        prompts={**{name: f"micro:{name}" for name in ("train", "dev", "eval")}, "speaker": None,
                 "limit": {"train": 4, "dev": 1, "eval": 2}}, eval={"seeds": 1},
        rollouts={"num_candidates": 4, "batch_size": 16, "shard_size": 4,
                  "sampling": {"max_new_tokens": 32, "min_new_tokens": 4, "top_k": 0, "top_p": 1.0, "temperature": 1.0,
                               "sequence_bias": [[[8294], 14.0]]}},
        train=train, report={"before_after": 1, "pairs": 1}, tracking={"to": "tensorboard"},
    )  # fmt: skip
    one = write_world(home / "one", model=base, **common)
    assert cli.main(["run", "-c", str(one), "--run-dir", str(home / "runs/one"), "-q", "--debug"]) == 0
    two = write_world(home / "two", model=base | {"adapter": str(home / "runs/one")}, **common)
    assert cli.main(["run", "-c", str(two), "--run-dir", str(home / "runs/two"), "-q", "--debug"]) == 0
    return home


def test_a_run_publishes_no_place(home: Path) -> None:
    for run in (home / "runs/one", home / "runs/two"):
        pages = write_dashboards(run)
        published = [*pages, run / "report", run / "pairs", *run.glob("train/*"), *run.glob("**/checkpoint-*"),
                     *run.glob("**/tensorboard")]
        assert telling(*published, *run.glob("round*/train/*/README.md")) == []
        assert tells(run / "manifest.json")  # (which is the run's own)
    card = (home / "runs/two/round1/train/default/README.md").read_text()
    assert "begun from `one/train/default` (hash `" in card and "base model: `base` (hash `" in card
    page = (home / "runs/two/report/index.html").read_text()
    assert "base (content hash" in page and "one" in page


def test_exports_publish_no_place(home: Path, tmp_path: Path) -> None:
    for run in ("one", "two"):
        options = ["export", "--run-dir", str(home / "runs" / run), "--merge", str(home / "out" / run),
                   "--adapter", str(home / "lora" / run), "-q", "--debug"]
        assert cli.main(options) == 0
        assert telling(home / "out" / run, home / "lora" / run) == []
    found = json.loads((home / "out/two/export.json").read_text())
    assert found["base"] == "base" and len(found["base_hash"]) >= 16
    config = json.loads((home / "lora/one/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    assert json.loads((home / "out/one/config.json").read_text())["_name_or_path"] == "base"


def test_an_adapter_that_names_no_place_is_exported_all_the_same(home: Path, tmp_path: Path, capsys: Any) -> None:
    """Inside its run the base is known from there; elsewhere it is asked for."""
    adapter = home / "runs/one/train/default"
    assert cli.main(["export", str(adapter), "--merge", str(tmp_path / "a"), "-q"]) == 0
    alone = Path(shutil.copytree(adapter, tmp_path / "alone"))
    assert cli.main(["export", str(alone), "--merge", str(tmp_path / "b"), "-q"]) == 2
    told = capsys.readouterr().err
    assert "names its base 'base', and not where it is" in told and "--model PATH" in told
    other = ["export", str(alone), "--model", str(home / "base"), "--merge", str(tmp_path / "b"), "-q"]
    assert cli.main(other) == 0 and telling(tmp_path / "b") == []


def test_a_page_of_speech_that_cannot_be_decoded_names_no_place(home: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(home / "runs/one", tmp_path / "one"))
    manifest = read_json(run / "manifest.json")
    manifest["config"]["model"]["path"] = f"/home/{MARKER}/gone"
    write_json(run / "manifest.json", manifest)
    shutil.rmtree(run / "audio", ignore_errors=True)
    pages = write_dashboards(run)
    assert telling(*pages) == [] and "cannot be decoded here" in pages[0].read_text()


def test_pair_sets_name_the_files_of_messages(tmp_path: Path) -> None:
    part = {"type": "audio", "audio": f"/home/{MARKER}/clips/a.wav", "sha256": "0" * 64}
    messages = [{"role": "system", "content": "/plain text"},
                {"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]
    prompt = Prompt("a bell", "Chelsie", messages=messages)
    pair_id = pair_id_of(prompt.prompt_id, [1, 8294], [2, 8294])
    chosen, rejected = said([1, 8294]), said([2, 8294])
    pair = Pair(prompt.prompt_id, pair_id, "a bell", "Chelsie", "a", "b", chosen, rejected, 1.0, 0.0, 1.0)
    folder = export_pairs([pair], tmp_path / "pairs", prompts=[prompt])
    file = folder / "data/train-00000-of-00001.parquet"
    assert telling(folder) == [] and import_pairs(file, [prompt]).pairs == [pair]
    (row,) = pq.read_table(file).to_pylist()
    told = json.loads(row["messages"])
    assert told[1]["content"][0] == part | {"audio": "a.wav"} and told[0] == messages[0]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tracking.Target]:
    """What a tracker is told of a run."""
    targets: list[tracking.Target] = []

    class Silent:
        def __init__(self, target: tracking.Target) -> None:
            targets.append(target)

        def log(self, metrics: dict[str, float], step: int) -> None: ...

        def finish(self) -> None: ...

    monkeypatch.setitem(tracking.TRACKERS, "wandb", Silent)
    return targets


def test_trackers_are_told_no_place(tmp_path: Path, sent: list[tracking.Target]) -> None:
    home = f"/home/{MARKER}"
    config = load_data({
        "name": "demo", "tracking": {"to": "wandb"}, "model": {"path": f"{home}/omni", "talker": f"{home}/t",
                                                               "adapter": f"{home}/runs/one", "speakers": "~/spk.pt"},
        "prompts": {"train": f"{home}/a.txt#column", "dev": f"hf:{home}/d", "eval": "micro:eval"},
        "reward": {"recognizer": {"path": f"{home}/asr models/my asr", "type": "funasr"}},
        "train": {"args": {"deepspeed": f"{home}/ds.json"}},
    })
    with RunDir(tmp_path / "run") as run:
        run.begin("train", {}, {})
        with tracking.Tracking(config, run.path).stage("train") as tracker:
            tracker.log({"loss": 1.0}, 1)
    (target,) = sent
    told = json.dumps(target.config)
    assert MARKER not in told
    assert target.config["model"]["path"] == "omni" and target.config["prompts"]["train"] == "a.txt#column"
    assert target.config["prompts"]["eval"] == "micro:eval"
    assert target.config["reward"]["recognizer"]["path"] == "my asr"


def test_wandb_keeps_the_command_line_and_the_host_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not part of the dev extra: pip install 'talker-rl[wandb]'")
    monkeypatch.setattr("sys.argv", ["talker-rl", "run", "--run-dir", f"/home/{MARKER}/run"])
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with RunDir(tmp_path / MARKER / "run") as run:
        run.begin("train", {}, {})
        with tracking.Tracking(load_data({"tracking": {"to": "wandb"}}), run.path).stage("train") as tracker:
            tracker.log({"loss": 1.0}, 1)
        wandb.teardown()
        stored = sorted(run.path.glob("wandb/*run-*/run-*.wandb"))
        assert len(stored) == 1 and telling(*stored) == []


def test_hard_prompts_name_no_place(tmp_path: Path) -> None:
    folder = tmp_path / MARKER
    folder.mkdir()
    (folder / "mine.txt").write_text("a text of my own.\n")
    out = folder / "hard.jsonl"
    assert cli.main(["prompts", "hard", "--count", "6", "--apart-from", str(folder / "mine.txt"), "-o", str(out)]) == 0
    assert telling(out) == []


def test_the_card_of_a_training_alone_names_no_place() -> None:
    home = f"/home/{MARKER}"
    settings = {"config": {"loss": {"type": "dpo"}, "args": {"deepspeed": f"{home}/ds.json"}, "data": None},
                "base_model": f"{home}/Qwen2.5-Omni-7B", "model_hash": "m", "pairs_hash": "p",
                "start_adapter": f"{home}/runs/a/train/dpo", "start_adapter_hash": "s",
                "reference": f"{home}/runs/b/round2/train/dpo/checkpoint-20", "reference_hash": "r"}
    data = {"pairs": 1, "prompts": 1, "eval_pairs": 0, "chosen_seconds": 1.0, "rejected_seconds": 1.0,
            "length_limit": {}}
    result = {"name": "dpo", "step": 1, "steps": 1, "selected_by": "last step", "train": {}, "eval": {}, "data": data,
              "alarm_step": None}
    card = model_card(result, settings, adapter=True)
    assert MARKER not in card and "- base model: `Qwen2.5-Omni-7B` (hash `m`)" in card
    assert "- reference: `b/round2/train/dpo/checkpoint-20` (hash `r`); begun from `a/train/dpo` (hash `s`)" in card
    assert '"deepspeed": "ds.json"' in card


@pytest.mark.parametrize(("path", "name"), [
    ("micro", "micro"), ("Qwen/Qwen2.5-Omni-7B", "Qwen/Qwen2.5-Omni-7B"), ("/home/me/omni", "omni"),
    ("/home/me/omni/", "omni"), ("~/omni", "omni"), ("../me/omni", "omni"), ("C:\\Users\\me\\omni", "omni"),
    ("/home/me/.cache/huggingface/hub/models--Qwen--Qwen2.5-Omni-3B/snapshots/abc", "Qwen/Qwen2.5-Omni-3B"),
])  # fmt: skip
def test_names_of_models(path: str, name: str) -> None:
    assert model_name(path) == name


def test_a_link_and_the_working_folder_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "omni").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "omni")
    monkeypatch.chdir(tmp_path / "omni")
    assert model_name(".") == "omni" and model_name(tmp_path / "link") == "link"
    assert folder_name("/r/demo/train/dpo") == "demo/train/dpo"


def test_what_is_no_place_stays() -> None:
    kept = {"instruction": "/think {text}", "title": "/home", "model": "Qwen/Qwen2.5-Omni-7B", "a": "hf:owner/name:s",
            "b": "http://127.0.0.1:8020/score", "c": "toy:variety", "d": [1, None, True, "a / b", "/", ""],
            "e": "two\n/lines"}
    assert without_places(kept) == kept
    assert without_paths("no such file (/home/me/a.wav), 3/4 of https://x.org/a") == (
        "no such file (a.wav), 3/4 of https://x.org/a")


def test_names_of_recognizers() -> None:
    assert recognizer_name(RecognizerConfig(path="micro:reward")) == "micro:reward"
    both = RecognizerConfig.model_validate({"zh": {"path": "paraformer-zh"},
                                            "en": {"path": "/home/a b/my asr", "type": "whisper"}})
    assert recognizer_name(both) == "zh: paraformer-zh, en: my asr"


def test_the_base_is_asked_for_where_only_its_name_is_known(tmp_path: Path) -> None:
    from talker_rl.stages.export import _base_of

    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "omni"}))
    with pytest.raises(ConfigError, match="names its base 'omni'"):
        _base_of(tmp_path)


def test_a_sweep_publishes_no_place(tmp_path: Path) -> None:
    home = tmp_path / MARKER
    write_world(home, eval={"seeds": 1}, train={"args": {
        "max_steps": 2, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-3, "per_device_train_batch_size": 2,
        "lr_scheduler_type": "constant"}})
    (home / "sweep.yaml").write_text(yaml.safe_dump({
        "name": "tiny", "run": {"extends": ["config.yaml"]}, "variants": {"dpo": {}}, "seeds": [0],
        "arms": {"natural": {"variants": ["dpo"]}}}))
    assert cli.main(["sweep", str(home / "sweep.yaml"), "--run-dir", str(home / "sweep"), "-q", "--debug"]) == 0
    table = [home / "sweep/ablation.json", home / "sweep/ablation.csv"]
    assert all(file.is_file() for file in table) and telling(*table, home / "sweep/report") == []


def test_speakers_hold_no_place(tmp_path: Path) -> None:
    from talker_rl.micro import checkpoint_dir
    from talker_rl.speech.qwen2_5_omni.speaker_store import save
    from talker_rl.speech.qwen2_5_omni.speaker_table import load_speakers

    folder = checkpoint_dir() / "omni"
    for out in (tmp_path / MARKER / "mine.pt", tmp_path / MARKER / "omni"):
        save(load_speakers(folder), out, folder)
        files = [out] if out.is_file() else [out / "spk_dict.pt", *out.glob("*.json")]
        assert telling(*files) == []
