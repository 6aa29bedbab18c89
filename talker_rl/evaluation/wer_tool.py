"""``talker-rl wer REF HYP``: error rates of a file of transcripts against a file of references, with the alignments.

A file holds one ``key<TAB>text`` line per utterance. Loads jiwer and nothing heavier. How texts become tokens here is
the tool's own, simpler rule (:func:`clean`, :func:`tokens_of`), not :mod:`talker_rl.base.text.tokens`: punctuation
counts, so that the figures are comparable with those of other tools on the same files.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import regex

from talker_rl.base.errors import DataError
from talker_rl.base.figures import count
from talker_rl.base.text.alignment import Column, ErrorCounts, align, pool
from talker_rl.base.text.characters import visible
from talker_rl.base.text.files import raw_lines

Metric = Literal["wer", "cer"]

MARKERS = ("<s>", "</s>", "<unk>")
SUBWORD_MARKS = ("@@ ", "@ ", "@@", "@")
"""Longest first and in this order: a mark before a space joins two pieces (``hel@@ lo`` is ``hello``)."""
GAP = "*"
_TAG = re.compile(r"<\|[^|<>\n]{0,40}\|>")
_SYMBOL = regex.compile(r"[\p{So}\p{Sk}▁--[`^´]]", regex.VERSION1)
_APOSTROPHE = "’‘ʼ＇"
_APOSTROPHES = str.maketrans(dict.fromkeys(_APOSTROPHE, "'"))
_NOISE = re.compile(r"\[[A-Za-z_ ]{2,20}\]|<(?!s>|/s>|unk>)/?[A-Za-z_]{2,20}>", re.IGNORECASE)
_CJK = "\u4e00-\u9fff"
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
_LISTED = 10
"""Keys that a note names before it only counts them."""


@dataclass(frozen=True)
class KeyedTexts:
    """A file's texts by key, in its order, and the keys that came again (their first text is kept)."""

    texts: dict[str, str]
    repeated: list[str]
    tagged: dict[str, str] = field(default_factory=dict)
    """Keys whose tags (``<|zh|>``) were taken out, with the first tag of each."""
    invisible: list[str] = field(default_factory=list)
    """Keys whose invisible characters were taken out."""
    symbols: dict[str, str] = field(default_factory=dict)
    """Keys whose emoji (SenseVoice's events and moods), ``▁`` or curly apostrophes were taken out or made plain."""
    bracketed: dict[str, str] = field(default_factory=dict)
    """Keys whose text holds what looks like no speech (``[noise]``, ``<sil>``) and is counted, with the first."""
    bare: list[str] = field(default_factory=list)
    """Keys without a tab, taken as empty texts."""


@dataclass(frozen=True)
class Utterance:
    """One reference beside its hypothesis: alignment columns ``(op, reference, hypothesis)`` and their counts."""

    key: str
    columns: list[Column]
    counts: ErrorCounts

    @property
    def hits(self) -> int:
        """Tokens that are right."""
        return sum(op == "=" for op, _, _ in self.columns)


@dataclass(frozen=True)
class Result:
    """All utterances of the reference file, compared."""

    metric: Metric
    utterances: list[Utterance]
    notes: list[str] = field(default_factory=list)
    """What was not as it should be in the files: repeated, missing and unknown keys."""

    @property
    def counts(self) -> ErrorCounts:
        """Of all utterances; what was said where the reference is empty counts as insertions."""
        return pool(u.counts for u in self.utterances)

    @property
    def right(self) -> int:
        """Utterances without an error, those with an empty reference and an empty hypothesis included."""
        return sum(not u.counts.errors for u in self.utterances)

    @property
    def empty(self) -> list[Utterance]:
        """Utterances whose reference is empty."""
        return [u for u in self.utterances if not u.counts.length]

    def figures(self) -> dict[str, Any]:
        """Rates as fractions of the reference tokens. Without any, the error rate is 0 (nothing was said) or 1."""
        all_ = self.counts
        n = all_.length
        return {
            "error_rate": all_.errors / n if n else float(all_.insertions > 0),
            "words": n,
            "sub_rate": all_.substitutions / n if n else 0.0,
            "del_rate": all_.deletions / n if n else 0.0,
            "ins_rate": all_.insertions / n if n else None,
            "sentence_accuracy": self.right / len(self.utterances),
            "sentences": len(self.utterances),
        }


