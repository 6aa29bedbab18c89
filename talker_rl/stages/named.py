"""Whether what a configuration names is there: functions of one's own, recognizers' folders, devices, prompt files.

Asked before any work, since most of it is first used after hours of sampling. Nothing is loaded; torch is imported only
where devices are compared with the machine's, or a loss of one's own is named.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from talker_rl.base.errors import CheckpointError, ConfigError, PromptError, TalkerRLError
from talker_rl.base.processes import device_list
from talker_rl.config import RunConfig
from talker_rl.data.prompt_files import KINDS, parse_source
from talker_rl.losses.config import parse_loss, parts_of
from talker_rl.reward.asr.names import KNOWN, REQUIRED, local_folder, model_folder, resolve
from talker_rl.reward.combine import Combiner, load_function
from talker_rl.reward.recognizer_config import RecognizerSettings
from talker_rl.stages.order import VERBS

_DEVICES = re.compile(r"(cpu|cuda|hip|hpu|ipu|lazy|maia|meta|mps|mtia|privateuseone|vulkan|xla|xpu)(:\d+)?")
"""Devices that torch knows of, one that is not there among them."""


def faults(config: RunConfig, verb: str = "run", *, here: bool = True, remote: bool = False) -> Iterator[TalkerRLError]:
    """Everything that is named and cannot be used.

    Args:
        verb: only what it needs (:class:`talker_rl.stages.order.Verb`).
        here: the work will be done on this machine, now: its devices and shipped models are asked for as well.
        remote: reward services score, so no recognizer that rewards and no component of one's own is needed here.
    """
    needs = VERBS[verb].needs
    if remote and verb == "score":
        return
    if "reward" in needs:
        yield from reward_faults(config)
    for which in ("recognizer", "evaluator"):
        if which in needs:
            yield from recognizer_faults(config, which, here=here)
    if "recognizer" in needs:
        yield from aligner_faults(config, here=here)
    if "losses" in needs:
        yield from loss_faults(config)
    if "device" in needs:
        yield from device_faults(config, here=here)


def missing(config: RunConfig) -> list[str]:
    """What is told of known models that are not on this machine: they will be downloaded when first needed."""
    told: list[str] = []
    for which in ("recognizer", "evaluator"):
        for where, settings in _routes(config, which):
            if settings.type in REQUIRED and settings.path in KNOWN:
                told += _download(f"{where}.path", settings.path, settings.type)
    if (aligner := config.reward.pauses.aligner) is not None:
        told += _download("reward.pauses.aligner.path", aligner.path, "aligner")
    return list(dict.fromkeys(told))


def reward_faults(config: RunConfig) -> Iterator[TalkerRLError]:
    """Of the reward's own components and its gates."""
    yield from _raised(_check_reward, config)


def aligner_faults(config: RunConfig, *, here: bool) -> Iterator[TalkerRLError]:
    """Of ``reward.pauses.aligner``, where there is one."""
    if (aligner := config.reward.pauses.aligner) is not None:
        yield from _raised(_check_folder, aligner.path, "aligner", "reward.pauses.aligner", here)
        yield from _raised(check_device, aligner.device, "reward.pauses.aligner.device", here)


def recognizer_faults(config: RunConfig, which: str, *, here: bool) -> Iterator[TalkerRLError]:
    """Of ``reward.recognizer`` or ``reward.evaluator``. A folder that is only one language's is asked for when the
    prompts' languages are known (:func:`check_heard`)."""
    for where, settings in _routes(config, which):
        if ":" in settings.type:
            yield from _raised(load_function, settings.type, f"{where}.type")
        elif settings.type not in ("funasr", "whisper"):
            yield ConfigError(f"unknown recognizer type {settings.type!r}", where=f"{where}.type",
                              fix="use funasr, whisper, or the import path module:factory of one's own")
        elif not getattr(config.reward, which).by_lang:
            yield from _raised(_check_folder, settings.path, settings.type, where, here)
        yield from _raised(check_device, settings.device, f"{where}.device", here)


def loss_faults(config: RunConfig) -> Iterator[TalkerRLError]:
    """Losses of one's own that cannot be imported, each variant's."""
    for variant, cfg in config.variants.items():
        # the others were checked as the file was read
        if any(part.type == "custom" for part in parts_of(parse_loss(cfg.loss))):
            yield from _raised(_check_loss, cfg.loss, f"{config.place_of(variant)}.loss")


