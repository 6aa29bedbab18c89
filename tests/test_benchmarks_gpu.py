"""`make bench-gpu` as far as a CPU goes: the commands that measure the real geometry, on the same structure, tiny."""

from __future__ import annotations

import importlib
import json
import math
import sys

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks._limits import counted, decoding, measured, training
from benchmarks._training import LoraSettings, Sizes, random_pairs
from benchmarks.geometry import Models
from talker_rl.planning.hardware import Work
from talker_rl.speech.config import Token2WavConfig

TINY = ["--device", "cpu", "--geometry", "tiny", "--repeats", "1"]
SIZES = {
    "token2wav": ["--steps", "2", "--utterances", "2", "--shortest", "0.2", "--longest", "0.5", "--quick"],
    "token2wav_reward": ["--longest", "0.3", "--quick"],
    "token2wav_long": ["--seconds", "2"],
    "vocoder": ["--utterances", "2", "--seconds", "0.4"],
    "rollouts": ["--prompts", "2", "--candidates", "2", "--codes", "6"],
    "train": ["--pairs", "3", "--epochs", "1", "--batch", "2", "--prefix", "3", "9", "--codes", "2", "8"],
}
EXACT = {"token2wav": 1e-3, "token2wav_long": 1e-4, "vocoder": 1e-3, "train": 1e-5}
"""Largest differences of the first row. With random weights float32 leaves either vocoder 1e-4 from the exact one."""


@pytest.mark.parametrize("name", SIZES)
def test_every_benchmark_of_the_real_geometry_runs(name, tmp_path, capsys):
    assert main([name, *TINY, *SIZES[name], "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert capsys.readouterr().out.count("\n") == 2 + len(rows)
    for row in rows:
        assert row["name"] == name and row["ours_s"] > 0 and row["theirs_s"] > 0
        assert math.isclose(row["ratio"], row["theirs_s"] / row["ours_s"])
        assert "goal" not in row["case"]  # they are set for another machine
    assert "of the limit" in rows[0]["case"] and "TFLOP" in rows[0]["case"]
    if name in EXACT:
        assert rows[0]["max_abs_diff"] <= EXACT[name]
    if name == "train":
        assert "MFU" in rows[0]["case"] and "gradient_checkpointing" in rows[1]["case"]
        assert rows[1]["max_abs_diff"] <= 1e-6  # checkpointing changes memory, nothing else


def test_a_gpu_that_is_not_there_is_said(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit):
        main(["rollouts", "--device", "cuda"])
    assert "no CUDA device" in capsys.readouterr().err


def own_modules() -> set[str]:
    return {name for name in sys.modules if name.partition(".")[0] in ("benchmarks", "talker_rl")}


def test_no_benchmark_of_the_real_geometry_needs_what_a_gpu_machine_lacks(monkeypatch):
    """A machine with torch, transformers, peft and accelerate has neither TRL nor recognizers."""
    before = own_modules()
    for name in before:
        monkeypatch.delitem(sys.modules, name)  # to be imported afresh; after the test they are as they were
    for name in ("trl", "funasr", "deepspeed", "datasets", "jiwer", "rapidfuzz", "soundfile", "librosa",
                 "pyarrow", "sklearn"):
        monkeypatch.setitem(sys.modules, name, None)  # so that importing it fails
    try:
        for name in [*SIZES, "train_precomputed", "train_long_context"]:
            assert importlib.import_module(f"benchmarks.{name}").rows
    finally:
        for name in own_modules() - before:
            del sys.modules[name]


def test_counts_of_a_decode_and_a_training():
    """By hand: a linear layer is two FLOPs a weight and frame; LoRA's backward pass is about one forward."""
    models = Models(torch.device("cpu"), "tiny")
    geo = counted(token2wav=models.token2wav())
    dit, _ = decoding(geo, [[0] * 30, [0] * 10], Token2WavConfig())
    linear = 2 * geo.dit.weights * 2 * 40 * 72  # 40 codes are 80 frames; 36 forwards on doubled batches
    assert linear < dit.flops < 2 * linear
    assert dit.moved > 4 * 36 * geo.dit.weights

    talker = models.talker()
    geo = counted(talker=talker)
    sizes = Sizes(pairs=1, prefix=(100, 100), codes=(51, 51))
    conditionings, pairs = random_pairs(sizes, 48, torch.float32)
    (reference,), (steps,) = training(geo, pairs, {"p0": 100}, 3, 1, "float32", LoraSettings(r=1))
    positions = 100 + 2 * 50
    at_least = 2 * geo.talker.weights * positions + 2 * geo.head * 102
    assert len(conditionings[0].prefix) == 100 and at_least < reference.flops < 1.5 * at_least
    assert 5.5 < steps.flops / reference.flops < 8  # three epochs of twice a forward, and the adapters


def test_shares_are_of_the_tightest_limit():
    limit = measured(torch.device("cpu"))
    heavy = Work(1e9, "float32", moved=1.0)
    wide = Work(1.0, "float32", moved=1e9)
    assert limit.seconds([heavy, wide]) == pytest.approx(1e9 / limit.flops["float32"] + 1e9 / limit.bandwidth)
    assert limit.bound([heavy]) == "arithmetic" and limit.bound([wide]) == "memory"
