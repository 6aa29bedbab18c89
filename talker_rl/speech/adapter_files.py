"""An adapter's files: where its weights are, and what to say of a folder that is another tool's, or damaged.

A refusal names the true reason and the way out: to download again what was published so gives the same files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from talker_rl.base.errors import CheckpointError, DataError
from talker_rl.base.figures import count
from talker_rl.base.seals import verified

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft writes before a tensor's name."""

PICKLES = ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin")
_RENAME = ("python -c 'from safetensors.torch import load_file, save_file; f = \"{file}\"; "
           "save_file({{k.replace(\"{old}\", \"{new}\", 1): v for k, v in load_file(f).items()}}, f)'")


def adapter_weights(folder: Path) -> Path:
    """The file of an adapter's weights.

    Raises:
        CheckpointError: it is not there; says what is there in its place.
    """
    file = intact(folder / WEIGHTS)
    if file.is_file():
        return file
    pickled = next((name for name in PICKLES if (folder / name).is_file()), None)
    if pickled:
        raise CheckpointError(
            f"the adapter's weights are {pickled}, a pickle (as peft before 0.5 wrote them), which is not opened here: "
            "pickles can run code", where=str(folder),
            fix="convert it, in its folder: python -c 'import torch; from safetensors.torch import save_file; "
            f'save_file({{k: v.contiguous() for k, v in torch.load("{pickled}", weights_only=True, '
            f"map_location=\"cpu\").items()}}, \"{WEIGHTS}\")'")
    parts = sorted(f.name for f in folder.glob("adapter_model-*-of-*.safetensors"))
    if parts:
        raise CheckpointError(
            f"the adapter's weights are in {count(len(parts), 'file')} ({parts[0]}, ...), which peft does not load",
            where=str(folder), fix="join them, in their folder: python -c 'import glob; from safetensors.torch import "
            "load_file, save_file; save_file({k: v for f in sorted(glob.glob(\"adapter_model-*\")) for k, v in "
            f'load_file(f).items()}}, "{WEIGHTS}")\'')
    others = sorted(f.name for f in folder.glob("*.safetensors"))
    raise CheckpointError(
        f"{WEIGHTS} is missing: it holds the adapter's weights"
        + (f" (there is {', '.join(others[:3])})" if others else ""), where=str(folder), fix=restoration(folder))


def intact(file: Path) -> Path:
    """A file of trained weights, or of their settings, if it is what was written.

    Raises:
        CheckpointError: it is not; says the way to get it back.
    """
    with restoring(file.parent):
        return verified(file)


def restoration(folder: Path) -> str:
    """What to do about a file of this adapter that is missing or damaged: it depends on where the adapter is from."""
    run = next((above for above in folder.absolute().parents[:5] if (above / "manifest.json").is_file()), None)
    if run is not None:
        variant = next((part for part in reversed(folder.parts) if not part.startswith("checkpoint-")), folder.name)
        kept = [f.parent for f in sorted(run.glob(f"round*/train/{variant}/checkpoint-*/{WEIGHTS}"))
                if f.parent.absolute() != folder.absolute()]
        again = f"train it again (talker-rl run with --force-stage round1/train/{variant})"
        return f"it was trained in {run}: copy it from {kept[-1]}, or {again}" if kept else again
    if (folder / "export.json").is_file():
        return "export it again from its run (talker-rl export --adapter)"
    return "copy it again from where it was saved or published: the file may be cut"


@contextmanager
def restoring(folder: Path) -> Iterator[None]:
    """Inside, a file that cannot be read, or is not what was written, is told with the way to get this adapter's."""
    try:
        yield
    except (CheckpointError, DataError) as error:
        raise CheckpointError(error.what, where=error.where, fix=restoration(folder)) from error


def without_settings(folder: Path) -> str:
    """What to do about a folder without an adapter's settings."""
    if not folder.is_dir():
        return "give the folder of a PEFT adapter"
    inside = sorted(f.parent.name for f in folder.glob(f"*/{SETTINGS}"))
    if inside:
        return f"name the folder inside: {', '.join(str(folder / name) for name in inside[:3])}"
    return restoration(folder)


