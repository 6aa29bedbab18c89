"""Word and character error rates by jiwer, on token lists (no transform of its own), with the alignment."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jiwer

from talker_rl.base.text.tokens import characters_of
from talker_rl.base.text.unwritten import Unwritten


class _Identity(jiwer.AbstractTransform):
    """jiwer wants a transform that ends in lists of tokens; ours come tokenized."""

    def __call__(self, sentences: Any) -> Any:
        return sentences


_IDENTITY = _Identity()


@dataclass(frozen=True)
class ErrorCounts:
    """Errors of one utterance, or of several pooled.

    ``rate`` is (S + D + I) / N. An empty reference has no rate (None) unless the transcript is empty too (0.0): jiwer
    would return the count of insertions there, which is not a rate. Its insertions still count when pooled.
    """

    substitutions: int
    deletions: int
    insertions: int
    length: int
    """N: tokens of the reference."""

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float | None:
        if self.length:
            return self.errors / self.length
        return None if self.insertions else 0.0


Column = tuple[str, str, str]
"""(op, reference token, transcript token), op in ``= S D I``, the absent side ""."""


@dataclass(frozen=True)
class Alignment:
    """A minimal alignment of two token lists.

    ``hits[i]`` is the transcript position of reference token i where it was recognized, else None; ``columns`` is the
    whole alignment from left to right.
    """

    counts: ErrorCounts
    hits: list[int | None]
    columns: list[Column]

    @property
    def ops(self) -> list[Column]:
        """The errors alone."""
        return [column for column in self.columns if column[0] != "="]

    def ops_json(self) -> str:
        return json.dumps([list(op) for op in self.ops], ensure_ascii=False)


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> Alignment:
    """Levenshtein alignment of two token lists; empty lists are allowed on both sides."""
    ref, hyp = list(reference), list(hypothesis)
    output = jiwer.process_words([ref], [hyp], _IDENTITY, _IDENTITY)  # type: ignore[list-item]
    hits: list[int | None] = [None] * len(ref)
    columns: list[Column] = []
    for chunk in output.alignments[0]:
        refs, hyps = range(chunk.ref_start_idx, chunk.ref_end_idx), range(chunk.hyp_start_idx, chunk.hyp_end_idx)
        if chunk.type == "equal":
            for i, j in zip(refs, hyps, strict=True):
                hits[i] = j
                columns.append(("=", ref[i], hyp[j]))
        elif chunk.type == "substitute" or chunk.type == "replace":
            columns += [("S", ref[i], hyp[j]) for i, j in zip(refs, hyps, strict=True)]
        elif chunk.type == "delete":
            columns += [("D", ref[i], "") for i in refs]
        elif chunk.type == "insert":
            columns += [("I", "", hyp[j]) for j in hyps]
        else:
            raise RuntimeError(f"jiwer returned the unknown alignment type {chunk.type!r}")
    counts = ErrorCounts(output.substitutions, output.deletions, output.insertions, len(ref))
    return Alignment(counts, hits, columns)


def character_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> ErrorCounts:
    """Error counts over characters of the tokens, spaces not counted."""
    return align(characters_of(list(reference)), characters_of(list(hypothesis))).counts


def written_errors(alignment: Alignment, unwritten: Unwritten) -> dict[str, float | None] | None:
    """Word and character errors outside the places that recognizers write otherwise, as score components.

    A run of errors that touches such a place is left out whole, on both sides: "120" against "one hundred and twenty"
    is one substitution and three insertions, all of them the figure's.

    Returns:
        ``wer, cer, substitutions, deletions, insertions, ref_words``; None where nothing else is left of the text.
    """
    reference: list[str] = []
    hypothesis: list[str] = []
    run: list[Column] = []
    at, touched = 0, False

    def close() -> None:
        nonlocal run, touched
        if not touched:
            reference.extend(left for _, left, _ in run if left)
            hypothesis.extend(right for _, _, right in run if right)
        run, touched = [], False

    for op, left, right in alignment.columns:
        if op == "=":
            close()
            reference.append(left)
            hypothesis.append(right)
        else:
            run.append((op, left, right))
            excused = unwritten.tokens[at] not in (None, "latin") if left else False
            touched |= excused or (unwritten.before[at] if not left else False)
        at += bool(left)
    close()
    if not reference:
        return None
    counts = align(reference, hypothesis).counts
    return {"wer": counts.rate, "cer": character_errors(reference, hypothesis).rate,
            "substitutions": float(counts.substitutions), "deletions": float(counts.deletions),
            "insertions": float(counts.insertions), "ref_words": float(counts.length)}


def pool(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """Corpus level: all errors over all reference tokens. The mean of rates is another figure."""
    items = list(counts)
    return ErrorCounts(
        substitutions=sum(c.substitutions for c in items),
        deletions=sum(c.deletions for c in items),
        insertions=sum(c.insertions for c in items),
        length=sum(c.length for c in items),
    )
