"""Figures, tables and speech to Weights & Biases, Trackio or TensorBoard, where the configuration names one.

The run folder has it all in any case, so what a tracker raises never reaches the run: the first exception becomes one
warning, and the tracker is off until the command ends. Imports no tracker, and no torch, before something is sent.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from talker_rl.base.errors import ConfigError
from talker_rl.base.ids import stable_hash
from talker_rl.base.names import without_places
from talker_rl.config import RunConfig
from talker_rl.report.model import ReportData
from talker_rl.store.run_dir import read_manifest

log = logging.getLogger(__name__)

CLIPS = 4
"""Texts of each kind (before and after, chosen and rejected) whose speech is sent."""

Table = list[dict[str, str]]
"""Rows, all with the same columns."""


@dataclass(frozen=True)
class Target:
    """What a tracker calls one stage of a run."""

    project: str
    run: str
    """Name of the run: its stages belong together."""
    stage: str
    id: str
    """The same when an interrupted stage goes on, another when it is done again."""
    config: dict[str, Any]
    run_folder: Path
    stage_folder: Path
    first_step: int
    """Step of the first figure: a stage that goes on writes later ones again."""


class Tracker(Protocol):
    """What every tracker can do; any exception means that it is of no use any more."""

    def __init__(self, target: Target) -> None: ...

    def log(self, metrics: dict[str, float], step: int) -> None: ...

    def table(self, name: str, rows: Table) -> None: ...

    def audio(self, name: str, samples: np.ndarray, sample_rate: int, caption: str) -> None: ...

    def finish(self) -> None: ...


class _Logger:
    """What a tracker does whose package logs numbers, tables and speech by one call, as wandb does.

    Args:
        package: has ``Table`` and ``Audio``.
        run: has ``log``.
    """

    def __init__(self, package: Any, run: Any) -> None:
        self._package, self._run = package, run

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._run.log(metrics, step=step)

    def table(self, name: str, rows: Table) -> None:
        table = self._package.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        self._run.log({name: table}, step=0)

    def audio(self, name: str, samples: np.ndarray, sample_rate: int, caption: str) -> None:
        self._run.log({name: self._package.Audio(samples, sample_rate=sample_rate, caption=caption)}, step=0)


class WandbTracker(_Logger):
    """Weights & Biases, into ``<run>/wandb``; offline unless WANDB_MODE says otherwise (then: ``wandb sync``)."""

    def __init__(self, target: Target) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")  # wandb itself refuses what it does not know
        super().__init__(wandb, wandb.init(
            project=target.project, group=target.run, name=f"{target.run}/{target.stage}", id=target.id,
            config=target.config, dir=target.run_folder, mode=mode, resume="allow" if mode == "online" else None,
            # The command line, the host and where things lie are this machine's own: a run is often made public.
            reinit="create_new", settings=wandb.Settings(console="off", x_disable_meta=True, disable_git=True, host=""),
        ))  # fmt: skip

    def finish(self) -> None:
        self._run.finish()


class TrackioTracker(_Logger):
    """Trackio's local database (``trackio show``); TRACKIO_DIR moves it."""

    def __init__(self, target: Target) -> None:
        import trackio

        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            super().__init__(trackio, trackio.init(
                project=target.project, group=target.run, name=f"{target.run}/{target.stage} {target.id[:6]}",
                config=target.config, resume="allow", embed=False,
            ))  # fmt: skip

    def audio(self, name: str, samples: np.ndarray, sample_rate: int, caption: str) -> None:
        whole = (samples * 32767).astype(np.int16)  # floats it would bring to the same peak
        super().audio(name, whole, sample_rate, caption)

    def finish(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._package.finish()


class TensorBoardTracker:
    """TensorBoard event files in the stage's folder (``tensorboard --logdir runs``)."""

    def __init__(self, target: Target) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = target.stage_folder / "tensorboard"
        self._writer = SummaryWriter(str(folder), purge_step=target.first_step, flush_secs=10)

    def log(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def table(self, name: str, rows: Table) -> None:
        lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
        self._writer.add_text(name, "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines), 0)

    def audio(self, name: str, samples: np.ndarray, sample_rate: int, caption: str) -> None:
        self._writer.add_audio(name, samples, 0, sample_rate)  # has no place for a caption: see the table `speech`

    def finish(self) -> None:
        self._writer.close()


def _cell(text: str) -> str:
    """A text in one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


TRACKERS: dict[str, type[Tracker]] = {
    "wandb": WandbTracker, "trackio": TrackioTracker, "tensorboard": TensorBoardTracker,
}
"""``tracking.to`` -> tracker; the word is the name of its package and of the extra that installs it, too."""


class StageTracker:
    """The tracker of one stage, opened when the first figure comes; never raises."""

    def __init__(self, tracking: Tracking, target: Callable[[int], Target]) -> None:
        self._tracking, self._target = tracking, target
        self._tracker: Tracker | None = None

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Numbers of a step; what is no number is left out."""
        numbers = {name: float(value) for name, value in metrics.items()
                   if isinstance(value, int | float) and not isinstance(value, bool)}
        self._do(lambda tracker: tracker.log(numbers, step), step)

    def table(self, name: str, rows: Table) -> None:
        """A table of texts."""
        if rows:
            self._do(lambda tracker: tracker.table(name, rows))

    def audio(self, name: str, samples: np.ndarray, sample_rate: int, caption: str) -> None:
        """Speech: (samples,) float32."""
        self._do(lambda tracker: tracker.audio(name, np.clip(samples, -1, 1), sample_rate, caption))

    def close(self) -> None:
        """Nothing more comes."""
        if self._tracker is not None:  # also one that is off: what it has may still be saved
            try:
                self._tracker.finish()
            except Exception as error:
                self._tracking.switch_off(error)

    def _do(self, action: Callable[[Tracker], None], step: int = 0) -> None:
        if self._tracking.to == "none":
            return
        try:
            if self._tracker is None:
                self._tracker = TRACKERS[self._tracking.to](self._target(step))
            action(self._tracker)
        except Exception as error:  # whatever it is: the run is worth more than its curves
            self._tracking.switch_off(error)


class Tracking:
    """The tracker that a run's configuration names, in one process.

    Args:
        config: the run's.
        folder: of the run; its manifest tells when it and its stages began.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self.to = config.tracking.to
        """``none`` as well once it has failed."""

    def switch_off(self, error: Exception) -> None:
        """Say once that the tracker failed, and use it no more."""
        if self.to != "none":
            log.warning("%s failed and is off, the run goes on: %s: %s", self.to, type(error).__name__, error)
        self.to = "none"

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[StageTracker]:
        """The tracker of a stage that has begun."""
        config, path = self._config, self._folder.resolve()

        def target(first_step: int) -> Target:
            manifest = read_manifest(path)
            identity = stable_hash(str(path), manifest["created"], name, manifest["stages"][name]["started"])[:12]
            return Target(config.tracking.project, config.name, name, identity, without_places(config.resolved()),
                          path, path / name, first_step)

        tracker = StageTracker(self, target)
        try:
            yield tracker
        finally:
            tracker.close()


def check_tracker(config: RunConfig) -> None:
    """Told before hours of work, not after.

    Raises:
        ConfigError: the package of ``tracking.to`` is not installed.
    """
    to = config.tracking.to
    spec = None if to == "none" else importlib.util.find_spec(to)
    if to != "none" and (spec is None or spec.origin is None):  # a mere folder ./wandb, as wandb leaves it, has none
        raise ConfigError(f"tracking.to is {to} and {to} is not installed", where="tracking.to",
                          fix=f"pip install 'talker-rl[{to}]', or tracking.to=none")


def send_result(tracker: StageTracker, data: ReportData) -> None:
    """What the report shows: the figures before and after, as numbers and as a table, and a few clips."""
    from talker_rl.report.page import TABLE, table_rows

    summary = data.summary or {}
    tracker.log({f"{side}/{key}": summary[side].get(key) for side in ("base", "trained") if side in summary
                 for _, key, *_ in TABLE}, 0)
    tracker.table("summary", [{k: row[k] for k in ("label", "base", "trained", "change")}
                              for row in (table_rows(summary) if summary else [])])
    clips = [
        (f"{kind}/{number} {clip.label}", item, clip)
        for kind, items in (("before_after", data.before_after), ("pairs", data.pair_clips))
        for number, item in enumerate(items[:CLIPS], 1) for clip in item.clips
    ]
    tracker.table("speech", [{"clip": name, "text": item.text, "speaker": item.speaker, "figures": clip.caption}
                             for name, item, clip in clips])
    for name, item, clip in clips:
        tracker.audio(name, clip.audio, clip.sample_rate, f"{item.text} ({item.speaker}) {clip.caption}")