def device_faults(config: RunConfig, *, here: bool) -> Iterator[TalkerRLError]:
    """Of ``model.device`` and ``devices``."""
    if config.model.device != "auto":
        yield from _raised(check_device, config.model.device, "model.device", here)
    if isinstance(config.devices, list) or here:
        for device in device_list(config.devices, config.model.device):
            yield from _raised(check_device, device, "devices", here)


def check_heard(config: RunConfig, which: str, languages: Iterable[str]) -> None:
    """Whether the recognizers of the prompts' languages are there; a known one that is not is downloaded now, and not
    after hours of sampling.

    Raises:
        ConfigError: none hears a language.
        CheckpointError: a folder is missing or incomplete, or cannot be downloaded.
    """
    for lang in languages:
        settings = getattr(config.reward, which).for_lang(lang)
        if settings.type in REQUIRED:
            with _at(f"reward.{which}" + f".{lang}" * (lang in getattr(config.reward, which).by_lang)):
                model_folder(settings.path, REQUIRED[settings.type])


def check_prompt_files(config: RunConfig) -> None:
    """Whether the prompt files are there; what is in them is the stage's to say.

    Raises:
        PromptError: names the first that is not.
    """
    for name in ("train", "dev", "eval"):
        source = parse_source(getattr(config.prompts, name))
        if source.path is not None and not source.is_folder and not source.is_file:
            raise PromptError("There is no such prompt file", where=f"prompts.{name}: {source.path}",
                              fix=f"give {KINDS}")


def check_device(device: str, where: str, here: bool) -> None:
    """Whether a device is one, and where work is done ``here``, whether it is there.

    Raises:
        ConfigError: it is not.
    """
    fix = "use cpu, cuda or cuda:0" + ", or auto" * (where == "model.device")
    if not _DEVICES.fullmatch(device):
        raise ConfigError(f"unknown device {device!r}", where=where, fix=fix)
    if here and device.startswith("cuda"):
        from talker_rl.speech.locate import pick_device

        try:
            pick_device(device)
        except ConfigError as error:
            raise ConfigError(error.what, where=where, fix=(error.fix or "") if where == "model.device" else "use cpu"
                              ) from None


def _routes(config: RunConfig, which: str) -> Iterator[tuple[str, RecognizerSettings]]:
    """Key and settings of each of the recognizers."""
    recognizer = getattr(config.reward, which)
    for lang, settings in recognizer.by_lang.items():
        yield f"reward.{which}.{lang}", settings
    if recognizer.path:
        yield f"reward.{which}", recognizer


def _check_reward(config: RunConfig) -> None:
    with _importing("reward.components"):
        Combiner(config.reward)


def _check_loss(loss: dict[str, Any], where: str) -> None:
    from talker_rl.losses import build_loss

    with _importing(where), _at(where):
        build_loss(loss, where)


def _check_folder(path: str, kind: str, where: str, here: bool) -> None:
    if not here and path in ("micro:reward", "micro:eval") and not resolve(path).is_dir():
        return  # the micro world is built on the machine that runs
    with _at(where):
        local_folder(path, REQUIRED[kind])


def _download(where: str, path: str, kind: str) -> Iterator[str]:
    with contextlib.suppress(CheckpointError):
        if path in KNOWN and local_folder(path, REQUIRED[kind]) is None:
            yield f"{where}: {path} is not on this machine, and will be downloaded ({KNOWN[path].hub})"


def _raised(check: Callable[..., Any], *args: Any) -> Iterator[TalkerRLError]:
    """The error that a check raises, if any."""
    try:
        check(*args)
    except TalkerRLError as error:
        yield error


@contextlib.contextmanager
def _at(where: str) -> Iterator[None]:
    """Errors with the key that they are of before their place."""
    try:
        yield
    except TalkerRLError as error:
        place = where if not error.where or error.where.startswith(where) else f"{where}: {error.where}"
        raise type(error)(error.what, where=place, fix=error.fix) from error


@contextlib.contextmanager
def _importing(where: str) -> Iterator[None]:
    """Whatever a user's module raises as it is imported is that module's fault, and no bug of this program."""
    try:
        yield
    except TalkerRLError:
        raise
    except Exception as error:
        raise ConfigError(f"Cannot be imported: {type(error).__name__}: {error}", where=where,
                          fix="mend the module, or write `module:function` of another") from error
