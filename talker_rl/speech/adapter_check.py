"""Is a saved adapter a whole LoRA of this Talker? Told from its settings and its file's header, no weights are read.

peft itself says which tensors an adapter of these settings has: it is built on a Talker of the same config on the meta
device, which takes no memory. What peft would skip with a warning or load in part is refused, since the base would then
speak under the adapter's name.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr  # a damaged file's values may be long
from typing import Any

import torch
from pydantic import ValidationError

from talker_rl.base.errors import CheckpointError, told
from talker_rl.base.figures import count
from talker_rl.base.file_hash import cached_hash
from talker_rl.speech import adapter_files
from talker_rl.speech.adapter_files import PREFIX, SETTINGS, WEIGHTS, adapter_weights, restoring
from talker_rl.speech.config import LoraSettings
from talker_rl.speech.files import read_headers, read_tensors, require_file, stored_as_floats
from talker_rl.speech.quiet import quiet_transformers
from talker_rl.speech.unwrap import unwrap_talker

__all__ = ["PREFIX", "SETTINGS", "WEIGHTS", "adapter_settings", "adapter_weights", "base_kept", "check_adapter",
           "check_adapter_of_class", "check_base_tensors", "check_finite", "on_meta", "target_problem"]

FREE = {"alpha_pattern", "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules",
        "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
        "modules_to_save", "peft_type", "peft_version", "r", "rank_pattern", "revision", "target_modules", "task_type",
        "use_rslora"}
"""Settings that say no more than which tensors there are, of which shape and scale; the others must be peft's
defaults: they change the layers, the base or its biases, or import modules."""

KEEPING = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Ways to begin a LoRA (``init_lora_weights``) that leave the base's weights as they are: the adapter is of the
published base. All others of peft's (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take a part out of it first."""


_sound: set[tuple[str, ...]] = set()
"""What this process has found whole: (Talker's class, its config, hashes of the adapter's files). To build a 7B Talker
without memory takes seconds, and a worker loads the same adapter for every task."""


def on_meta(cls: type, config: Any) -> Any:
    """A module of this class and config, without memory."""
    with quiet_transformers(), torch.device("meta"):
        return cls(copy.deepcopy(config))


def check_adapter(talker: Any, folder: Path) -> None:
    """Whether a folder holds a LoRA of this Talker, every tensor of it and nothing else.

    Raises:
        CheckpointError: a file is missing or damaged, is of another kind of adapter, or does not fit; it names the
            first tensor or setting that does not.
    """
    inner = unwrap_talker(talker)
    check_adapter_of_class(type(inner), inner.config, folder)


def check_adapter_of_class(cls: type, config: Any, folder: Path) -> None:
    """:func:`check_adapter` for a Talker of this class and config; no weights of it are needed."""
    settings = adapter_settings(folder)
    weights = adapter_weights(folder)
    files = cached_hash(folder / SETTINGS), cached_hash(weights)
    key = (cls.__qualname__, config.to_json_string(use_diff=False), *files)
    if key in _sound:
        return
    with restoring(folder):
        header = read_headers(weights)
    adapter_files.refuse_other_names(folder, header, settings)
    talker = on_meta(cls, config)
    modules = {name for name, _ in talker.named_modules()}  # before there are layers of LoRA in it
    own = {name: tuple(value.shape) for name, value in talker.named_parameters()}
    expected = _expected(talker, settings, folder / SETTINGS)
    found = {name: shape for name, (_, shape) in header.items()
             if name in expected or own.get(_base_tensor(name)) != shape}  # (the base's: compared where it is loaded)
    problem = _difference(expected, found, modules)
    if problem is None:
        problem = next((f"{WEIGHTS} holds {name!r} as {dtype}, which is no precision of weights"
                        for name, (dtype, _) in header.items() if not stored_as_floats(dtype)), None)
    if problem:
        base = settings.get("base_model_name_or_path") or "it names none"
        raise CheckpointError(problem, where=str(weights), fix="load it on the model that it was trained on, with the "
                              f"{SETTINGS} that was saved with it: {base}")
    _sound.add(key)


def adapter_settings(folder: Path) -> dict[str, Any]:
    """``adapter_config.json`` of a LoRA.

    Raises:
        CheckpointError: it is missing, cannot be read, or is of another kind of adapter.
    """
    file = require_file(folder, SETTINGS, "the adapter's settings", adapter_files.without_settings(folder))
    adapter_files.intact(file)
    try:
        settings = json.loads(file.read_text())
        if not isinstance(settings, dict) or "peft_type" not in settings:
            raise ValueError("it is no object with a peft_type")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{SETTINGS} cannot be read: {error}", where=str(file),
                              fix="restore it: it was saved with the adapter's weights") from error
    if settings["peft_type"] != "LORA":
        raise CheckpointError(f"{SETTINGS} is of a {repr(settings['peft_type'])}, not of a LoRA", where=str(file),
                              fix="give a LoRA adapter: other kinds cannot be trained on or merged here")
    return settings


