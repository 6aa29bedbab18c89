"""What every stage gets: configuration, run folder, workers, and somebody to talk to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from talker_rl.base.disk import read_json, write_json
from talker_rl.base.figures import count
from talker_rl.base.lazy import picked
from talker_rl.base.processes import WorkerPool, device_list, device_name
from talker_rl.base.progress import bar
from talker_rl.base.seals import seal
from talker_rl.config import RunConfig
from talker_rl.data.speaker_settings import SETS
from talker_rl.records.prompt import Prompt
from talker_rl.stages import inputs
from talker_rl.stages.legs import Leg, flow
from talker_rl.store.run_dir import RunDir
from talker_rl.store.shards import ShardFolder
from talker_rl.tracking import Tracking

T = TypeVar("T")


@dataclass
class Context:
    """One invocation on one run."""

    config: RunConfig
    run: RunDir
    pool: WorkerPool
    quiet: bool = False
    endpoints: tuple[str, ...] = ()
    """Reward services that score candidates; none: scores are made here."""
    tracking: Tracking = field(init=False)
    told: set[str] = field(init=False, default_factory=set)
    """Stages whose warning was said: once an invocation."""

    def __post_init__(self) -> None:
        self.tracking = Tracking(self.config, self.run.path)

    def say(self, message: str) -> None:
        """A line for the user, unless quiet."""
        if not self.quiet:
            print(message, file=sys.stderr, flush=True)

    def progress(self, items: Iterable[T], total: int, label: str, unit: str = "shard") -> Iterable[T]:
        """Progress of an iterable: a bar, or lines where there is no terminal."""
        return bar(items, total=total, desc=label, unit=unit, disable=self.quiet)

    def fill(
        self, stage: str, key: str, count: int, tasks: Callable[[int], Any], function: Callable[[Any], Any],
        store: Callable[[ShardFolder, int, Any], None],
    ) -> ShardFolder:
        """Make the shards that are missing: ``store(folder, i, function(tasks(i)))``."""
        leg = Leg(stage, self.shards(stage, key), count, tasks, function, store)
        self.flow(leg)
        return leg.folder

    def flow(self, *legs: Leg) -> float:
        """Make the missing shards of stages that overlap; returns the seconds it took."""
        for leg in legs:
            if len(leg.missing) < leg.count:
                self.say(f"{leg.stage}: {leg.count - len(leg.missing)} of {count(leg.count, 'shard')} made already")
        return flow(self.pool, legs, quiet=self.quiet)

    def shards(self, stage: str, key: str | None = None) -> ShardFolder:
        """The shards of a stage: to be made under a key, or as they are."""
        return ShardFolder(self.run.path / stage, key)

    def keep_audio(self, stage: str, files: Mapping[str, str]) -> None:
        """List the files of speech that a stage has kept: name -> SHA-256."""
        if files:
            seal(self.run.path / "audio" / stage, files)

    def prompts(self, which: str) -> Sequence[Prompt]:
        """Prompts of a set that the model can speak (conditioning may have skipped some), each read when it is looked
        at."""
        self.run.content("prompts")
        found, skipped = self.shards("prompts").records(Prompt, SETS.index(which)), self.skipped_prompts()
        if not skipped:
            return found
        return picked(found, [i for i, name in enumerate(found.column("prompt_id")) if name not in skipped])

    def skipped_prompts(self) -> dict[str, Any]:
        """Prompt id -> why the conditioning stage left it out: what, where, fix."""
        file = self.run.path / "conditioning" / "skipped.json"
        return read_json(file) if file.exists() else {}

    def languages(self, *sets: str) -> list[str]:
        """Languages of the prompts of these sets; of all where none is named."""
        return sorted({prompt.lang for which in sets or SETS for prompt in self.prompts(which)})

    def contents(self, *stages: str) -> dict[str, str]:
        """Finished stages as inputs of another: name -> content hash."""
        return {name: self.run.content(name) for name in stages}

    def scorer_input(self, which: str) -> str:
        """Fingerprint of the reward with its ``recognizer`` or ``evaluator``, as an input of a stage."""
        rewards = which == "recognizer"
        routes = getattr(self.config.reward, which).by_lang
        heard = self.languages(*(SETS if rewards else ("eval",))) if routes else []
        return inputs.scorer_input(self.config, which, heard, remote=rewards and bool(self.endpoints))

    def write_json(self, path: str, data: Any) -> Path:
        """Write a JSON file of the run atomically."""
        file = self.run.path / path
        write_json(file, data)
        return file


def open_pool(config: RunConfig) -> WorkerPool:
    """A run's workers, where its executor says."""
    where = config.executor
    if where.name == "ray":
        from talker_rl.base.ray_pool import RayPool

        return RayPool(config.workers, where.address, cpus=where.cpus, gpus=where.gpus)
    return WorkerPool(config.workers, device_list(config.devices, config.model.device))


@contextmanager
def open_run(
    config: RunConfig, folder: Path, argv: Sequence[str], *, force: Iterable[str] = (), quiet: bool = False,
    endpoints: tuple[str, ...] = (),
) -> Iterator[Context]:
    """A run's folder, locked, and its workers, until the block ends; the command is on record.

    Args:
        argv: the command as it was given.
        force: stages to be made again (:class:`~talker_rl.store.run_dir.RunDir`).

    Raises:
        StageError: another process works in the folder.
    """
    device = device_name(config.model.device)
    with RunDir(folder, force=force) as run, open_pool(config) as pool:
        run.record_command(config.resolved(), list(argv), device)
        yield Context(config, run, pool, quiet=quiet, endpoints=endpoints)