def refuse_other_folders(folder: Path) -> None:
    """Refuse what is given as an adapter and is another thing.

    Raises:
        CheckpointError: a file, a whole model, or weights without their settings.
    """
    if folder.is_file():
        raise CheckpointError("An adapter is a folder, this is a file", where=str(folder),
                              fix=f"give the folder that holds {SETTINGS} and {WEIGHTS}")
    if (folder / "config.json").is_file():
        raise CheckpointError("This is a whole model, not an adapter", where=str(folder),
                              fix="name it as model.path; model.adapter is the folder of a LoRA")
    if (folder / WEIGHTS).is_file() or any((folder / name).is_file() for name in PICKLES[:2]):
        raise CheckpointError(f"{SETTINGS} is missing: it holds the adapter's settings", where=str(folder),
                              fix=f"put it beside the weights: it was saved with them; {restoration(folder)}")


def refuse_other_names(folder: Path, names: Collection[str], settings: Mapping[str, Any]) -> None:
    """Refuse an adapter whose tensors are named for another model than the Talker alone.

    Raises:
        CheckpointError: it was tuned on the whole Omni model, on its Thinker, or saved without peft's names.
    """
    base = settings.get("base_model_name_or_path") or "it names none"
    lora = [name for name in names if ".lora_" in name]
    bare = [name.removeprefix(PREFIX) for name in lora]
    of = {part: [n for n in bare if n.startswith(f"{part}.")] for part in ("thinker", "talker", "token2wav")}
    inner = [n for n in bare if re.match(r"(model\.)?(visual|audio_tower|language_model)\.", n)]
    weights = str(folder / WEIGHTS)
    if foreign := of["thinker"] + of["token2wav"] + inner:
        part = "token2wav" if of["token2wav"] else "Thinker"
        also = f" beside {len(of['talker'])} of the Talker" if of["talker"] else ""
        raise CheckpointError(
            f"{WEIGHTS} is an adapter of the {part}: {len(foreign)} of its {len(lora)} tensors are{also}, and only "
            f"adapters of the Talker are taken ({foreign[0]})", where=weights,
            fix="merge it into the whole model where it was trained (merge_and_unload, save_pretrained) and name that "
            f"folder as model.path; its base: {base}")
    if of["talker"]:
        regex = isinstance(settings.get("target_modules"), str)
        raise CheckpointError(
            f"{WEIGHTS} was tuned on the whole model: its tensors are named {PREFIX}talker.*, of the Talker alone they "
            f"are {PREFIX}*", where=weights,
            fix=f"convert it, in a copy of its folder: {_rename(f'{PREFIX}talker.', PREFIX)}"
            + (f", and take `talker\\.` out of target_modules in {SETTINGS}" if regex else "") + f"; its base: {base}")
    named = re.compile(r"\.(lora_(?:embedding_)?[AB])\.(?!weight$)([\w-]+)(\.weight)?$")
    if lora and (found := named.search(lora[0])) and all(named.search(n) for n in lora):
        raise CheckpointError(
            f"the tensors in {WEIGHTS} carry the adapter's name ({found[2]}), which peft leaves out: {lora[0]}",
            where=weights, fix=f"save it with save_pretrained; or convert it, in a copy of its folder: "
            f"{_rename(f'.{found[2]}.weight', '.weight')}; its base: {base}")
    if lora and not any(name.startswith(PREFIX) for name in lora):
        raise CheckpointError(
            f"{WEIGHTS} is no whole adapter as peft saves it: it lacks {PREFIX} before its tensors' names ({lora[0]})",
            where=weights, fix="save it with save_pretrained; or convert it, in a copy of its folder: python -c 'from "
            f'safetensors.torch import load_file, save_file; f = "{WEIGHTS}"; save_file({{"{PREFIX}" + k: v for k, v '
            f"in load_file(f).items()}}, f)'; its base: {base}")


def _rename(old: str, new: str) -> str:
    return _RENAME.format(file=WEIGHTS, old=old, new=new)


def is_adapter(weights: Path) -> bool:
    """Whether a folder of trained weights is a PEFT adapter (else it holds full weights)."""
    return (weights / "adapter_config.json").is_file() or (weights / WEIGHTS).is_file()
