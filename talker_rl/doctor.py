"""``talker-rl doctor``: what would stop a run, found before it starts. One line per finding, with the fix."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from talker_rl.base.errors import CheckpointError, ConfigError, StageError, TalkerRLError
from talker_rl.base.figures import count
from talker_rl.base.findings import Finding, guarded, one_line
from talker_rl.base.processes import device_list, device_name
from talker_rl.config import RunConfig
from talker_rl.store.run_dir import versions

MIN_FREE_GIB = 2.0
LOADED_BYTES = 4 * 2**30
"""Checkpoints below this are loaded, which takes seconds."""
PLANNED_SECONDS = 5.0
"""Of speech per utterance, for which memory is forecast; `talker-rl plan --seconds` takes others."""
SUPPORTED = {"torch": ((2, 11), (2, 14)), "transformers": ((5, 17), (5, 24)), "trl": ((1, 16), (1, 17)),
             "peft": ((0, 21), (0, 22)), "funasr": ((1, 4), (1, 5))}
"""Package -> (from, below): the ranges of pyproject.toml."""


def examine(
    config: RunConfig, model_only: bool = False, as_json: bool = False, run: Path | None = None
) -> int:
    """Print every finding, one line each; 0 if nothing fails.

    Args:
        config: the run's; of it, ``model`` says which checkpoint and how it is loaded.
        model_only: leave out what belongs to a run (prompts, recognizers, training, tracking).
        run: a run's folder, whose pairs tell what its losses push on.
        as_json: print ``{"ok", "problems", "findings": [{"level", "check", "text", ...}]}`` instead.
    """
    found = []
    checks = MODEL_CHECKS if model_only else CHECKS | {"losses": partial(_losses, run=run)}
    for name, check in checks.items():
        for level, text, *facts in guarded(check, config):
            found.append({"level": level, "check": name, "text": text, **(facts[0] if facts else {})})
            if not as_json:
                print(f"{level:5} {name}: {text}", flush=True)
    failed = sum(finding["level"] == "fail" for finding in found)
    if as_json:
        print(json.dumps({"ok": not failed, "problems": failed, "findings": found}, indent=1, ensure_ascii=False))
    else:
        print(f"\n{count(failed, 'problem')}" if failed else "\nready")
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
    from talker_rl.speech.files import weight_files
    from talker_rl.speech.locate import pick_device, resolve_model_path
    from talker_rl.speech.lora import resolve_adapter
    from talker_rl.speech.registry import family_of

    folder, family = resolve_model_path(config.model.path), family_of(config.model.path)
    failed = False
    for finding in family.check_model(folder):
        failed |= finding[0] == "fail"
        yield finding
    if failed:
        return
    if config.model.speakers:
        yield "ok", f"speakers of {config.model.speakers}: {', '.join(family.speakers(config.model))}"
    if config.prompts.speaker and config.prompts.speaker not in family.speakers(config.model):
        yield "fail", f"prompts.speaker {config.prompts.speaker!r} is not among them"
    if config.model.adapter:
        adapter = resolve_adapter(config.model.adapter)
        family.check_adapter(config.model, adapter)
        yield "ok", f"model.adapter {adapter} fits the Talker"
    if _device_fault(config) is not None:
        yield "warn", "not loaded: the device is not there"
        return
    if config.model.thinker_quantization:
        from talker_rl.speech.quantization import four_bit

        four_bit(config.model, pick_device(config.model.device))
        yield "ok", "the Thinker's language model is held in 4 bits; its towers, Talker and token2wav are not quantized"
    small = sum(file.stat().st_size for file in weight_files(folder)) < LOADED_BYTES
    yield from family.check_loading(config.model, load=small)
    if not small:
        yield "ok", f"weights are not loaded here (above {LOADED_BYTES >> 30} GiB)"


def _memory(config: RunConfig) -> Iterator[Any]:
    """Peak memory of every stage, against what is there."""
    from talker_rl.planning.command import size
    from talker_rl.planning.cost import Lengths
    from talker_rl.planning.memory import stage_peaks
    from talker_rl.speech.locate import pick_device
    from talker_rl.speech.registry import read_geometry

    if _device_fault(config) is not None:
        yield "warn", "not forecast: the device is not there"
        return
    devices = device_list(config.devices, config.model.device) or [str(pick_device(config.model.device))]
    device = devices[0]
    try:
        geometry = read_geometry(config.model.path)
    except (CheckpointError, ConfigError):
        yield "warn", "not forecast: that needs a model whose config.json can be used"  # the model's check says why
        return
    there = min(map(_free_memory, dict.fromkeys(devices)))
    at = Lengths.of_seconds(PLANNED_SECONDS, rate=geometry.codec.rate)
    quantized = f", Thinker in {config.model.thinker_quantization}" if config.model.thinker_quantization else ""
    named = ", ".join(dict.fromkeys(devices))
    yield "ok", (f"{size(there)} free on {named}; peaks in {config.model.dtype}{quantized}, utterances of "
                 f"{PLANNED_SECONDS:g} s" + (", Python and libraries included" if device == "cpu" else ""))
    for stage, (peak, remedy) in stage_peaks(geometry, config, at, device == "cpu").items():
        if stage == "conditioning" and config.model.thinker_device_map is not None:
            yield "ok", f"{stage} needs {size(peak)}, shared out by model.thinker_device_map", {"bytes": round(peak)}
            continue
        fits = peak <= there
        yield ("ok" if fits else "warn"), f"{stage} needs {size(peak)}" + ("" if fits else f": too much; {remedy}"), {
            "bytes": round(peak), "free_bytes": round(there)}


def _free_memory(device: str) -> int:
    """Bytes that a new process can have: of the GPU, or of the machine."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def _settings(config: RunConfig) -> Iterator[Finding]:
    """Settings that are refused before any work."""
    from talker_rl.stages.feasible import check_learning
    from talker_rl.stages.named import reward_faults

    faults = list(reward_faults(config))
    yield from (("fail", one_line(fault)) for fault in faults)
    check_learning(config)
    if not faults:
        yield "ok", "something to learn from can come out; the reward's gates and components are there"