def read_texts(path: Path, *, bare_keys: bool = False, keep_symbols: bool = False) -> KeyedTexts:
    """Read a file of ``key<TAB>text`` lines (UTF-8); blank lines are passed over, ``key<TAB>`` is an empty text.

    What recognizers write beside speech is taken out (tags such as SenseVoice's ``<|zh|><|NEUTRAL|>``), and so are
    characters that nobody sees; the result says of which keys.

    Args:
        path: the file.
        bare_keys: take a line that is a key alone for an utterance in which nothing was heard.
        keep_symbols: leave emoji and apostrophes as they are, for a protocol that says what becomes of them.

    Raises:
        DataError: the file cannot be read, is not UTF-8, holds no utterance, or a line lacks its key or its tab.
    """
    try:
        lines = raw_lines(path)
    except OSError as error:
        raise DataError(f"Cannot read the file: {error.strerror or error}", where=str(path),
                        fix="give the path of a file of key<TAB>text lines") from None
    found = KeyedTexts({}, [])
    repeated: dict[str, None] = {}
    for number, raw in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            source = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "ENCODING"
            raise DataError(f"The line is not UTF-8: {error.reason} at byte {error.start + 1}", where=where,
                            fix=f"convert the file, e.g. with iconv -f {source} -t utf-8") from None
        if not line.strip(" "):
            continue
        key, tab, text = line.partition("\t")
        key = key.strip()
        if not tab and not (bare_keys and len(line.split()) == 1):
            raise DataError(f"The line has no tab: {line.strip():.60}", where=where, fix=_as_tabs(line.strip()))
        if not key:
            raise DataError("The line has no key before the tab", where=where, fix="write key<TAB>text")
        if key in found.texts:
            repeated[key] = None
            continue
        if not tab:
            found.bare.append(key)
        found.texts[key] = _spoken(key, text, found, keep_symbols)
    if not found.texts:
        raise DataError("The file holds no utterance", where=str(path), fix="write one key<TAB>text line per utterance")
    found.repeated.extend(repeated)
    return found


def _as_tabs(line: str) -> str:
    """How a line of another format becomes key<TAB>text."""
    if line.startswith(("{", "[")):
        return "this looks like JSON: write key<TAB>text, e.g. with jq -r '[.key, .text] | @tsv'"
    if re.search(r"\s\([^()\s]+\)$", line):
        return ("this looks like a trn file, text (key): write key<TAB>text, e.g. with "
                "sed -E 's/(.*) \\((.*)\\)$/\\2\\t\\1/'")
    if re.fullmatch(r"[^\s,]+,.*", line):
        return "this looks like CSV: write key<TAB>text"
    spaced = ", e.g. with sed 's/ /\\t/' where a space follows the key" if " " in line else ""
    return f"write key<TAB>text{spaced}; an utterance without words is key<TAB>"


def _spoken(key: str, text: str, found: KeyedTexts, keep_symbols: bool) -> str:
    """The text without tags and invisible characters; what was noticed is noted."""
    seen = visible(text)
    if seen != text:
        found.invisible.append(key)
    plain = _TAG.sub("", seen)
    if plain != seen:
        tag = _TAG.search(seen)
        found.tagged[key] = tag.group() if tag else ""
    words = plain if keep_symbols else _SYMBOL.sub(" ", plain).translate(_APOSTROPHES)
    if words != plain:
        found.symbols[key] = next(a for a in plain if a in _APOSTROPHE or _SYMBOL.match(a))
        plain = words
    if noise := _NOISE.search(plain):
        found.bracketed[key] = noise.group()
    return plain


def notes_on(side: str, found: KeyedTexts) -> list[str]:
    """What was taken out of a file, or looks as if it should be.

    Args:
        side: ``reference`` or ``hypothesis``.
    """

    def example(noted: dict[str, str]) -> str:
        return next(iter(noted.values()), "")

    return named(
        (f"texts of the {side} with tags such as {example(found.tagged)}, taken out", list(found.tagged)),
        (f"texts of the {side} with {example(found.symbols)} or the like, taken out or read as '", list(found.symbols)),
        (f"texts of the {side} with invisible characters, taken out", found.invisible),
        (f"texts of the {side} with {example(found.bracketed)} or the like, counted as words: take it out where it is "
         "no speech", list(found.bracketed)),
        (f"keys of the {side} without a tab, taken as empty", found.bare),
    )


def clean(text: str) -> str:
    """Lower case, without markers and subword marks (so ``<UNK>`` goes like ``<unk>``)."""
    text = text.lower()
    for mark in (*MARKERS, *SUBWORD_MARKS):
        text = text.replace(mark, "")
    return text


def tokens_of(text: str, metric: Metric) -> list[str]:
    """What is compared: words, each CJK character (U+4E00-9FFF) its own; or all characters but spaces."""
    text = clean(text)
    return _WORD.findall(text) if metric == "wer" else list("".join(text.split()))


