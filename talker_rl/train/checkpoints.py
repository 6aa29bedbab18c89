"""Checkpoint folders that are whole or absent, and the choice of the one to resume from or to keep.

A checkpoint is written beside its place and renamed into it with a list of its files, so that a process killed at
any moment leaves either a complete `checkpoint-<step>` or a leftover that the next start removes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from pathlib import Path

from talker_rl.base.errors import StageError

STAGING = ".saving"
"""Folder inside the output folder in which a checkpoint grows."""

COMPLETE = "complete.json"
"""Written last: sizes of all files of the checkpoint."""

WEIGHT_FILES = ("adapter_model.safetensors", "adapter_config.json", "model.safetensors", "config.json")
RESUME_FILES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "trainer_state.json", "window.json", COMPLETE)


def seal(folder: Path) -> None:
    """List the folder's files and sizes, which makes it a complete checkpoint."""
    sizes = {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}
    (folder / COMPLETE).write_text(json.dumps(sizes, indent=1))


def is_complete(folder: Path) -> bool:
    """Whether every file that was there at sealing is there with its size, and training can go on from it."""
    try:
        sizes = json.loads((folder / COMPLETE).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
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
            warnings.warn(f"{folder} is incomplete and removed", stacklevel=2)
            shutil.rmtree(folder)
        elif best is None or int(match[1]) > best[0]:
            best = int(match[1]), folder
    return best[1] if best else None


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
            if path.name in RESUME_FILES or path.name.startswith("rng_state"):
                path.unlink()


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
            temporary = output_dir / f"{name}.tmp"
            shutil.copyfile(source, temporary)
            os.replace(temporary, output_dir / name)
    return output_dir
