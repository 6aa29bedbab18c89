"""A Thinker over several GPUs, where it does not fit one: accelerate's device maps."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch

from talker_rl.base.errors import ConfigError
from talker_rl.speech.config import DeviceMap

WHERE = "model.thinker_device_map"


def place(module: Any, device_map: DeviceMap | None, device: torch.device) -> Any:
    """The Thinker on its device, or shared out; hooks of accelerate then move what passes from part to part.

    Args:
        module: with its weights, on the CPU.
        device_map: of names of modules; "auto" shares it out over all GPUs, what does not fit stays in memory.
        device: where it goes without a map.

    Raises:
        ConfigError: the map names no module, leaves some out, or a device that is not there.
    """
    if device_map is None:
        return module.to(device)
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    if device_map == "auto":
        if not torch.cuda.is_available():
            raise ConfigError('"auto" shares a Thinker out over GPUs, and none is there', where=WHERE,
                              fix="leave it null, or name devices by module")
        whole = sorted({name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()})
        memory = get_balanced_memory(module, no_split_module_classes=whole)
        found: Mapping[str, Any] = infer_auto_device_map(module, max_memory=memory, no_split_module_classes=whole)
        if "disk" in found.values():
            raise ConfigError("the Thinker fits neither these GPUs nor this machine's memory", where=WHERE,
                              fix="use a larger machine for the conditioning, and copy its folder")
    else:
        _check(module, device_map)
        found = _disjoint(module, {name: device if device == "cpu" else _gpu(device)
                                   for name, device in device_map.items()})
    # What waits in memory computes on the first GPU; accelerate would take one at random.
    main = next((found[name] for name, _ in _parts(module, found) if found[name] != "cpu"), "cpu")
    return dispatch_model(module, device_map=dict(found), main_device=main, force_hooks=True)


def input_device(module: Any) -> torch.device:
    """Where a module's inputs go; of one whose weights wait in memory, where it computes."""
    device: torch.device = next(module.parameters()).device
    if device.type != "meta":
        return device
    execution = module._hf_hook.execution_device
    return torch.device(execution if not isinstance(execution, int) else f"cuda:{execution}")


def _parts(module: Any, names: Collection[str]) -> Iterator[tuple[str, Any]]:
    """The named modules, in the module's own order."""
    return ((name, part) for name, part in module.named_modules() if name in names)


def _disjoint(module: Any, device_map: Mapping[str, str | int]) -> dict[str, str | int]:
    """The same places with no module inside another: accelerate would first put all of the outer one on its device.

    Raises:
        ConfigError: a module that is to be divided has weights of its own, which go with nobody.
    """
    found = dict(device_map)
    for outer, part in _parts(module, device_map):  # (an outer one comes first)
        start = f"{outer}." if outer else ""
        if not any(name != outer and name.startswith(start) for name in found):
            continue
        if own := [name for name, _ in part.named_parameters(recurse=False)]:
            raise ConfigError(f"{outer!r} has weights of its own ({own[0]}), and parts of it are placed elsewhere",
                              where=WHERE, fix="name a device for the whole of it")
        device = found.pop(outer)
        _fill(part, start, device, found)
    return found


def _fill(outer: Any, start: str, device: str | int, found: dict[str, str | int]) -> None:
    """A device for each part of a module that has none and holds none that has one."""
    for name, part in outer.named_children():
        path = f"{start}{name}"
        if path in found:
            continue
        if any(other.startswith(f"{path}.") for other in found):
            _fill(part, f"{path}.", device, found)
        else:
            found[path] = device


def _check(module: Any, device_map: Mapping[str, str | int]) -> None:
    modules = {name for name, _ in module.named_modules()}
    if strangers := sorted(set(device_map) - modules):
        some = ", ".join(name for name, _ in module.named_children())
        raise ConfigError(f"the Thinker has no module {strangers[0]!r}", where=WHERE,
                          fix=f"it has {some}, and theirs, such as model.language_model.layers.0")
    left = [name for name, _ in module.named_parameters()
            if not any(name == key or name.startswith(f"{key}.") or not key for key in device_map)]
    if left:
        raise ConfigError(f"no device is named for {left[0]!r} and {len(left) - 1} others", where=WHERE,
                          fix='name one for each part; "" stands for all that is not named')
    for device in device_map.values():
        if device == "disk":
            raise ConfigError("weights are not read from the disk at every forward", where=WHERE,
                              fix="name a GPU, or cpu for what waits in memory")
        if device != "cpu" and not 0 <= _gpu(device) < torch.cuda.device_count():
            raise ConfigError(f"there is no device {device!r}: {torch.cuda.device_count()} GPUs are there", where=WHERE,
                              fix="name those that are there (0, cuda:0), or cpu")


def _gpu(device: str | int) -> int:
    """The number of a GPU; -1 for anything else."""
    if isinstance(device, int):
        return device
    named = re.fullmatch(r"cuda(?::(\d+))?", device)
    return int(named[1] or 0) if named else -1
