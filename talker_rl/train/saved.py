"""Whether what a training saved is what it trained: engines have their ways of saving nothing and calling it done."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from talker_rl.base.errors import TrainingError

Shapes = Counter[tuple[int, ...]]


def shapes(module: Any) -> Shapes:
    """Shapes of the parameters that are trained; of whole weights all of them."""
    lora = hasattr(module, "peft_config")
    return Counter(tuple(p.shape) for p in module.parameters() if p.requires_grad or not lora)


def check(folder: Path, expected: Shapes) -> None:
    """Whether the folder's weights file holds tensors of these shapes; its header is read, and no more.

    Raises:
        TrainingError: there is no such file, or tensors are missing or empty.
    """
    from safetensors import safe_open

    file = next((folder / name for name in ("adapter_model.safetensors", "model.safetensors")
                 if (folder / name).is_file()), None)
    fix = "the engine did not gather them: train with another engine, or report this; nothing can be made of them"
    if file is None:
        raise TrainingError("no weights were saved", where=str(folder), fix=fix)
    with safe_open(str(file), framework="pt") as reader:
        found = Counter(tuple(reader.get_slice(name).get_shape()) for name in reader.keys())
    if missing := expected - found:
        shape, count = next(iter(missing.items()))
        raise TrainingError(f"weights are missing from what was saved: {count} of shape {shape}, {missing.total()} of "
                            f"{expected.total()} in all", where=str(file), fix=fix)
