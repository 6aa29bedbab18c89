"""Prompt sets: read from files, checked, and kept disjoint.

A file may be JSONL (one object a line, the fields of ``Prompt``, or a bare string), ``.txt`` (one text a line) or
Parquet (a ``text`` column, other fields of ``Prompt`` optional). A line that cannot be spoken is skipped and counted
where other lines go on, and an error where nothing is left.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from talker_rl.data.records import Prompt, stable_hash
from talker_rl.errors import PromptError

FIELDS = ("text", "speaker", "lang", "messages", "reference_seconds", "max_seconds", "prompt_id")
NOT_PROMPTS = ("codes", "reward")
"""Further columns of a file that gives codes as well (``train.<variant>.data: file``)."""

LANGUAGES = ("zh", "en", "mixed")

REASONS: dict[str, str] = {
    "empty": "the text is empty",
    "not_text": "the text is not a string, or the line is not JSON",
    "unspeakable": "the text has no word: only marks, symbols or control characters",
    "duplicate": "the same text, speaker and context came before",
}
"""Why a line of a prompt file was skipped."""


@dataclass(frozen=True)
class Skip:
    """A line that gives no prompt."""

    line: int
    """1-based line (row for Parquet)."""
    reason: str
    """A key of ``REASONS``."""
    text: str
    """The beginning of what stood there."""


@dataclass
class PromptSet:
    """The prompts of one file and what was left out of it."""

    source: str
    prompts: list[Prompt]
    skips: list[Skip] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Reason -> number of skipped lines."""
        return dict(Counter(s.reason for s in self.skips))

    def describe_skips(self, most: int = 10) -> list[str]:
        """One line a reason: how many, which lines."""
        lines = []
        for reason, count in sorted(self.counts().items()):
            at = [str(s.line) for s in self.skips if s.reason == reason]
            more = ", ..." if len(at) > most else ""
            lines.append(f"{count} x {reason} ({REASONS[reason]}): lines {', '.join(at[:most])}{more} of {self.source}")
        return lines


def detect_lang(text: str) -> str:
    """``zh``, ``en`` or ``mixed`` by the scripts of the letters; digits alone count as ``en``."""
    han = any("一" <= c <= "鿿" or "㐀" <= c <= "䶿" for c in text)
    latin = any(c.isalpha() and "LATIN" in unicodedata.name(c, "") for c in unicodedata.normalize("NFKC", text))
    if han:
        return "mixed" if latin else "zh"
    return "en"