def _recognizers(config: RunConfig) -> Iterator[Finding]:
    import numpy as np

    from talker_rl.base.text.tokens import LANGUAGES
    from talker_rl.reward.asr.aligner import Aligner
    from talker_rl.reward.asr.base import SAMPLE_RATE
    from talker_rl.reward.asr.names import KNOWN
    from talker_rl.reward.asr.registry import build_recognizer
    from talker_rl.reward.config import shared_languages
    from talker_rl.stages.named import aligner_faults, recognizer_faults

    faults = [*recognizer_faults(config, "recognizer", here=True), *recognizer_faults(config, "evaluator", here=True),
              *aligner_faults(config, here=True)]
    yield from (("fail", one_line(fault)) for fault in faults)
    if faults:
        return  # which loading would only say once more
    noise = np.random.default_rng(0).normal(0, 0.05, SAMPLE_RATE).astype(np.float32)
    for which in ("recognizer", "evaluator"):
        settings = getattr(config.reward, which)
        others = [lang for lang in LANGUAGES if lang not in settings.by_lang][:1] if settings.path else []
        for lang in [*settings.by_lang, *others] if settings.by_lang else ["en"]:
            one = settings.for_lang(lang)
            (answer,) = build_recognizer(one).transcribe([noise], lang)
            heard = f"{lang}: {one.path}" if settings.by_lang else one.path
            yield "ok", f"reward.{which} ({heard}) loads and answers: {type(answer).__name__}"
            known = KNOWN.get(Path(one.path).name)
            if settings.by_lang and known is not None and lang not in known.languages:
                yield "warn", f"{one.path} was trained for {', '.join(known.languages)}, not for {lang}"
    if config.reward.pauses.aligner is not None:
        aligner = Aligner(config.reward.pauses.aligner)
        yield "ok", f"reward.pauses.aligner ({aligner.config.path}) loads, for {', '.join(aligner.config.languages)}"
    if config.eval.protocol and importlib.util.find_spec("zhconv") is None:
        yield "warn", "eval.protocol scores Chinese by the package zhconv: pip install 'talker-rl[seed-tts-eval]'"
    shared = shared_languages(config.reward.recognizer, config.reward.evaluator)
    if shared:
        yield "warn", f"the recognizer that rewards also evaluates ({', '.join(shared)}): the figures may flatter"


