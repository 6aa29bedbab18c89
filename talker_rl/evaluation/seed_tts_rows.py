"""seed-tts-eval's figures of evaluated rows: one variant's, or trained beside base with an interval over texts.

A row needs ``prompt_id, seed, status, lang, text`` and ``heard``, what the evaluator wrote. The mean is over all
utterances; seed-tts-eval itself has one per text (``eval.seeds: 1``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from talker_rl.base.errors import DataError
from talker_rl.base.figures import changed, count
from talker_rl.evaluation.seed_tts_eval import LANGUAGES, NAME, Scored, figures, score
from talker_rl.evaluation.summary import diff_ci, paired
from talker_rl.records.evaluation import EvalRow

OWN_RECOGNIZERS = {"zh": "paraformer-zh", "en": "whisper-large-v3"}
"""seed-tts-eval's: with another one, figures keep its scoring but compare with no published ones."""


@dataclass(frozen=True)
class ScoredRows:
    """Rows of the protocol's languages beside their scores, and how many rows it has no figure for, by reason."""

    by_lang: dict[str, list[tuple[EvalRow, Scored]]]
    left_out: Counter[str] = field(default_factory=Counter)


def score_rows(rows: Sequence[EvalRow]) -> ScoredRows:
    """Score rows by the protocol.

    Raises:
        ConfigError: zhconv is not installed, and there are Chinese rows.
    """
    by_lang: dict[str, list[tuple[EvalRow, Scored]]] = {}
    left_out: Counter[str] = Counter()
    for row in rows:
        if row["status"] != "ok":
            left_out["failed"] += 1
        elif row["lang"] not in LANGUAGES:
            left_out[f"language {row['lang']}"] += 1
        else:
            try:
                found = score(f"{row['prompt_id']}/{row['seed']}", row["text"], row["heard"], row["lang"])
            except DataError:
                left_out["no word in the reference"] += 1
                continue
            by_lang.setdefault(row["lang"], []).append((row, found))
    return ScoredRows(dict(sorted(by_lang.items())), left_out)


def protocol_figures(
    scored: ScoredRows, base: ScoredRows | None, evaluators: dict[str, str], *, resamples: int, seed: int = 0
) -> dict[str, Any]:
    """Figures by language, as plain data.

    Returns:
        Each language: the figures of :func:`figures`, ``evaluator`` and ``own_recognizer`` (whether that is
        seed-tts-eval's); beside a base its figures as ``base``, and ``wer_diff`` with ``wer_diff_ci95``, trained minus
        base over the ``paired`` utterances that both have. ``left_out`` and ``base_left_out`` count the rows of each
        side that have no figure.
    """
    found: dict[str, Any] = {"left_out": dict(scored.left_out)}
    if base is not None:
        found["base_left_out"] = dict(base.left_out)
    for lang, rows in scored.by_lang.items():
        path = evaluators[lang]
        entry = {**figures([u for _, u in rows]), "evaluator": path,
                 "own_recognizer": path.rstrip("/").rpartition("/")[2] == OWN_RECOGNIZERS[lang]}
        if base is not None and lang in base.by_lang:
            entry["base"] = figures([u for _, u in base.by_lang[lang]])
            left, right = paired(_plain(base.by_lang[lang]), _plain(rows))
            entry["paired"] = len(left)
            entry["wer_diff"] = sum(r["wer"] for r in right) / len(right) - sum(r["wer"] for r in left) / len(left)
            entry["wer_diff_ci95"] = diff_ci(left, right, lambda r: r["wer"], lambda r: 1.0, resamples, seed)
        found[lang] = entry
    return found


def _plain(rows: Sequence[tuple[EvalRow, Scored]]) -> list[EvalRow]:
    return [{key: r[key] for key in ("prompt_id", "seed", "text", "lang")} | {"status": "ok", "wer": u.wer}
            for r, u in rows]


def lines(found: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    told = []
    for lang in (lang for lang in LANGUAGES if lang in found):
        entry = found[lang]
        is_own = entry.get("own_recognizer", entry.get("own_recogniser"))  # (older runs spell it so)
        own = "" if is_own else " (not seed-tts-eval's: compare with no published figure)"
        text = f"{NAME} {lang}: WER {entry['wer_percent']}% of {count(entry['utterances'], 'utterance')}"
        if "base" in entry:
            text += f", base {entry['base']['wer_percent']}% of {entry['base']['utterances']}"
            if (interval := entry["wer_diff_ci95"]) is not None:
                difference = changed(entry["wer_diff"], interval, "{:.3%}")
                text += f", difference {difference} on the {entry['paired']} of both"
        told.append(f"{text}, heard by {entry['evaluator']}{own}")
    for side, key in (("", "left_out"), (" of base", "base_left_out")):
        if found.get(key):
            reasons = ", ".join(f"{n} ({why})" for why, n in sorted(found[key].items()))
            told.append(f"{NAME} leaves out{side} {reasons}")
    return told
