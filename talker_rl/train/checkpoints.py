"""Checkpoint folders that are whole or absent, and the choice of the one to resume from or to keep.

A checkpoint is written beside its place and renamed into it with a list of its files, so that a process killed at
any moment leaves either a complete `checkpoint-<step>` or a leftover that the next start removes.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path

from talker_rl.base.disk import atomic_write, read_json
from talker_rl.base.errors import DataError, StageError
from talker_rl.base.seals import LIST, is_intact, seal, sealed

STAGING = ".saving"
"""Folder inside the output folder in which a checkpoint grows."""

WEIGHT_FILES = ("adapter_model.safetensors", "adapter_config.json", "model.safetensors", "config.json")
RESUME_FILES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "trainer_state.json", "window.json", "complete.json",
                "latest", "zero_to_fp32.py", "zero_to_torch.py")
"""``complete.json`` listed files and sizes where `files.json` does so now; the last three are DeepSpeed's."""


def is_complete(folder: Path) -> bool:
    """Whether every file that was there at sealing is there as it was, and training can go on from it."""
    try:
        names = sealed(folder) or read_json(folder / "complete.json")
        return "trainer_state.json" in names and all(is_intact(folder / name) for name in names)
    except DataError:
        return False


def list_checkpoints(output_dir: str | Path) -> dict[int, Path]:
    """Checkpoints with weights by step, in order; those of a finished training hold no optimizer state any more."""
    found: dict[int, Path] = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if match and any((folder / name).is_file() for name in ("adapter_model.safetensors", "model.safetensors")):
            found[int(match[1])] = folder
    return dict(sorted(found.items()))


def newest_complete(output_dir: str | Path) -> Path | None:
    """The checkpoint to resume from; what a killed process left unfinished is removed, visibly."""
    output_dir = Path(output_dir)
    shutil.rmtree(output_dir / STAGING, ignore_errors=True)
    best: tuple[int, Path] | None = None
    for folder in output_dir.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if not match:
            continue
        if not is_complete(folder):
            warnings.warn(f"{folder} is incomplete or damaged, and removed", stacklevel=2)
            shutil.rmtree(folder)
        elif best is None or int(match[1]) > best[0]:
            best = int(match[1]), folder
    return best[1] if best else None


def is_last(checkpoint: Path) -> bool:
    """Whether its training was over with it, by max_steps or before: by its drift, an alarm, early stopping."""
    control = json.loads((checkpoint / "trainer_state.json").read_bytes())["stateful_callbacks"].get("TrainerControl")
    return bool(control and control["args"]["should_training_stop"])


def rotate(output_dir: Path, keep: int | None, always: set[int]) -> None:
    """Remove the oldest checkpoints beyond `keep`, except the steps in `always`."""
    if keep is None:
        return
    steps = list(list_checkpoints(output_dir).items())
    for step, folder in steps[: max(0, len(steps) - keep)]:
        if step not in always:
            shutil.rmtree(folder)


def strip_resume_state(output_dir: str | Path) -> None:
    """Remove optimizer, scheduler and random states of all checkpoints: their weights stay."""
    for folder in list_checkpoints(output_dir).values():
        for path in list(folder.iterdir()):
            if path.is_dir() and path.name.startswith("global_step"):  # DeepSpeed's
                shutil.rmtree(path)
            elif path.name in RESUME_FILES or path.name.startswith("rng_state"):
                path.unlink()
        if (folder / LIST).is_file():
            seal(folder)


def promote_checkpoint(output_dir: str | Path, step: int) -> Path:
    """Make the weights of `checkpoint-<step>` those of the variant: what lies in the root of its folder.

    For a later stage that chooses a step by sampling. Each file is replaced atomically.

    Raises:
        StageError: there is no such checkpoint.
    """
    output_dir = Path(output_dir)
    checkpoints = list_checkpoints(output_dir)
    if step not in checkpoints:
        raise StageError(
            f"there is no checkpoint of step {step}",
            where=str(output_dir),
            fix=f"choose one of {', '.join(map(str, checkpoints)) or 'none: none was saved'}",
        )
    for name in WEIGHT_FILES:
        source = checkpoints[step] / name
        if source.is_file():
            atomic_write(output_dir / name, source.read_bytes())
    return output_dir
