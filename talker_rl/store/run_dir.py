"""One folder per run: the manifest, the states of its stages, and writes that survive a kill.

A stage is named by its folder inside the run (``rollouts``, ``round2/default/scores``, ``eval/base``). What it
produced is described by its *key*: the hash of the configuration it depends on and of its inputs. The same key means
the same result, so a stage that is started again only does what is missing; another key is refused with the
difference, unless that stage is forced.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from talker_rl.base.disk import atomic_write, file_hash, read_json, write_json
from talker_rl.base.errors import DataError, StageError, TalkerRLError, disk_full, is_disk_full
from talker_rl.base.ids import Fingerprint, stable_hash

PACKAGES = ("talker-rl", "torch", "transformers", "trl", "peft", "accelerate", "funasr", "jiwer", "numpy", "pyarrow")

MANIFEST = "manifest.json"
"""What a run is: its configuration, and the state of its stages."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder.

    Raises:
        DataError: it is missing or damaged.
    """
    found: dict[str, Any] = read_json(
        folder / MANIFEST, fix="put it back from a copy: nothing else tells what was done in this folder; without one "
        "begin another run")
    return found


def stored_config(folder: Path) -> dict[str, Any]:
    """The configuration that a run was last started with.

    Raises:
        DataError: there is none, or the manifest is missing or damaged.
    """
    stored: dict[str, Any] | None = read_manifest(folder).get("config")
    if not stored:
        raise DataError("The run's manifest holds no configuration", where=str(folder / MANIFEST),
                        fix="give it again: -c FILE")
    return stored


def stage_json(run: Path, manifest: dict[str, Any], stage: str, name: str) -> dict[str, Any] | None:
    """A JSON file of a stage; None where the stage has not written it, and is not said to be done.

    Raises:
        DataError: it is damaged, or missing from a stage that is done.
    """
    file, done = run / stage / name, manifest["stages"].get(stage, {}).get("state") == "done"
    return read_json(file) if done or file.is_file() else None


def config_diff(old: Any, new: Any, prefix: str = "") -> list[str]:
    """``a.b: old -> new`` for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines: list[str] = []
        for key in sorted(old.keys() | new.keys(), key=str):
            lines += config_diff(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        return lines
    return [] if old == new else [f"{prefix}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _input_diff(entry: dict[str, Any], inputs: dict[str, str]) -> list[str]:
    """What of a stage's inputs differs from what it was begun with, by name."""
    lines = []
    for name in sorted(entry["inputs"].keys() | inputs.keys()):
        before, now = entry["inputs"].get(name), inputs.get(name)
        if before == now:
            continue
        parts = config_diff(entry.get("inputs_of", {}).get(name), getattr(now, "parts", None), f"input {name}")
        if name.startswith("version of "):
            parts = [f"{name}: {before or 1} -> {now or 1}"]
        elif not parts or parts[0].startswith(f"input {name}: "):  # not on record of what it was
            parts = [f"input {name}: " + ("it was not there" if before is None else "it is not there any more"
                                          if now is None else f"its content changed ({before[:12]} -> {now[:12]})")]
        lines += parts
    return lines


class RunDir:
    """A run folder, locked against a second process while it is open.

    Args:
        path: the folder; created if missing.
        force: names of stages to do again, with all that depends on them.
    """

    def __init__(self, path: Path | str, *, force: Iterable[str] = ()) -> None:
        self.path = Path(path)
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / ".lock", "a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            raise StageError("Another process works in this run folder", where=f"{self.path} (process {holder})",
                             fix="wait for it to end, or choose another --run-dir") from error
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        self.manifest: dict[str, Any] = read_manifest(self.path) if (self.path / MANIFEST).exists() else {
            "format": 1, "created": _now(), "stages": {}, "commands": [], "parents": {}
        }
        self._config_before: dict[str, Any] | None = None
        for name in force:
            if name not in self.stages and not (self.path / name / "index.json").exists():
                raise StageError(f"There is no stage {name!r} to force in this run", where=str(self.path),
                                 fix=f"one of: {', '.join(self.stages) or '(none has begun)'}")
            self.clear(name)

    def close(self) -> None:
        """Give the lock back."""
        self._lock.close()

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if kind is not None and issubclass(kind, TalkerRLError) and self._made:
            self._leave_nothing()

    def _leave_nothing(self) -> None:
        """Take away a folder that was made for this run, where nothing was done in it: a mistake is no run."""
        own = {self.path / MANIFEST, self.path / ".lock"}
        inside = list(self.path.rglob("*"))
        if any(path.is_file() and path not in own for path in inside):
            return
        for file in own:
            file.unlink(missing_ok=True)
        for folder in (*sorted((path for path in inside if path.is_dir()), reverse=True), *self._made):
            with contextlib.suppress(OSError):  # somebody else's file came in between
                folder.rmdir()

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """Stage name -> state, key, config, inputs, times, counts; ``unique_ids``: no other stage's candidates have the
        ids of its own (not so where an earlier version began it)."""
        return self.manifest["stages"]

    def save(self) -> None:
        """Write the manifest atomically."""
        self.manifest["updated"] = _now()
        write_json(self.path / MANIFEST, self.manifest)

    def record_command(self, config: dict[str, Any], argv: list[str], device: str) -> None:
        """Note what was started: resolved config, command line, code state, versions, device, seed."""
        self._config_before = self.manifest.get("config")
        self._set_config(config)
        self.manifest["commands"].append({"argv": argv, "started": _now(), "python": sys.version.split()[0],
                                          "device": device, "code": code_state(), "versions": versions()})
        self.save()

    def keep_config(self) -> None:
        """Undo what :meth:`record_command` noted of a configuration: the manifest describes what was done, not what was
        refused."""
        if self._config_before is not None:
            self._set_config(self._config_before)
            self.save()

    def _set_config(self, config: dict[str, Any]) -> None:
        self.manifest.update(config=config, config_hash=stable_hash(config), seed=config.get("seed"))

    def begin(self, name: str, config: dict[str, Any], inputs: dict[str, str]) -> str:
        """Start or resume a stage.

        Args:
            name: folder of the stage inside the run.
            config: the part of the configuration that its result depends on.
            inputs: name of what it reads (a stage, a model, a file) -> content hash; a
                :class:`~talker_rl.base.ids.Fingerprint` also says what it is of.

        Returns:
            The stage's key.

        Raises:
            StageError: the stage was begun with another configuration or other inputs; says what differs.
        """
        key = stable_hash(name, config, inputs)
        entry = self.stages.get(name)
        if entry and entry["key"] != key:
            lines = config_diff(entry["config"], config)
            lines += _input_diff(entry, inputs)
            finished = (*self.path.glob(f"{name}/shard-*"), *self.path.glob(f"{name}/checkpoint-*"))
            if not lines:  # only options that came with a later version and are off (null): the result is the same
                key = entry["key"]
            elif entry["state"] != "done" and not finished:
                self.clear(name)  # nothing is lost
            else:
                self.keep_config()
                raise StageError(
                    f"Stage {name} was {'finished' if entry['state'] == 'done' else 'begun'} with another "
                    "configuration:\n    " + "\n    ".join(lines),
                    where=str(self.path / name),
                    fix=f"use another --run-dir, or do it again, with all that depends on it: --force-stage {name}",
                )
        if name not in self.stages:
            self.stages[name] = {"state": "running", "key": key, "config": config, "inputs": inputs,
                                 "inputs_of": {name: value.parts for name, value in inputs.items()
                                               if isinstance(value, Fingerprint)},
                                 "started": _now(), "seconds": 0.0, "unique_ids": True}
            self.save()
        (self.path / name).mkdir(parents=True, exist_ok=True)
        return key

    def finish(self, name: str, *, content: str, seconds: float, **facts: Any) -> None:
        """Mark a stage as done.

        Raises:
            StageError: it was done before and now has other content, so what follows from it is not valid any more.
        """
        entry = self.stages[name]
        if entry.get("content", content) != content:
            raise StageError(f"Stage {name} was done again and its content changed", where=str(self.path / name),
                             fix=f"do it again, with all that depends on it: --force-stage {name}")
        entry.update(state="done", content=content, finished=entry.get("finished") or _now(), **facts)
        entry["seconds"] = round(entry["seconds"] + seconds, 2)
        self.save()

    def content(self, name: str) -> str:
        """Content hash of a finished stage.

        Raises:
            StageError: it is not finished.
        """
        entry = self.stages.get(name)
        if not entry or entry["state"] != "done":
            raise StageError(f"Stage {name} of this run is not finished", where=str(self.path),
                             fix="run it first (talker-rl run does all stages in order)")
        return entry["content"]

    def is_done(self, name: str) -> bool:
        """Whether a stage finished."""
        return self.stages.get(name, {}).get("state") == "done"

    def adopt(self, source: Path, names: Iterable[str]) -> None:
        """Take over finished stages of another run: hard links to its files (copies on another file system), and its
        entries of the manifest. ``parents`` says whose they are. Files are never changed in place, so both runs stay
        what they are.

        Raises:
            StageError: the other run has not finished the stage, or this run has it with another content.
        """
        theirs = read_manifest(source)["stages"]
        parent = os.path.relpath(source, self.path)
        for name in names:
            entry, mine = theirs.get(name, {}), self.stages.get(name, {})
            if entry.get("state") != "done":
                raise StageError(f"Stage {name} cannot be taken over: it is not finished", where=str(source),
                                 fix="run it there first")
            if mine and mine.get("content") != entry["content"]:
                raise StageError(f"Stage {name} was taken over from {parent}, and has another content there now",
                                 where=str(self.path / name),
                                 fix=f"do it again, with all that depends on it: --force-stage {name}")
            for folder in (name, f"audio/{name}"):
                _link_tree(source / folder, self.path / folder)
            self.stages[name] = json.loads(json.dumps(entry))
            self.manifest["parents"].setdefault(parent, {})[name] = entry["content"]
        self.save()

    def clear(self, name: str) -> list[str]:
        """Delete a stage and all that depends on it; returns the names."""
        doomed = [name]
        for stage, entry in self.stages.items():  # in order of first start, so dependants come later
            if stage not in doomed and any(parent in doomed for parent in entry["inputs"]):
                doomed.append(stage)
        for stage in reversed(doomed):
            self.stages.pop(stage, None)  # one that began before its source was finished is not listed yet
        self.save()
        for stage in doomed:
            shutil.rmtree(self.path / stage, ignore_errors=True)
        return doomed


def _link_tree(source: Path, target: Path) -> None:
    """The files of a folder once more, elsewhere; those that are there already, and alike, are left."""
    for file in sorted(source.rglob("*")):
        copy = target / file.relative_to(source)
        if file.is_dir() or (copy.exists() and (copy.samefile(file) or file_hash(copy) == file_hash(file))):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.unlink(missing_ok=True)
        try:
            os.link(file, copy)
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(copy) from error
            atomic_write(copy, file.read_bytes())  # another file system, or one without hard links


@contextlib.contextmanager
def timed() -> Iterator[list[float]]:
    """``with timed() as t: ...`` leaves the seconds in ``t[0]``."""
    seconds = [0.0]
    start = time.monotonic()
    try:
        yield seconds
    finally:
        seconds[0] = time.monotonic() - start


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def code_state() -> dict[str, str | None]:
    """Commit of this package's repository, and a hash of uncommitted changes (None where clean or no repository)."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {"commit": None, "diff": None}

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, check=False)
        return done.stdout.decode(errors="replace")

    try:
        diff = git("diff", "HEAD")
        return {"commit": git("rev-parse", "HEAD").strip() or None, "diff": stable_hash(diff)[:16] if diff else None}
    except FileNotFoundError:  # no git on this machine
        return {"commit": None, "diff": None}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