def compare(reference: KeyedTexts, hypothesis: KeyedTexts, metric: Metric) -> Result:
    """Align each reference with the hypothesis of the same key; a missing one is empty, an unknown one is ignored."""
    utterances = []
    for key, text in reference.texts.items():
        found = align(tokens_of(text, metric), tokens_of(hypothesis.texts.get(key, ""), metric))
        utterances.append(Utterance(key, found.columns, found.counts))
    return Result(metric, utterances, notes_on("reference", reference) + notes_on("hypothesis", hypothesis) + named(
        ("repeated in the reference, the first text is kept", reference.repeated),
        ("repeated in the hypothesis, the first text is kept", hypothesis.repeated),
        ("without a hypothesis, taken as empty", [k for k in reference.texts if k not in hypothesis.texts]),
        ("in the hypothesis only, ignored", [k for k in hypothesis.texts if k not in reference.texts]),
    ))


def named(*findings: tuple[str, list[str]]) -> list[str]:
    """A note for each finding that has keys; the first of them are named. What is counted stands first, in the
    plural."""

    def counted(what: str, number: int) -> str:
        noun, rest = what.split(" ", 1)
        return f"{count(number, noun.removesuffix('s'))} {rest}" if noun in ("texts", "keys") else f"{number} {what}"

    return [
        f"{counted(what, len(keys))}: {', '.join(keys[:_LISTED])}{', ...' if len(keys) > _LISTED else ''}"
        for what, keys in findings if keys
    ]


def report(result: Result, *, detail: bool = False) -> str:
    """The figures as text; with ``detail`` each utterance's alignment and what was mistaken how often before them."""
    parts = [*map(alignment_text, result.utterances), _statistics(result)] if detail else []
    return "\n\n".join([*parts, _summary(result)]) + "\n"


def _summary(result: Result) -> str:
    figures, counts, unit = result.figures(), result.counts, "words" if result.metric == "wer" else "characters"
    lines = [
        (result.metric.upper(), _percent(figures["error_rate"]), count(counts.errors, "error")),
        (f"reference {unit}", str(figures["words"]), ""),
        ("SUB rate", _percent(figures["sub_rate"]), count(counts.substitutions, "substitution")),
        ("DEL rate", _percent(figures["del_rate"]), count(counts.deletions, "deletion")),
        ("INS rate", _percent(figures["ins_rate"]), count(counts.insertions, "insertion")),
        ("sentence accuracy", _percent(figures["sentence_accuracy"]), f"{result.right} right"),
        ("sentences", str(figures["sentences"]), ""),
    ]
    if result.empty:
        said = sum(u.counts.insertions for u in result.empty)
        lines.append(("empty references", str(len(result.empty)), f"{said} {unit} there, counted as insertions"))
    shown = [f"{label:21}{value:>9}   {more}".rstrip() for label, value, more in lines]
    return "\n".join([*shown, *(f"note: {note}" for note in result.notes)])


def _percent(rate: float | None) -> str:
    return "none" if rate is None else f"{rate:.2%}"


def alignment_text(utterance: Utterance) -> str:
    """Reference above hypothesis in columns that line up in a terminal, and the errors' letters below."""
    ref, hyp, ops = ["REF:"], ["HYP:"], ["    "]
    for op, left, right in utterance.columns:
        left, right, op = left or GAP, right or GAP, op.replace("=", " ")
        width = max(columns_of(left), columns_of(right))
        for row, cell in ((ref, left), (hyp, right), (ops, op)):
            row.append(cell + " " * (width - columns_of(cell)))
    c = utterance.counts
    rows = "\n".join(" ".join(row).rstrip() for row in (ref, hyp, ops))
    return f"{utterance.key}\n{rows.rstrip()}\nH={utterance.hits} S={c.substitutions} D={c.deletions} I={c.insertions}"


def columns_of(text: str) -> int:
    """Columns that a text takes in a terminal: two a wide character, none a combining mark."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _statistics(result: Result) -> str:
    """Every substitution, deletion and insertion with its count, the most frequent first."""
    blocks = []
    for op, name in (("S", "substitutions"), ("D", "deletions"), ("I", "insertions")):
        counted = Counter(
            f"{left} -> {right}" if op == "S" else left or right
            for utterance in result.utterances for kind, left, right in utterance.columns if kind == op
        )
        ordered: Sequence[tuple[str, int]] = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        blocks.append("\n".join([f"{name}: {counted.total()}", *(f"{n:6}  {what}" for what, n in ordered)]))
    return "\n\n".join(blocks)
