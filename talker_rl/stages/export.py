"""Export: a trained Talker as a whole checkpoint in the original layout, or as a PEFT adapter; each with its card."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talker_rl.base.errors import CheckpointError, ConfigError, StageError, is_disk_full
from talker_rl.base.figures import count
from talker_rl.base.ids import stable_hash
from talker_rl.base.names import hub_name, model_name
from talker_rl.base.places import SHIPPED_MODELS, check_writable_folder
from talker_rl.planning.command import size
from talker_rl.speech.adapter_check import adapter_settings, check_finite
from talker_rl.speech.adapter_files import adapter_weights, is_adapter
from talker_rl.speech.config import ModelConfig
from talker_rl.speech.exporting import Entry, Rounding
from talker_rl.speech.family import Family
from talker_rl.speech.files import content_hash
from talker_rl.speech.locate import resolve_model_path
from talker_rl.speech.registry import family_of
from talker_rl.speech.usage import Usage
from talker_rl.stages import export_facts
from talker_rl.stages.export_check import policy_of
from talker_rl.store.run_dir import MANIFEST, disk_full, read_manifest
from talker_rl.train.card import RunFacts, model_card

LINEAGE = "export.json"
"""What the folder was made of, for programs; it also marks a folder that --overwrite may replace."""

EXAMPLE_TEXT = "Please say: hello."
"""What the card's code asks for where no run has texts of its own."""

HEADROOM = 64 << 20
"""Bytes that stay free on the disk."""


@dataclass(frozen=True)
class Source:
    """What is exported."""

    weights: Path
    """Folder of an adapter or of full Talker weights."""
    model: ModelConfig
    base: Path
    """The base's folder."""
    name: str
    run: export_facts.Run | None = None

    @property
    def adapter(self) -> bool:
        """Whether the weights are a PEFT adapter."""
        return is_adapter(self.weights)

    @property
    def base_hash(self) -> str:
        """Content hash of the base's Talker and decoder."""
        return self.family.files_identity(self.model.model_copy(update={"path": str(self.base)}), "talker", "decoder")

    @property
    def family(self) -> Family:
        """The base's family."""
        return family_of(self.base)


