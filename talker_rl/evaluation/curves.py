"""What each checkpoint of each training said on the same texts, and how far it had moved: one flat row an utterance.

All that comparisons at equal drift need, so that trainings of several folders and machines can be put into one table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from talker_rl.evaluation.summary import word_errors


@dataclass
class CurveRow:
    """One utterance of one checkpoint. The base's stand under variant ``base``, seed -1, step 0."""

    arm: str
    variant: str
    train_seed: int
    step: int
    prompt_id: str
    seed: int
    """Of sampling: an utterance is compared with the one of the same prompt and seed."""
    text: str
    lang: str
    errors: int
    ref_words: int
    duration: float
    """Seconds."""
    reward: float | None
    pause_error: float | None
    cap_hit: bool
    tail_silence: float | None
    """Seconds."""
    tokens: int
    """Of what it said, the stop included."""
    kl: float | None
    """KL(policy || reference) of what it said, exact over the vocabulary, nats; 0 of the base."""
    base_tokens: int
    """Of what the base said for the same prompt and seed."""
    kl_on_base: float | None
    """Likewise of the policy on what the base said."""
    p_stop_at_base_stop: float | None
    """Of the policy, where the base stopped; None where it did not."""


def curve_rows(
    arm: str, variant: str, train_seed: int, step: int, rows: Iterable[dict[str, Any]],
    drift: Sequence[dict[str, Any]], base_ids: dict[tuple[str, int], str],
) -> Iterator[CurveRow]:
    """The rows of one checkpoint, of utterances that were scored.

    Args:
        rows: evaluation rows.
        drift: rows of :func:`talker_rl.stages.drift.make` of this step; none of the base.
        base_ids: candidate id of what the base said, by prompt and seed.
    """
    own = {row["candidate_id"]: row for row in drift if row["of"] == "own"}
    base = {row["candidate_id"]: row for row in drift if row["of"] == "base"}
    for row in rows:
        if row["status"] != "ok":
            continue
        mine = own.get(row["candidate_id"], {})
        beside = base.get(base_ids.get((row["prompt_id"], row["seed"]), ""), {})
        yield CurveRow(
            arm=arm, variant=variant, train_seed=train_seed, step=step, prompt_id=row["prompt_id"], seed=row["seed"],
            text=row["text"], lang=row["lang"], errors=int(word_errors(row)), ref_words=int(row["ref_words"]),
            duration=row["duration"], reward=row.get("reward"), pause_error=row.get("pause_error"),
            cap_hit=bool(row["cap_hit"]), tail_silence=row.get("tail_silence"), tokens=mine.get("tokens", 0),
            kl=0.0 if variant == "base" else mine.get("kl"), base_tokens=beside.get("tokens", 0),
            kl_on_base=0.0 if variant == "base" else beside.get("kl"),
            p_stop_at_base_stop=beside["p_stop_last"][-1] if beside.get("ended") and len(beside["p_stop_last"]) else
            None)
