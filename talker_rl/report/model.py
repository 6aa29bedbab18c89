"""What a report shows, as plain data: collected by the stage, drawn by the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from talker_rl.report.credit import Credit
from talker_rl.report.online import Online
from talker_rl.report.strip import Strip

Alignment = list[tuple[str, str, str]]
"""(op, reference token, recognized token), op in ``= S D I``."""


@dataclass
class Clip:
    """One utterance to listen to."""

    label: str
    audio: np.ndarray
    """(samples,) float32."""
    sample_rate: int
    """Hz."""
    alignment: Alignment
    caption: str = ""
    """Short figures beside the player, e.g. ``WER 0.20 · 2.4 s``."""
    strip: Strip | None = None
    """The picture below the player."""
    credit: Credit | None = None
    """Below the picture, of a sample of an online training: on which of its steps training pushes."""
    credits: list[float | None] = field(default_factory=list)
    """Mean advantage of each token of the alignment; empty where there is no credit to show."""

    @property
    def drawn(self) -> dict[str, Any] | None:
        """What the page's script draws below the player."""
        if self.strip is None:
            return None
        return self.strip.data if self.credit is None else {**self.strip.data, "credit": self.credit.data}


@dataclass
class Comparison:
    """Clips of one text side by side: before and after, chosen and rejected, or all candidates of a group."""

    text: str
    speaker: str
    clips: list[Clip]
    about: str = ""
    """A line below the text."""


@dataclass
class ReportData:
    """Everything on the page; empty parts are explained there rather than left out in silence."""

    title: str
    summary: dict[str, Any] | None
    """:func:`talker_rl.evaluation.summary.compare` of base and trained."""
    base_rows: list[dict[str, Any]] = field(default_factory=list)
    trained_rows: list[dict[str, Any]] = field(default_factory=list)
    train_log: list[dict[str, Any]] = field(default_factory=list)
    """Rows of train/<variant>/log.jsonl: ``step`` and metrics."""
    dev_log: list[dict[str, Any]] = field(default_factory=list)
    """One row per checkpoint tried on dev: ``step, wer, reward, duration_ratio``."""
    pairs: list[dict[str, Any]] = field(default_factory=list)
    """Pair records: ``margin, chosen_seconds, rejected_seconds, ...``."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Why prompts gave no pair, counted."""
    before_after: list[Comparison] = field(default_factory=list)
    pair_clips: list[Comparison] = field(default_factory=list)
    online: Online | None = None
    """Of an online training alone."""
    groups: dict[str, list[Comparison]] = field(default_factory=dict)
    """Which sampling of an online training -> groups of it, the candidate with the largest reward first."""
    facts: dict[str, str] = field(default_factory=dict)
    """Model, commit, recognizers, counts: the lines of "How this was made"."""
    config_yaml: str = ""