def _prompts(config: RunConfig) -> Iterator[Finding]:
    from talker_rl.data.prompts import check_disjoint, drop_shared_pieces, read_prompts
    from talker_rl.speech.registry import family_of

    speakers = family_of(config.model.path).speakers(config.model)
    sets = {}
    for name in ("train", "dev", "eval"):
        found = read_prompts(**config.prompts.reading(name), speakers=speakers)
        sets[name] = found
        yield "ok", f"{count(len(found.prompts), f'{name} prompt')} in {found.source}"
        for line in found.describe():
            yield "warn", line
    drop_shared_pieces(sets)  # as the stage does
    check_disjoint({name: found.prompts for name, found in sets.items()})
    yield "ok", "the three sets share no text"


def _training(config: RunConfig) -> Iterator[Finding]:
    from talker_rl.stages.named import loss_faults
    from talker_rl.stages.train import check_lora, check_variant

    if config.model.adapter is None:  # else its own modules are trained on
        with suppress(CheckpointError):  # the model's check says why
            check_lora(config)
    yield from (("fail", one_line(fault)) for fault in loss_faults(config))
    for variant, cfg in config.variants.items():
        check_variant(config, variant, f"runs/{config.name}")
        yield "ok", f"variant {variant}: {cfg.loss['type']}, {'LoRA' if cfg.lora else 'full weights'}"


def _losses(config: RunConfig, run: Path | None = None) -> Iterator[Finding]:
    """Losses that would teach not to stop."""
    from talker_rl.stages.anatomy import findings

    try:
        told = findings(config, run)
    except StageError as error:  # a run that has no pairs yet is none to be refused
        yield "warn", f"not asked of what they push on: {one_line(error)}"
        return
    yield from (("warn", line) for line in told)
    if not told:
        yield "ok", "no loss pushes the stop down " + (
            "on pairs whose chosen is the longer one" if run is None else f"in most pairs of {run}")


def _tracking(config: RunConfig) -> Iterator[Finding]:
    from talker_rl.tracking import check_tracker

    check_tracker(config)
    yield "ok", config.tracking.to


def _device_fault(config: RunConfig) -> TalkerRLError | None:
    """Why ``model.device`` cannot be used: told of the machine, and not by each check that would use it."""
    from talker_rl.stages.named import device_faults

    return next(device_faults(config, here=True), None)


def _machine(config: RunConfig) -> Iterator[Finding]:
    import torch

    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    named = list(dict.fromkeys(device_list(config.devices, config.model.device)))
    device = f"device{'s' * (len(named) > 1)} {', '.join(named) or device_name(config.model.device)}, "
    if (fault := _device_fault(config)) is not None:
        device = ""
        yield "fail", one_line(fault)
    yield "ok", f"{device}{cores} cores, {threads} torch threads"
    if config.workers > cores:
        yield "warn", f"workers: {config.workers} on {cores} cores; they would wait for each other"
    folder = Path("runs") if Path("runs").exists() else Path(".")
    free = shutil.disk_usage(folder).free / 2**30
    yield ("ok" if free >= MIN_FREE_GIB else "warn"), f"{free:.1f} GiB free at {folder.resolve()}"


MODEL_CHECKS: dict[str, Callable[[RunConfig], Iterator[Any]]] = {
    "python": _python, "packages": _packages, "machine": _machine, "model": _model, "memory": _memory,
}
CHECKS: dict[str, Callable[[RunConfig], Iterator[Any]]] = MODEL_CHECKS | {
    "settings": _settings, "speech": _speech_libraries, "prompts": _prompts, "recognizers": _recognizers,
    "training": _training, "losses": _losses, "tracking": _tracking,
}
