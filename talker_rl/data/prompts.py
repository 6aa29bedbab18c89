"""Prompt sets: rows of :mod:`talker_rl.data.prompt_files` checked, split where they are long, and kept disjoint.

A line that cannot be spoken is skipped and counted where other lines go on, and an error where nothing is left.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from talker_rl.base.errors import PromptError
from talker_rl.base.figures import count
from talker_rl.base.ids import stable_hash
from talker_rl.base.text.characters import visible
from talker_rl.base.text.unwritten import describe_unwritten
from talker_rl.data.prompt_files import Unreadable, parse_source, read_rows
from talker_rl.data.split import split_text
from talker_rl.data.texts import (
    REASONS,
    clean_text,
    detect_lang,
    is_other_script,
    spoken_key,
    text_key,
    unspeakable_reason,
)
from talker_rl.records.checks import as_id, why_no_file_name, why_not_stored
from talker_rl.records.messages import check_messages, identity, resolve_media
from talker_rl.records.prompt import Prompt

FIELDS = ("text", "speaker", "lang", "messages", "reference_seconds", "max_seconds", "prompt_id", "category",
          "provenance")
NOT_PROMPTS = ("codes", "reward")
"""Further columns of a file that gives codes as well (``train.data: file``)."""

LANGUAGES = ("zh", "en", "mixed")


@dataclass(frozen=True)
class Skip:
    """A line that gives no prompt."""

    line: int
    """1-based line (row for Parquet and datasets)."""
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
    unused: tuple[str, ...] = ()
    """Columns of a table that are no field of a prompt."""
    split: int = 0
    """Texts that were too long and became several prompts."""
    pieces: set[str] = field(default_factory=set)
    """Ids of these prompts."""
    invisible: int = 0
    """Texts that held characters which nobody sees or says; they were taken out."""

    def counts(self) -> dict[str, int]:
        """Reason -> number of skipped lines."""
        return dict(Counter(s.reason for s in self.skips))

    def describe_skips(self, most: int = 10) -> list[str]:
        """One line a reason: how many, which lines."""
        lines = []
        for reason, n in sorted(self.counts().items()):
            at = [str(s.line) for s in self.skips if s.reason == reason]
            more = ", ..." if len(at) > most else ""
            has = next(f"; they have {s.text}" for s in self.skips if s.reason == reason) if reason == "no_text" else ""
            lines.append(f"{n} x {reason} ({REASONS[reason]}{has}): lines {', '.join(at[:most])}{more} of "
                         f"{self.source}")
        return lines

    def describe(self) -> list[str]:
        """What a user should know: skips, columns left aside, texts split, what recognizers will not write."""
        lines = [f"skipped {line}" for line in self.describe_skips()]
        if self.unused:
            lines.append(f"columns left aside: {', '.join(self.unused)} of {self.source}")
        if self.invisible:
            lines.append(f"{count(self.invisible, 'text')} of {self.source} held invisible characters (soft hyphens, "
                         f"zero-width "
                         "spaces, byte order marks): taken out")
        if self.split:
            lines.append(f"{count(self.split, 'long text')} of {self.source} split: "
                         f"{count(len(self.prompts), 'prompt')} in all")
        return lines + describe_unwritten((p.text for p in self.prompts), self.source)


def read_prompts(
    spec: str,
    *,
    speakers: Collection[str] | None = None,
    default_speaker: str | None = None,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    max_chars: int | None = None,
    max_words: int | None = None,
    lang: str | None = None,
) -> PromptSet:
    """Prompts of a file or dataset, in its order.

    Args:
        spec: see :mod:`talker_rl.data.prompt_files`.
        speakers: names the checkpoint knows; None leaves speakers unchecked.
        default_speaker: of prompts that name none; None is the first of ``speakers``.
        limit: keep the first so many usable prompts, pieces counted singly.
        columns: field of a prompt -> column of the source, where their names differ; nothing else is read then.
        max_chars: longer texts are split, see :mod:`talker_rl.data.split`.
        max_words: likewise, in words.
        lang: of prompts that name none; None finds it by their script, and skips texts in another than Han and Latin.

    Raises:
        PromptError: no such file, a speaker that the checkpoint does not have, a field of the wrong kind, an id that
            is no file name, or no usable prompt at all.
    """
    source = parse_source(spec)
    if columns and (strange := sorted(set(columns) - set(FIELDS))):
        raise PromptError(f"Unknown field {strange[0]!r} in prompts.columns", where=str(dict(columns)),
                          fix=f"fields are: {', '.join(FIELDS)}")
    known = sorted(speakers) if speakers is not None else None
    fallback = default_speaker or (known[0] if known else "")
    rows = read_rows(source, FIELDS, columns)
    found = PromptSet(source=str(source), prompts=[], unused=rows.unused)
    seen: set[str] = set()
    for number, row in rows.rows:
        if limit is not None and len(found.prompts) >= limit:
            break
        if isinstance(row, Unreadable):
            found.skips.append(Skip(number, row.reason, row.shown))
            continue
        record = row if isinstance(row, dict) else {"text": row}
        text: Any = record.get("text")
        reason = "no_text" if text is None and "text" not in record else unspeakable_reason(text)
        if reason:
            shown = f"fields: {', '.join(map(str, record))}" if reason == "no_text" else reprlib.repr(text)
            found.skips.append(Skip(number, reason, shown))
            continue
        plain = clean_text(text)
        found.invisible += visible(text) != text
        record = {**record, "text": plain, "lang": record.get("lang") or lang}
        prompt = _to_prompt(record, fallback, source.base, where=f"{source}, line {number}")
        if known is not None and prompt.speaker not in known:
            raise PromptError(f"Unknown speaker {prompt.speaker!r}", where=f"{source}, line {number}",
                              fix=f"this checkpoint has: {', '.join(known)}")
        pieces = pieces_of(prompt, max_chars, max_words, lang=record["lang"])
        found.split += len(pieces) > 1
        for piece in pieces[: None if limit is None else limit - len(found.prompts)]:
            if record["lang"] is None and is_other_script(piece.text):
                found.skips.append(Skip(number, "other_script", piece.text[:60]))
                continue
            key = stable_hash(text_key(piece.text), piece.speaker, identity(piece.messages))
            if key in seen:
                found.skips.append(Skip(number, "duplicate", piece.text[:60]))
                continue
            seen.add(key)
            found.prompts.append(piece)
            if len(pieces) > 1:
                found.pieces.add(piece.prompt_id)
    if not found.prompts:
        raise PromptError("No prompt in this file can be used",
                          where="; ".join(found.describe_skips()) or f"{source} is empty", fix=_fix_for(found.skips))
    return found


def _fix_for(skips: list[Skip]) -> str:
    """What to do where every line was skipped: by what most of them lack."""
    most = Counter(s.reason for s in skips).most_common(1)
    if most and most[0][0] == "no_text":
        return ("say which field holds the text, e.g. prompts.columns.text=prompt or #prompt behind the file; of a "
                "chat or preference data set write the words that the Talker shall speak as `text`")
    if most and most[0][0] == "not_json":
        return 'write one JSON object per line, {"text": "..."}; a file of plain texts is called .txt'
    if most and most[0][0] == "not_utf8":
        return "save the file as UTF-8, e.g. with iconv -t utf-8"
    if most and most[0][0] == "other_script":
        return "set prompts.lang if a recognizer here hears the language"
    return "give at least one text with a word in it"


def pieces_of(
    prompt: Prompt, max_chars: int | None = None, max_words: int | None = None, lang: str | None = None
) -> list[Prompt]:
    """The prompt, or prompts of its pieces where its text is too long: ``<id>_1``, ``<id>_2``, ... in the same context.

    Durations are stated for the whole text, so pieces have none. A given ``lang`` is that of every piece, where it is
    not ``mixed``: a piece of such a text may be in one language.
    """
    if max_chars is None and max_words is None:
        return [prompt]
    texts = split_text(prompt.text, max_chars=max_chars, max_words=max_words)
    if len(texts) == 1:
        return [prompt]
    of_all = lang if lang != "mixed" else None
    return [
        replace(prompt, text=text, lang=of_all or detect_lang(text), prompt_id=f"{prompt.prompt_id}_{i}",
                reference_seconds=None, max_seconds=None)
        for i, text in enumerate(texts, 1)
    ]


def _to_prompt(record: dict[str, Any], default_speaker: str, base: Path, where: str) -> Prompt:
    unknown = sorted(set(record) - {*FIELDS, *NOT_PROMPTS})
    if unknown:
        raise PromptError(f"Unknown field {unknown[0]!r} in a prompt", where=where,
                          fix=f"fields are: {', '.join(FIELDS)}; or say which are meant: prompts.columns.text=FIELD")
    record = dict(record)
    for name in ("messages", "provenance"):
        if isinstance(record.get(name), str):  # a table's column holds it as JSON
            try:
                record[name] = json.loads(record[name])
            except (ValueError, RecursionError):
                pass  # told below
    for name in FIELDS:
        if why := why_not_stored(record.get(name)):
            raise PromptError(f"{name} cannot be stored: {why}", where=where, fix="write texts, numbers and lists")
    text = record["text"]
    messages = record.get("messages")
    if messages == []:  # how some tables write that there are none
        messages = None
    if messages is not None:
        messages = resolve_media(check_messages(messages, where), base, where)
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
    prompt_id = as_id(record.get("prompt_id"))
    derived = "leave it out: it is derived from text, speaker and messages"
    if not isinstance(prompt_id, str | None):
        raise PromptError(f"prompt_id is neither a text nor a whole number: {prompt_id!r}", where=where, fix=derived)
    if prompt_id is not None and (why := why_no_file_name(prompt_id)):
        raise PromptError(f"prompt_id {prompt_id[:80]!r} cannot name a file: {why}", where=where,
                          fix=f"{derived}; or write it in letters, digits, _ and -")
    for name, kind in (("category", str), ("provenance", dict)):
        if not isinstance(record.get(name), kind | None):
            raise PromptError(f"{name} is not a {'name' if kind is str else 'mapping'}: {record[name]!r}", where=where,
                              fix="leave it out")
    return Prompt(text=text, speaker=speaker, lang=lang, messages=messages,
                  reference_seconds=record.get("reference_seconds"), max_seconds=record.get("max_seconds"),
                  prompt_id=prompt_id or "", category=record.get("category"),
                  provenance=record.get("provenance"))


def drop_shared_pieces(sets: dict[str, PromptSet]) -> int:
    """Take pieces of long texts out of a set (in place) where a later set has the same text; returns how many.

    A sentence such as "Thank you." stands in many texts, and no user can take it out of one of them.

    Raises:
        PromptError: nothing of a set is left.
    """
    dropped, later = 0, set[str]()
    for name, found in reversed(sets.items()):
        kept = [p for p in found.prompts if not (p.prompt_id in found.pieces and spoken_key(p.text) in later)]
        if not kept:
            raise PromptError(f"Every piece of prompts.{name} is a text of a later set as well", where=found.source,
                              fix=f"give other texts to prompts.{name}")
        dropped += len(found.prompts) - len(kept)
        found.prompts = kept
        later |= {spoken_key(p.text) for p in kept}
    return dropped


def check_disjoint(sets: dict[str, list[Prompt]]) -> None:
    """No text in two sets, and no prompt id twice: what was trained on or chosen by must not be evaluated on.

    Two texts are the same here if their words are (`text.identity.spoken_key`).

    Raises:
        PromptError: with an example and how many texts are shared.
    """
    names = list(sets)
    keys = {name: {spoken_key(p.text): p.text for p in sets[name]} for name in names}
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = sorted(keys[first].keys() & keys[second].keys())
            if shared:
                raise PromptError(
                    f"The prompt sets {first} and {second} share {count(len(shared), 'text')}",
                    where=f"for instance {keys[first][shared[0]]!r}",
                    fix=f"remove them from prompts.{first}",
                )
    counts = Counter(p.prompt_id for prompts in sets.values() for p in prompts)
    twice = [prompt_id for prompt_id, n in counts.items() if n > 1]
    if twice:
        raise PromptError(f"{count(len(twice), 'prompt id occurs', 'prompt ids occur')} "
                          f"twice", where=f"for instance {twice[0]}",
                          fix="leave prompt_id out: it is derived from text, speaker and messages")
