"""The report of one run: a table before and after, a few charts, and speech to listen to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from talker_rl.base.figures import bare, changed, count, span, written
from talker_rl.report import charts
from talker_rl.report.audio import data_uri
from talker_rl.report.blocks import Figure, one_view
from talker_rl.report.html import render_page, write_page
from talker_rl.report.model import ReportData
from talker_rl.report.online import CREDIT, told_alarms, told_difference
from talker_rl.report.online_charts import section

TABLE = (
    # label, key, format, is lower better (None: neither)
    ("WER, corpus", "wer", "{:.2%}", True),
    ("WER, mean of utterances", "wer_mean", "{:.2%}", True),
    ("WER, median", "wer_median", "{:.2%}", True),
    ("WER, 95th percentile", "wer_p95", "{:.1%}", True),
    ("utterances above 50 % WER", "share_above_50", "{:.2%}", True),
    ("WER by the training recognizer", "reward_wer", "{:.2%}", True),
    ("substitutions / words", "substitution_rate", "{:.2%}", True),
    ("deletions / words", "deletion_rate", "{:.2%}", True),
    ("insertions / words", "insertion_rate", "{:.2%}", True),
    ("pause error", "pause_error", "{:.3f}", True),
    ("pause error, scorable boundaries", "pause_error_scorable", "{:.3f}", True),
    ("duration / clean rendering", "duration_ratio", "{:.3f}", None),
    ("held-out codes, nats per code", "nll", "{:.4f}", True),
    ("cap hits", "cap_hit_rate", "{:.2%}", True),
    ("speaker similarity (not rewarded)", "speaker_similarity", "{:.3f}", False),
    ("F0 mean, Hz (not rewarded)", "f0_mean", "{:.0f}", None),
    ("F0 spread, semitones (not rewarded)", "f0_spread", "{:.2f}", None),
    ("utterances scored", "n", "{:d}", None),
    ("utterances failed", "failed", "{:d}", True),
)


def table_rows(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Rows of the before/after table: label, base, trained, change, the change's 95 % interval, verdict class."""
    rows = []
    for label, key, pattern, lower in TABLE:
        if key not in summary["base"] and key not in summary["trained"]:
            continue  # not every run measures it
        base, trained = summary["base"].get(key), summary["trained"].get(key)
        interval = summary.get(f"{key}_diff_ci95")
        change, verdict = "", ""
        if isinstance(base, float) and isinstance(trained, float):
            diff = trained - base
            change = changed(diff, interval, pattern)
            if interval and lower is not None and (interval[0] > 0 or interval[1] < 0):
                verdict = "better" if (diff < 0) == lower else "worse"
        rows.append({"label": label, "base": written(base, pattern), "trained": written(trained, pattern),
                     "change": change, "verdict": verdict})
    return rows


def headline(summary: dict[str, Any] | None) -> str:
    """One honest sentence: the change of corpus WER with its interval, or why there is none."""
    if summary is None:
        return "This run has no evaluation yet: the figures below come from training alone."
    base, trained = summary["base"]["wer"], summary["trained"]["wer"]
    told, sure = "no interval from so few texts", " No claim can be made."
    if interval := summary["wer_diff_ci95"]:
        low, high = (bare(end, "{:+.1%}") for end in interval)
        told = f"95 % interval {low} to {high}"
        sure = "" if interval[0] > 0 or interval[1] < 0 else " The interval includes 0: no claim can be made."
    return (
        f"Corpus WER {base:.1%} before, {trained:.1%} after, on {count(summary['n'], 'utterance')} of "
        f"{summary['prompts']} "
        f"texts that were not trained on (difference {written(trained - base, '{:+.1%}')}, {told}).{sure}"
    )