def check_finite(folder: Path) -> None:
    """Read an adapter's weights, and refuse what is no number.

    Raises:
        CheckpointError: the file is damaged, or a tensor, which it names, is not finite.
    """
    weights = adapter_weights(folder)
    with restoring(folder):
        held = read_tensors([weights])
    for name, value in held.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{WEIGHTS}: {name} is not finite", where=str(weights),
                                  fix="choose another checkpoint of the training")


def check_base_tensors(talker: Any, folder: Path) -> None:
    """Whether the weights of the base that peft saved beside a LoRA (of embeddings, by default) are the Talker's own:
    loading the adapter would replace them, and merging it would not.

    Raises:
        CheckpointError: one is not; it is named.
    """
    own = {_base_tensor(name): value for name, value in unwrap_talker(talker).named_parameters()}  # wrapped or bare
    weights = adapter_weights(folder)
    names = {name: own[base] for name in read_headers(weights) if (base := _base_tensor(name)) in own}
    if not names:
        return
    held = read_tensors([weights])
    for name, value in names.items():
        mine, other = value.detach().cpu(), held[name]
        same = torch.equal(other.to(mine.dtype), mine) or torch.equal(mine.to(other.dtype), other)
        if not same and _is_base_layer(name, folder):
            raise CheckpointError(
                f"{WEIGHTS} brings {name}, a weight of its base, with other values than this Talker's",
                where=str(weights), fix="name the model that it was trained on as model.path: "
                f"{adapter_settings(folder).get('base_model_name_or_path') or 'it names none'}")


@contextmanager
def base_kept(talker: Any, folder: Path) -> Iterator[None]:
    """The Talker's own weights stay as they are while an adapter is loaded that has some of them beside it, which may
    be in less precision."""
    beside = {_base_tensor(name) for name in read_headers(adapter_weights(folder))}
    held = [(value, value.detach().clone()) for name, value in unwrap_talker(talker).named_parameters()
            if _base_tensor(name) in beside]
    try:
        yield
    finally:
        for value, before in held:
            value.data.copy_(before)


def _is_base_layer(name: str, folder: Path) -> bool:
    """Whether a tensor is the base's by its settings, and no module that was trained as a whole."""
    trained = adapter_settings(folder).get("modules_to_save") or []
    module = _base_tensor(name).rpartition(".")[0]
    return not any(module == m or module.endswith(f".{m}") for m in trained)


def _base_tensor(name: str) -> str:
    """``base_model.model.x.base_layer.weight`` -> ``x.weight``: the base's parameter that a tensor would be."""
    return name.removeprefix(PREFIX).replace(".base_layer.", ".")


def target_problem(talker: Any, targets: Collection[str] | str, *, partly: bool = False) -> str | None:
    """What is wrong with ``target_modules`` for this Talker, in a few words; None if nothing is.

    Args:
        partly: other settings take some of the named modules out again, so they may be of any kind.
    """
    modules = dict(talker.named_modules())
    if isinstance(targets, str):
        if targets == "all-linear":  # peft's word
            return None
        try:
            named = [name for name in modules if re.fullmatch(targets, name)]
        except (re.error, RecursionError, OverflowError) as error:
            return f"{targets!r} is no regular expression: {error}"
        if not named:
            return f"the Talker has no module that {targets!r} matches"
    else:
        named = [name for name in modules if any(name == t or name.endswith(f".{t}") for t in targets)]
        absent = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in named)]
        if absent or not targets:
            return f"the Talker has no module {absent[0]!r}" if absent else "no module is named"
    other = [n for n in named if not isinstance(modules[n], torch.nn.Linear | torch.nn.Embedding)]
    if other and not partly:
        return f"{other[0] or 'the Talker itself'} is no linear layer, but a {type(modules[other[0]]).__name__}"
    return None


