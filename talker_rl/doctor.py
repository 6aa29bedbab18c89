"""``talker-rl doctor``: what would stop a run, found before it starts. One line a finding, with the fix."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from talker_rl.config import RunConfig
from talker_rl.errors import TalkerRLError
from talker_rl.run_dir import versions

MIN_FREE_GIB = 2.0
SUPPORTED = {"torch": ((2, 11), (2, 14)), "transformers": ((5, 17), (5, 24)), "trl": ((1, 16), (1, 17)),
             "peft": ((0, 21), (0, 22)), "funasr": ((1, 4), (1, 5))}
"""Package -> (from, below): the ranges of pyproject.toml."""

Finding = tuple[str, str]
"""(``ok``, ``warn`` or ``fail``; what was found)."""


def examine(config: RunConfig) -> int:
    """Print every finding; 0 if nothing fails."""
    failed = 0
    for name, check in CHECKS.items():
        try:
            for level, text in check(config):
                print(f"{level:5} {name}: {text}")
                failed += level == "fail"
        except TalkerRLError as error:
            print(f"fail  {name}: " + str(error).replace("\n", "\n      "))
            failed += 1
    print(f"\n{failed} problem{'s' if failed != 1 else ''}" if failed else "\nready")
    return 1 if failed else 0


def _python(_: RunConfig) -> Iterator[Finding]:
    good = sys.version_info >= (3, 11)
    yield ("ok" if good else "fail"), f"Python {sys.version.split()[0]}" + ("" if good else ", 3.11 or newer is needed")


def _packages(_: RunConfig) -> Iterator[Finding]:
    found = versions()
    for name, (low, high) in SUPPORTED.items():
        if name not in found:
            optional = name in ("trl", "funasr")
            yield ("warn" if optional else "fail"), f"{name} is not installed"
            continue
        number = tuple(int(part) for part in found[name].split("+")[0].split(".")[:2] if part.isdigit())
        span = f"{'.'.join(map(str, low))} <= {name} < {'.'.join(map(str, high))}"
        yield ("ok" if low <= number < high else "warn"), f"{name} {found[name]}" + (
            "" if low <= number < high else f" is outside the tested range {span}")


def _speech_libraries(_: RunConfig) -> Iterator[Finding]:
    from importlib.util import find_spec

    if find_spec("kaldi_native_fbank") is None:
        yield "fail", "kaldi-native-fbank is not installed: FunASR has no features without it"
    for name in ("torchvision", "torchaudio"):
        if find_spec(name) is not None:
            yield "warn", f"{name} is installed: a build that does not match torch breaks transformers; uninstall it"
    import soundfile

    good = "OPUS" in soundfile.available_subtypes("OGG")
    yield ("ok" if good else "warn"), "soundfile " + (
        "writes Opus" if good else "cannot write Opus: set audio.format=flac")


def _model(config: RunConfig) -> Iterator[Finding]:
    from talker_rl.omni.checkpoint import load_omni, load_speakers, resolve_model_path
    from talker_rl.omni.files import require_file, weight_files

    folder = resolve_model_path(config.model.path)
    weights = weight_files(folder)
    size = sum(file.stat().st_size for file in weights) / 2**30
    yield "ok", f"{folder}: {len(weights)} weight files, {size:.2f} GiB"
    for name, purpose in (("config.json", "the geometry"), ("generation_config.json", "the sampling defaults")):
        require_file(folder, name, purpose)
    speakers = sorted(load_speakers(folder))
    yield "ok", f"speakers: {', '.join(speakers)}"
    if config.prompts.speaker and config.prompts.speaker not in speakers:
        yield "fail", f"prompts.speaker {config.prompts.speaker!r} is not among them"
    yield from _special_tokens(folder, config)
    if size < 4:
        omni = load_omni(config.model, parts=("thinker", "talker", "token2wav"))
        counts = {part: sum(p.numel() for p in getattr(omni, part).parameters()) / 1e6 for part in omni.parts}
        yield "ok", "loads: " + ", ".join(f"{part} {n:.2f} M parameters" for part, n in counts.items())
    else:
        yield "ok", "weights are not loaded here (above 4 GiB)"


def _special_tokens(folder: Path, config: RunConfig) -> Iterator[Finding]:
    import json

    talker = json.loads((folder / "config.json").read_text())["talker_config"]
    expected = {"tts_codec_pad_token_id": 8292, "tts_codec_start_token_id": 8293, "tts_codec_end_token_id": 8294,
                "tts_codec_mask_token_id": 8296}
    wrong = {name: talker.get(name) for name, value in expected.items() if talker.get(name) != value}
    if wrong:
        yield "fail", f"codec ids differ from Qwen2.5-Omni's: {wrong}; transformers' generate stops on {{8292, 8294}}"
    else:
        yield "ok", "codec ids 8292 (pad), 8293 (bos), 8294 (eos), 8296 (mask)"


def _recognisers(config: RunConfig) -> Iterator[Finding]:
    import numpy as np

    from talker_rl.reward.asr.registry import build_recognizer

    for which in ("recognizer", "evaluator"):
        settings = getattr(config.reward, which)
        recognizer = build_recognizer(settings)
        noise = np.random.default_rng(0).normal(0, 0.05, 16_000).astype(np.float32)
        (answer,) = recognizer.transcribe([noise], "en")
        yield "ok", f"reward.{which} ({settings.path}) loads and answers: {type(answer).__name__}"
    if config.reward.recognizer == config.reward.evaluator:
        yield "warn", "the recogniser that rewards also evaluates: the figures may flatter"


def _prompts(config: RunConfig) -> Iterator[Finding]:
    from talker_rl.data.prompts import check_disjoint, read_prompts
    from talker_rl.omni.checkpoint import load_speakers, resolve_model_path

    speakers = sorted(load_speakers(resolve_model_path(config.model.path)))
    sets = {}
    for name in ("train", "dev", "eval"):
        found = read_prompts(**config.prompts.reading(name), speakers=speakers)
        sets[name] = found.prompts
        yield "ok", f"{len(found.prompts)} {name} prompts in {found.source}"
        for line in found.describe():
            yield "warn", line
    check_disjoint(sets)
    yield "ok", "the three sets share no text"


def _training(config: RunConfig) -> Iterator[Finding]:
    from talker_rl.train.arguments import build_arguments

    for variant, cfg in config.train.items():
        build_arguments(cfg.args, f"runs/{config.name}")
        yield "ok", f"variant {variant}: {cfg.loss['type']}, {'LoRA' if cfg.lora else 'full weights'}"


def _tracking(config: RunConfig) -> Iterator[Finding]:
    from talker_rl.tracking import check_tracker

    check_tracker(config)
    yield "ok", config.tracking.to


def _machine(config: RunConfig) -> Iterator[Finding]:
    import torch

    from talker_rl.stages.context import device_name

    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    yield "ok", f"device {device_name(config.model.device)}, {cores} cores, {threads} torch threads"
    if config.workers > cores:
        yield "warn", f"workers: {config.workers} on {cores} cores; they would wait for each other"
    folder = Path("runs") if Path("runs").exists() else Path(".")
    free = shutil.disk_usage(folder).free / 2**30
    yield ("ok" if free >= MIN_FREE_GIB else "warn"), f"{free:.1f} GiB free at {folder.resolve()}"


CHECKS: dict[str, Callable[[RunConfig], Iterator[Any]]] = {
    "python": _python, "packages": _packages, "speech": _speech_libraries, "machine": _machine, "model": _model,
    "prompts": _prompts, "recognisers": _recognisers, "training": _training, "tracking": _tracking,
}