def text_key(text: str) -> str:
    """What makes two texts the same: NFKC, case and spaces aside."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def unspeakable_reason(text: Any) -> str | None:
    """A key of ``REASONS`` if nothing of ``text`` can be spoken, else None."""
    from talker_rl.reward.normalize import tokens_of

    if not isinstance(text, str):
        return "not_text"
    if not text.strip():
        return "empty"
    if any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in text):
        return "unspeakable"
    return None if tokens_of(text) else "unspeakable"


def check_text(text: Any) -> str:
    """The text of a single prompt, or a PromptError that says what is wrong with it."""
    reason = unspeakable_reason(text)
    if reason:
        raise PromptError(f"This prompt cannot be spoken: {REASONS[reason]}", where=repr(text)[:80],
                          fix="give a text with at least one word")
    return text.strip()


def resolve_prompt_path(spec: str) -> Path:
    """``micro:train`` is the set that ships with the micro world; anything else is a path."""
    if spec.startswith("micro:"):
        from talker_rl.micro import checkpoint_dir

        return checkpoint_dir() / "prompts" / f"{spec.removeprefix('micro:')}.jsonl"
    return Path(spec).expanduser()


def _read_raw(path: Path) -> Iterable[tuple[int, Any]]:
    """(line number, decoded row); a row that is not JSON comes as bytes so that it counts as ``not_text``."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            rows = pq.read_table(path).to_pylist()
        except Exception as error:  # pyarrow raises many kinds for a truncated file
            raise PromptError(f"Cannot read the prompt file: {error}", where=str(path),
                              fix="write it again") from error
        if rows and "text" not in rows[0]:
            raise PromptError("The prompt file has no column `text`", where=f"{path}, columns {sorted(rows[0])}",
                              fix="rename the column that holds the texts to `text`")
        yield from enumerate(rows, 1)
        return
    if suffix not in (".jsonl", ".txt"):
        raise PromptError(f"Unknown kind of prompt file: {suffix or 'no suffix'}", where=str(path),
                          fix="use .jsonl (fields of a prompt), .txt (one text a line) or .parquet")
    for number, raw in enumerate(path.read_bytes().splitlines(), 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            if suffix == ".txt" or not line.strip():
                yield number, line
            else:
                yield number, json.loads(line)
        except ValueError:  # not UTF-8, or not JSON
            yield number, raw


def read_prompts(
    spec: str,
    *,
    speakers: Collection[str] | None = None,
    default_speaker: str | None = None,
    limit: int | None = None,
) -> PromptSet:
    """Prompts of a file, in its order.

    Args:
        spec: a path, or ``micro:train``, ``micro:dev``, ``micro:eval``.
        speakers: names the checkpoint knows; None leaves speakers unchecked.
        default_speaker: of prompts that name none; None is the first of ``speakers``.
        limit: keep the first so many usable prompts.

    Raises:
        PromptError: no such file, a speaker that the checkpoint does not have, a field of the wrong kind, or no
            usable prompt at all.
    """
    path = resolve_prompt_path(spec)
    if not path.is_file():
        raise PromptError("There is no such prompt file", where=str(path),
                          fix="give a .jsonl, .txt or .parquet file, or micro:train | micro:dev | micro:eval")
    known = sorted(speakers) if speakers is not None else None
    fallback = default_speaker or (known[0] if known else "")
    found = PromptSet(source=str(path), prompts=[])
    seen: set[str] = set()
    for number, row in _read_raw(path):
        if limit is not None and len(found.prompts) >= limit:
            break
        record = row if isinstance(row, dict) else {"text": row}
        text = record.get("text")
        reason = unspeakable_reason(text)
        if reason:
            found.skips.append(Skip(number, reason, repr(text)[:60]))
            continue
        prompt = _to_prompt(record, fallback, where=f"{path}, line {number}")
        if known is not None and prompt.speaker not in known:
            raise PromptError(f"Unknown speaker {prompt.speaker!r}", where=f"{path}, line {number}",
                              fix=f"this checkpoint has: {', '.join(known)}")
        key = stable_hash(text_key(prompt.text), prompt.speaker, prompt.messages)
        if key in seen:
            found.skips.append(Skip(number, "duplicate", prompt.text[:60]))
            continue
        seen.add(key)
        found.prompts.append(prompt)
    if not found.prompts:
        raise PromptError("No prompt in this file can be used",
                          where="; ".join(found.describe_skips()) or f"{path} is empty",
                          fix="give at least one text with a word in it")
    return found


def _to_prompt(record: dict[str, Any], default_speaker: str, where: str) -> Prompt:
    unknown = sorted(set(record) - {*FIELDS, *NOT_PROMPTS})
    if unknown:
        raise PromptError(f"Unknown field {unknown[0]!r} in a prompt", where=where,
                          fix=f"fields are: {', '.join(FIELDS)}")
    text = record["text"].strip()
    messages = record.get("messages")
    if isinstance(messages, str):  # a Parquet column holds it as JSON
        try:
            messages = json.loads(messages)
        except ValueError:
            pass  # told below
    if messages is not None and not (
        isinstance(messages, list) and all(isinstance(m, dict) and "role" in m and "content" in m for m in messages)
    ):
        raise PromptError("`messages` is not a list of {role, content}", where=where, fix="leave it out, or write one")
    lang = record.get("lang") or detect_lang(text)
    if lang not in LANGUAGES:
        raise PromptError(f"Unknown language {lang!r}", where=where, fix=f"one of {', '.join(LANGUAGES)}, or leave out")
    speaker = record.get("speaker") or default_speaker
    if not isinstance(speaker, str):
        raise PromptError(f"The speaker is not a name: {speaker!r}", where=where, fix="write the speaker's name")
    for name in ("reference_seconds", "max_seconds"):
        seconds = record.get(name)
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if seconds is not None and not (number and 0 < seconds < math.inf):
            raise PromptError(f"{name} is not a positive number: {seconds!r}", where=where, fix="leave it out")
    return Prompt(text=text, speaker=speaker, lang=lang, messages=messages,
                  reference_seconds=record.get("reference_seconds"), max_seconds=record.get("max_seconds"),
                  prompt_id=record.get("prompt_id") or "")


def check_disjoint(sets: dict[str, list[Prompt]]) -> None:
    """No text in two sets, and no prompt id twice: what was trained on or chosen by must not be evaluated on.

    Raises:
        PromptError: with an example and how many texts are shared.
    """
    names = list(sets)
    keys = {name: {text_key(p.text): p.text for p in sets[name]} for name in names}
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = sorted(keys[first].keys() & keys[second].keys())
            if shared:
                raise PromptError(
                    f"The prompt sets {first} and {second} share {len(shared)} texts",
                    where=f"for instance {keys[first][shared[0]]!r}",
                    fix=f"remove them from prompts.{first}",
                )
    counts = Counter(p.prompt_id for prompts in sets.values() for p in prompts)
    twice = [prompt_id for prompt_id, n in counts.items() if n > 1]
    if twice:
        raise PromptError(f"{len(twice)} prompt ids occur twice", where=f"for instance {twice[0]}",
                          fix="leave prompt_id out: it is derived from text, speaker and messages")