def verb(args: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit code.

    Raises:
        ConfigError: options that do not fit together.
        StageError: the run has no such variant, OUT is taken or cannot be, or the disk is too small.
        DataError: a file of the run is missing or damaged.
        CheckpointError: base or weights are incomplete, not finite, or of different geometries.
    """
    if not args.merge and not args.adapter:
        raise ConfigError("Nothing to write", fix="give --merge OUT (a whole checkpoint) or --adapter OUT, or both")
    if bool(args.run_dir) == bool(args.adapter_dir):
        raise ConfigError("Name one source", fix="give --run-dir RUN, or the folder of an adapter")
    if args.talker_dtype != "auto" and not args.merge:
        raise ConfigError("--talker-dtype belongs to --merge", fix="leave it out: an adapter stays as it was trained")
    source = _source(args)
    if args.adapter and not source.adapter:
        raise ConfigError(f"{source.name} has full weights and no adapter", where=str(source.weights),
                          fix="use --merge OUT")
    targets = {kind: Path(out) for kind, out in (("merge", args.merge), ("adapter", args.adapter)) if out}
    for target in targets.values():
        check_target(target, source, args.overwrite)
    if len(targets) == 2:
        whole, adapter = (target.resolve() for target in targets.values())
        if whole.is_relative_to(adapter) or adapter.is_relative_to(whole):
            raise ConfigError("--merge and --adapter would write into each other", where=f"{whole}, {adapter}",
                              fix="give two folders beside each other")
    if source.adapter:
        source.family.check_adapter(source.model, source.weights)
    name = args.base_name or _base_name(source)
    if "merge" in targets:
        _export_merged(source, targets["merge"], name, args)
    if "adapter" in targets:
        _export_adapter(source, targets["adapter"], name, args)
    return 0


def _base_name(source: Source) -> str:
    """The base's name on the hub, or its folder's: what is exported is for other machines."""
    named = model_name(source.model.path)
    return named if named in SHIPPED_MODELS else hub_name(str(source.base)) or named


def _source(args: argparse.Namespace) -> Source:
    if args.run_dir:
        found = export_facts.open_run(Path(args.run_dir), args.variant)
        model = found.config.model.model_copy(update={"path": args.model} if args.model else {})
        return Source(found.weights, model, resolve_model_path(model.path), found.variant, found)
    if args.variant:
        raise ConfigError("--variant belongs to --run-dir", fix="leave it out")
    weights = Path(args.adapter_dir)
    if not weights.is_dir():
        raise CheckpointError("no such folder", where=str(weights), fix="give a PEFT adapter's folder, or --run-dir")
    path = args.model or _base_of(weights)
    model = ModelConfig(path=path)
    return Source(weights, model, resolve_model_path(path), weights.resolve().name)


def _base_of(weights: Path) -> str:
    """Where the base of an adapter is, from the run that the adapter lies in or from its own settings."""
    named = adapter_settings(weights).get("base_model_name_or_path") if is_adapter(weights) else None
    if not named or not isinstance(named, str):
        raise ConfigError("The base is not known", where=str(weights), fix="name it: --model PATH")
    for above in weights.resolve().parents[:4]:
        if (above / MANIFEST).is_file():
            path = read_manifest(above).get("config", {}).get("model", {}).get("path")
            if isinstance(path, str) and model_name(path) == named:
                return path
    if named not in SHIPPED_MODELS and not hub_name(named) and not Path(named).expanduser().is_dir():
        raise ConfigError(f"The adapter names its base {named!r}, and not where it is", where=str(weights),
                          fix="name its folder: --model PATH")
    return named


def check_target(target: Path, source: Source, overwrite: bool) -> None:
    """Whether OUT may be written.

    Raises:
        StageError: it exists and is not an export that --overwrite names, lies below a file, or holds what is
            exported.
    """
    mine = target.resolve()
    taken = [source.base, source.weights, *([source.run.path] if source.run else [])]
    if any(folder.resolve().is_relative_to(mine) for folder in taken):
        raise StageError("OUT holds what is exported", where=str(target), fix="choose a new folder")
    above = next(f for f in mine.parents if f.exists())
    if not above.is_dir():
        raise StageError("OUT lies below a file", where=f"{target} ({above} is no folder)", fix="choose a new folder")
    check_writable_folder(target)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise StageError("OUT exists", where=str(target), fix="choose a new folder, or --overwrite an earlier export")
    if not (target / LINEAGE).is_file():
        raise StageError(f"OUT is not an earlier export: it has no {LINEAGE}", where=str(target),
                         fix="choose a new folder, or delete it yourself")


def _export_merged(source: Source, target: Path, base_name: str, args: argparse.Namespace) -> None:
    widen, merge = args.talker_dtype == "float32", source.family.exporter()
    merged = merge.merged_tensors(source.base, source.weights, source.model)
    written = merge.entries(source.base, merged, widen=widen)
    parent = _existing(target.parent)
    needed = merge.bytes_needed(source.base, parent, written, link=not args.copy)
    if args.dry_run:
        print(f"{target}: the whole checkpoint, {source.weights} merged into {len(merged)} of its tensors"
              + ", which become float32" * widen)
        _list([(e.name, _HOW[e.how], e.size) for e in written], needed)
        _note_left_out(source, written)
        return
    _check_disk(parent, needed)
    say = _teller(args.quiet)
    say(f"merging {source.weights} into {source.base}, in float32")
    checked = source.run and source.adapter and not args.no_check
    policy = policy_of(source.run.path, source.weights, source.model) if source.run and checked else None
    talker = policy.merged if policy else merge.merged_talker(source.weights, source.model)
    base_hash = source.base_hash  # before links change ctimes: files would be read anew
    with _folder(target) as folder:
        say(f"writing {target}: {size(needed)}")
        rounding = merge.write_checkpoint(source.base, folder, written, merged, dict(talker.state_dict()),
                                          link=not args.copy, widen=widen)
        lines = [*_weight_lines(rounding, widen), *_other_base(source, base_hash)]
        if policy:
            lines += policy.check(folder, exact=not rounding.error)
        _finish(source, folder, target, base_name, base_hash, lines, merged=True, widened=widen)
    for line in lines:
        print(f"export: {line}", file=sys.stderr)
    _note_left_out(source, written)
    print(f"{target}: loads with {merge.LOADS_WITH}")


def _export_adapter(source: Source, target: Path, base_name: str, args: argparse.Namespace) -> None:
    if source.model.talker:
        raise ConfigError("The adapter belongs to other Talker weights than the base's", where="model.talker",
                          fix="use --merge OUT, which puts both into the checkpoint")
    config = adapter_settings(source.weights)
    weights = adapter_weights(source.weights)
    if args.dry_run:
        print(f"{target}: the adapter of {source.weights}, for {base_name}")
        _list([(weights.name, "copied", weights.stat().st_size)], weights.stat().st_size)
        return
    _check_disk(_existing(target.parent), weights.stat().st_size)
    check_finite(source.weights)  # damaged ones are refused here, not at the next user's
    with _folder(target) as folder:
        shutil.copyfile(weights, folder / weights.name)
        config["base_model_name_or_path"] = base_name
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        base_hash = source.base_hash
        lines = ["a LoRA adapter, as it was trained", *_other_base(source, base_hash)]
        _finish(source, folder, target, base_name, base_hash, lines, merged=False)
    print(f"{target}: loads with PeftModel.from_pretrained(model.talker, ...)")


_HOW = {"merge": "written anew", "keep": "as it is", "copy": "copied"}


def _weight_lines(rounding: Rounding, widened: bool) -> list[str]:
    kinds = ", ".join(sorted(rounding.dtypes))
    of = "" if rounding.changed == rounding.merged else f" of the {rounding.merged} that were merged"
    line = f"{count(rounding.changed, 'tensor')} of the Talker changed{of}, stored as {kinds}"
    if rounding.error:
        line += (f"; rounding them moved the weights by {rounding.share:.1%} of the update's norm (--talker-dtype "
                 "float32 stores them as they are, and the unmerged adapter has no such error)")
    lines = [line]
    if widened:
        lines.append('load it in float32 (dtype=torch.float32): dtype="auto" takes the precision that config.json '
                     "names, and rounds")
    return lines


def _other_base(source: Source, base_hash: str) -> list[str]:
    """A warning where a run was trained on files that the base does not hold any more, or that --model has not."""
    trained_on = source.run.base_hash if source.run else None
    if trained_on is None or trained_on == base_hash:
        return []
    return [f"WARNING: {_base_name(source)} is not what the run was trained on (content hash {trained_on})"]


def _finish(
    source: Source, folder: Path, target: Path, base_name: str, base_hash: str, weights: list[str], *, merged: bool,
    widened: bool = False,
) -> None:
    """Write speakers of the user's own, export.json and the card."""
    model, run = source.model, source.run
    speakers = source.family.speakers(model)
    if model.speakers:
        source.family.exporter().add_speakers(Path(model.speakers).expanduser(), folder)
    lineage = {
        "format": 1, "kind": "checkpoint" if merged else "adapter", "variant": source.name, "base": base_name,
        "base_hash": base_hash, "weights_hash": stable_hash(
            [(f.name, content_hash(f)) for f in sorted(source.weights.glob("*.safetensors"))]),
        "weights": weights, "speakers": speakers, **(run.lineage if run else {}),
    }
    (folder / LINEAGE).write_text(json.dumps(lineage, indent=1, ensure_ascii=False) + "\n")
    text = export_facts.example_text(run) if run else EXAMPLE_TEXT
    known = run and (run.config.prompts.speaker or (run.config.prompts.speakers or [""])[-1])
    usage = Usage(folder=target.resolve().name, base=base_name, speaker=known or speakers[0],
                  system=model.system_prompt, user=model.instruction.replace("{text}", text),
                  own_speakers=bool(model.speakers),
                  dtype="torch.float32" if widened else Usage.dtype)
    facts = export_facts.facts(run, usage, weights, lineage) if run else RunFacts(
        usage, weights, lineage=[f"base: `{base_name}` (content hash `{lineage['base_hash']}`)",
                                 f"weights' hash: `{lineage['weights_hash']}`"])
    card = model_card(run.result if run else None, run.settings if run else {"base_model": base_name},
                      adapter=source.adapter, facts=facts, merged=merged)
    (folder / "README.md").write_text(card, encoding="utf-8")


@contextmanager
def _folder(target: Path) -> Iterator[Path]:
    """A folder beside OUT that takes its place when all is written, and goes when something fails.

    Raises:
        StageError: the disk is full.
    """
    target = Path(os.path.abspath(target))
    temporary, old = (target.with_name(f".{target.name}.{end}") for end in ("tmp", "old"))
    temporary.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary)  # what a killed export left
    temporary.mkdir()
    try:
        yield temporary
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            os.rename(target, old)
        os.rename(temporary, target)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_disk_full(error):
            raise disk_full(target) from error
        raise


def _existing(folder: Path) -> Path:
    """The nearest folder above that exists."""
    folder = folder.resolve()
    return next(f for f in (folder, *folder.parents) if f.is_dir())


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + HEADROOM > free:
        raise StageError(f"The disk has {size(free)} free, the export needs {size(needed)}", where=str(folder),
                         fix="free some space, or choose a folder on another disk")


def _list(files: list[tuple[str, str, int]], needed: int) -> None:
    width = max(len(name) for name, _, _ in files)
    for name, how, held in files:
        print(f"  {name:<{width}}  {size(held):>10}  {how}")
    print(f"  {'on the disk, new':<{width}}  {size(needed):>10}  beside README.md and {LINEAGE}")


def _note_left_out(source: Source, written: list[Entry]) -> None:
    left = source.family.exporter().left_out(source.base, written)
    if left:
        print(f"not taken over from {source.base}: {', '.join(left)}")


def _teller(quiet: bool) -> Any:
    def say(line: str) -> None:
        if not quiet:
            print(f"export: {line}", file=sys.stderr, flush=True)

    return say