def _expected(talker: Any, settings: dict[str, Any], file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors that peft saves of an adapter of these settings. The Talker is changed."""
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict

    def refused(problem: str) -> CheckpointError:
        changes = "changes the base" in problem
        return CheckpointError(
            f"{SETTINGS} is not of a LoRA that can be used here: {problem}", where=str(file),
            fix="save it again where it was trained, with path_initial_model_for_weight_conversion (peft then makes a "
            "plain LoRA of it); or merge it there" if changes else
            "restore it as it was saved with the weights, or give a plain LoRA of the Talker")

    problem = _unsupported(settings) or _mistyped(settings) or target_problem(
        talker, settings.get("target_modules") or [],
        partly=any(settings.get(key) not in (None, []) for key in ("exclude_modules", "layers_to_transform")))
    if problem:
        raise refused(problem)
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.device("meta"):
            warnings.simplefilter("ignore")
            plain = {"init_lora_weights": True, "eva_config": None}  # how it began changes no name and no shape
            config = LoraConfig(**{k: v for k, v in (settings | plain).items() if k in known and k != "peft_type"})
            model = get_peft_model(talker, config)
            tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    except Exception as error:  # peft checks little: what it raises depends on where it stumbles over the settings
        raise refused(f"{type(error).__name__}: {told(error)}") from error
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _unsupported(settings: dict[str, Any]) -> str | None:
    """A setting that is not free and not peft's default."""
    from peft import LoraConfig

    defaults = vars(LoraConfig())
    for key, value in settings.items():
        if key == "init_lora_weights":
            word = value.lower() if str(value).lower() in ("gaussian", "mica") else value  # (as peft itself reads it)
            if not any(word is way or (isinstance(way, str) and word == way) for way in KEEPING):
                changing = str(value).lower().startswith(("pissa", "olora", "corda", "loftq", "lora_ga"))
                return f"{key} is {repr(value)}" + (
                    ": such a one changes the base's weights before it is trained, and fits no other base" if changing
                    else ", which peft does not know")
        elif key == "task_type":
            if value not in (None, "CAUSAL_LM"):
                return f"{key} is {repr(value)}: peft would wrap the Talker as another kind of model"
        elif key not in FREE and value != defaults.get(key) and value not in (None, False, {}, []):
            return f"{key} is {repr(value)}, which is not supported"
    return None


def _mistyped(settings: dict[str, Any]) -> str | None:
    """The first of our own settings that has a value which training would not take."""
    own = {key: settings[key] for key in LoraSettings.model_fields if key in settings}
    try:
        LoraSettings.model_validate(own, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{first['loc'][0]} is {repr(settings[str(first['loc'][0])])}: {first['msg']}"
    alphas = settings.get("alpha_pattern") or {}
    if not isinstance(alphas, dict) or not all(type(a) in (int, float) and 0 < a < math.inf for a in alphas.values()):
        return f"alpha_pattern is {repr(alphas)}: positive numbers by module are asked for"
    return None


def _difference(
    expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], modules: set[str]
) -> str | None:
    """The first tensor in which a file differs from what it should hold."""
    foreign = f"{WEIGHTS} is an adapter of another geometry: "
    for name, shape in found.items():
        module, side = _split(name)
        if name not in expected:
            if side and module not in modules:
                return f"{foreign}{module}: the model has no such module"
        elif shape != expected[name]:
            axis = {"lora_A": 1, "lora_B": 0}.get(side, -1)
            if len(shape) != 2 or axis < 0:
                return f"{foreign}{module}: it has shape {list(shape)}, the model's {list(expected[name])}"
            if shape[axis] != expected[name][axis]:
                what = "inputs" if axis else "outputs"
                return f"{foreign}{module}: it has {shape[axis]} {what}, the model {expected[name][axis]}"
            return (f"{WEIGHTS} and {SETTINGS} disagree: {name} is of rank {shape[1 - axis]}, "
                    f"the settings say {expected[name][1 - axis]}")
    missing = [name for name in expected if name not in found]
    if missing:
        return (f"{WEIGHTS} is no whole adapter: it lacks {missing[0]} ({len(missing)} of the {len(expected)} tensors "
                f"that {SETTINGS} asks for)")
    extra = [name for name in found if name not in expected]
    if extra:
        return f"{WEIGHTS} holds {extra[0]!r}, which {SETTINGS} does not ask for ({count(len(extra), 'such tensor')})"
    return None


def _split(name: str) -> tuple[str, str]:
    """``base_model.model.x.lora_A.weight`` -> (``x``, ``lora_A``); a tensor of no LoRA layer has no side."""
    inside = name.removeprefix(PREFIX)
    found = re.fullmatch(r"(.+)\.(lora_\w+)(\.weight)?", inside)
    return (found[1], found[2]) if found else (inside.removesuffix(".weight"), "")