ROUNDS = (
    # label, key, format
    ("round", "round", "{}"),
    ("step kept", "step", "{}"),
    ("pairs", "pairs", "{}"),
    ("WER", "wer", "{:.1%}"),
    ("against round 0", "wer_diff", "{:+.1%}"),
    ("pause error", "pause_error", "{:.3f}"),
    ("duration, s", "duration_mean", "{:.2f}"),
    ("/ round 0", "duration_ratio_to_start", "{:.3f}"),
    ("reward", "reward", "{:.3f}"),
)
ROUNDS_NOTE = ("On the dev prompts, by the training recognizer; round 0 is the policy as the run began. Checkpoints "
               "were chosen on these prompts, so the figures flatter a little. A step of 0: the round was undone.")


def round_rows(summary: dict[str, Any] | None) -> list[list[str]]:
    """The rounds of an iterated training as text, the labels first; [] for a run of one round."""
    rounds = (summary or {}).get("rounds") or []
    rows = []
    for r in rounds:
        cells = [written(r.get(key), pattern) for _, key, pattern in ROUNDS]
        if r.get("wer_diff_ci95"):
            cells[4] += " " + span(r["wer_diff_ci95"], ROUNDS[4][2])
        rows.append(cells)
    return [[label for label, *_ in ROUNDS], *rows] if rows else []


def render(data: ReportData, *, audio_format: str = "opus") -> str:
    """The page as one HTML string that opens from disk with no network."""
    rounds = (data.summary or {}).get("rounds", [])
    figures = {
        "WER by utterance": charts.wer_by_utterance(data.base_rows, data.trained_rows),
        "Duration against the clean rendering": charts.duration_ratio(data.base_rows, data.trained_rows),
        **({"WER and duration by round": charts.by_round(rounds)} if rounds else {}),
        "WER on dev by checkpoint": charts.training_curve(data.dev_log, {"wer": "dev WER"}, "word error rate"),
        **({} if data.online else _of_pairs(data)),
    }
    drawn = [Figure(name, one_view(figure)) for name, figure in figures.items()]
    return render_page(
        "report.html.j2", data=data, headline=headline(data.summary),
        rows=table_rows(data.summary) if data.summary else [], figures=[c for c in drawn if c.views],
        missing=[c.title for c in drawn if not c.views], rounds=round_rows(data.summary), rounds_note=ROUNDS_NOTE,
        online=section(data.online) if data.online else None,
        credit=CREDIT[data.online.credit] if data.online else "",
        told=[*told_alarms(data.online), told_difference(data.online)] if data.online else [],
        data_uri=lambda clip: data_uri(clip.audio, clip.sample_rate, audio_format),
    )


def _of_pairs(data: ReportData) -> dict[str, go.Figure | None]:
    """Charts of a training on records that were there before it."""
    return {
        "Implicit rewards": charts.training_curve(
            data.train_log, {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}, "implicit reward"
        ),
        "Preference accuracy": charts.training_curve(
            data.train_log, {"rewards/accuracies": "train", "eval_rewards/accuracies": "held-out pairs"}, "accuracy"
        ),
        "Pairs: margin against length": charts.margin_against_length(data.pairs),
    }


def write_report(data: ReportData, path: Path, *, audio_format: str = "opus") -> Path:
    """Renders the page and puts it at ``path`` in one atomic step."""
    return write_page(render(data, audio_format=audio_format), path)


def text_table(summary: dict[str, Any]) -> str:
    """The before/after table for a terminal."""
    rows = table_rows(summary)
    widths = [max(len(r[k]) for r in rows) for k in ("label", "base", "trained")]
    head = f"{'':{widths[0]}}  {'base':>{widths[1]}}  {'trained':>{widths[2]}}  change [95 % interval over texts]"
    lines = [
        f"{r['label']:{widths[0]}}  {r['base']:>{widths[1]}}  {r['trained']:>{widths[2]}}  {r['change']}".rstrip()
        for r in rows
    ]
    return "\n".join([head, "-" * len(head), *lines, *_text_rounds(round_rows(summary))])


def _text_rounds(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return ["", ROUNDS_NOTE, *lines] if rows else []
