"""One's own preference pairs (JSONL or Parquet) as `Pair` records, with every row checked.

A row names its prompt by `prompt_id` (of the prompts given) or by its text (`prompt` or `text`, with `speaker`), and
holds `chosen` and `rejected`: lists of codec ids, the stop id last where the sequence ended by itself. Optional:
`chosen_reward`, `rejected_reward`, `margin`, `lang`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from talker_rl.base.errors import DataError
from talker_rl.base.seals import verified
from talker_rl.base.text.characters import clean_text
from talker_rl.base.text.files import text_lines
from talker_rl.base.text.language import detect_lang
from talker_rl.records.candidate import Candidate
from talker_rl.records.checks import as_id
from talker_rl.records.codec import Codec, codec_named
from talker_rl.records.pair import Pair, pair_id_of
from talker_rl.records.prompt import Prompt
from talker_rl.records.speech import Speech


@dataclass
class ImportedPairs:
    """Pairs with the prompts they speak, and how many rows were left out for which reason."""

    pairs: list[Pair]
    prompts: list[Prompt]
    skipped: dict[str, int] = field(default_factory=dict)


def import_pairs(
    path: str | Path,
    prompts: Sequence[Prompt] = (),
    *,
    default_speaker: str | None = None,
    append_stop: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
) -> ImportedPairs:
    """Read and check one's own pairs.

    Args:
        path: a `.jsonl` or `.parquet` file.
        prompts: known prompts; rows may name them by id or by text and speaker.
        default_speaker: the speaker of rows that name a text without one.
        append_stop: end a chosen or rejected without a stop id with the codec's, for data that leaves it out.
        on_error: raise at the first bad row, or leave it out and count its reason.

    Raises:
        DataError: the file cannot be read, or (on_error="raise") a row is bad; the row's number is named.
    """
    path = Path(path)
    by_id = {p.prompt_id: p for p in prompts}
    by_text = {(clean_text(p.text), p.speaker): p for p in prompts}
    used: dict[str, Prompt] = {}
    pairs: dict[str, Pair] = {}
    skipped: Counter[str] = Counter()
    for number, row in enumerate(read_rows(path), start=1):
        try:
            prompt = _prompt_of(row, by_id, by_text, default_speaker)
            pair = _pair_of(row, prompt, append_stop)
            if pair.pair_id in pairs:
                raise BadRow("duplicate", "the same pair stands in an earlier row", "remove one of them")
        except BadRow as bad:
            if on_error == "skip":
                skipped[bad.reason] += 1
                continue
            raise DataError(
                f"{bad.what} ({bad.reason})", where=f"{path}, row {number}", fix=f"{bad.fix}, or skip bad rows"
            ) from None
        used.setdefault(prompt.prompt_id, prompt)
        pairs[pair.pair_id] = pair
    if not pairs:
        raise DataError(
            "the file holds no usable pair" + (f" (skipped: {dict(skipped)})" if skipped else ""),
            where=str(path),
            fix="give at least one row with prompt, chosen and rejected",
        )
    return ImportedPairs(list(pairs.values()), list(used.values()), dict(sorted(skipped.items())))


class _Vote(BaseModel):
    """What the blind A/B listening of a page (report/templates/pairs.js) exports of a pair."""

    pair_id: str
    prompt_id: str
    chosen_id: str
    rejected_id: str
    """Candidates that the scores had chosen and rejected."""
    vote: Literal["chosen", "rejected", "tie"]


class _VoteFile(BaseModel):
    format: Literal["talker-rl-votes-1"]
    votes: list[_Vote]


def import_votes(
    path: str | Path, prompts: Iterable[Prompt], candidates: Iterable[Candidate]
) -> tuple[list[Pair], dict[str, int]]:
    """Pairs of a listener's votes: chosen is the one voted for, rewards are 1 and 0 (only the order is known).

    Args:
        path: the JSON file that a page exported.
        prompts, candidates: those of the run whose pairs were listened to.

    Returns:
        The pairs sorted by prompt id, and how many votes gave none for which reason (``REASONS``): ties, and votes
        for speech that was cut, which would teach the Talker not to stop.

    Raises:
        DataError: the file is no votes file, or a vote names a pair that these candidates do not make.
    """
    path = Path(path)
    try:
        votes = _VoteFile.model_validate_json("\n".join(text_lines(path))).votes
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error}", where=str(path), fix="export the votes again from the page") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        raise DataError(f"This is no file of votes ({place}: {first['msg']})", where=str(path),
                        fix="export the votes again from the page") from None
    voted = {vote.prompt_id for vote in votes}
    prompt_of = {p.prompt_id: p for p in prompts if p.prompt_id in voted}
    said = {c.candidate_id: c.speech for c in candidates if c.prompt_id in voted}
    pairs: dict[str, Pair] = {}
    reasons: Counter[str] = Counter()
    seen: set[str] = set()
    for vote in votes:
        chosen, rejected = said.get(vote.chosen_id), said.get(vote.rejected_id)
        if (chosen is None or rejected is None or vote.prompt_id not in prompt_of
                or vote.pair_id != pair_id_of(vote.prompt_id, chosen.ids, rejected.ids)):
            raise DataError(f"A vote is for pair {vote.pair_id}, which this run does not have", where=str(path),
                            fix="give the folder (--run-dir) of the run whose page was listened to")
        if vote.pair_id in seen:
            raise DataError(f"Pair {vote.pair_id} is voted on twice", where=str(path), fix="keep one of the votes")
        seen.add(vote.pair_id)
        better, worse = (vote.chosen_id, vote.rejected_id)[:: -1 if vote.vote == "rejected" else 1]
        if vote.vote == "tie":
            reasons["vote_tie"] += 1
        elif not said[better].stopped:
            reasons["vote_cut"] += 1
        else:
            row = {"chosen": said[better].ids, "rejected": said[worse].ids, "chosen_id": better, "rejected_id": worse,
                   "codec": said[better].codec.name}
            pair = _pair_of(row, prompt_of[vote.prompt_id], append_stop=False)
            pairs[pair.pair_id] = pair
    return sorted(pairs.values(), key=lambda p: (p.prompt_id, p.pair_id)), dict(sorted(reasons.items()))


class BadRow(Exception):
    """What is wrong with one row: a short reason, the sentence, and what to do."""

    def __init__(self, reason: str, what: str, fix: str) -> None:
        super().__init__(what)
        self.reason, self.what, self.fix = reason, what, fix


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl or .parquet file.

    Raises:
        DataError: the file is not there, or cannot be read.
    """
    if not path.is_file():
        raise DataError("the file does not exist", where=str(path), fix="check the path")
    verified(path, fix="run the pairs stage of its run again, or copy it again")
    if path.suffix == ".parquet":
        try:
            yield from pq.read_table(path).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"the file cannot be read: {error}", where=str(path), fix="write it again") from None
        return
    if path.suffix not in (".jsonl", ".json"):
        raise DataError(f"unknown file type {path.suffix!r}", where=str(path), fix="give a .jsonl or .parquet file")
    try:
        lines = text_lines(path)
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error}", where=str(path), fix="save the file as UTF-8") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON: {error}", where=f"{path}, line {number}", fix="one object per line") from None
        if not isinstance(row, dict):
            raise DataError("the line is no object", where=f"{path}, line {number}", fix="one object per line")
        yield row


def _prompt_of(
    row: dict[str, Any],
    by_id: dict[str, Prompt],
    by_text: dict[tuple[str, str], Prompt],
    default_speaker: str | None,
) -> Prompt:
    prompt_id = as_id(row.get("prompt_id"))
    text = row.get("text") or row.get("prompt")
    speaker = row.get("speaker") or default_speaker
    if isinstance(prompt_id, str) and prompt_id in by_id:
        return by_id[prompt_id]
    if not isinstance(text, str) or not clean_text(text):
        what = f"unknown prompt_id {prompt_id!r}" if prompt_id else "no prompt_id and no text"
        raise BadRow("unknown_prompt", what, "name a known prompt_id, or give the text as `prompt`")
    if not isinstance(speaker, str):
        raise BadRow("no_speaker", "the row names no speaker", "add `speaker` or set a default speaker")
    text = clean_text(text)
    if (text, speaker) in by_text:
        return by_text[text, speaker]
    if row.get("messages"):
        raise BadRow("unknown_prompt", "the row has messages of its own, and no known prompt_id",
                     "give the prompts to import_pairs too, or leave `messages` out")
    # A foreign prompt_id cannot be kept: ids are content hashes, and the conditioning is stored under them.
    return Prompt(text=text, speaker=speaker, lang=row.get("lang") or detect_lang(text))


def speech_in(row: dict[str, Any], side: str, append_stop: bool, codec: Codec | None = None) -> Speech:
    """What the ids under a key of a row say, with the stop where it is there or added; BadRow where they
    are none, or of another codec than the one that is asked for."""
    codes = row.get(side)
    if isinstance(codes, dict):
        codes = codes.get("codes")
    if not isinstance(codes, (list, tuple)) or not codes:
        raise BadRow("no_codes", f"`{side}` is no list of codec ids", "give the codec ids as integers")
    if not all(isinstance(code, int) and not isinstance(code, bool) for code in codes):
        raise BadRow("no_codes", f"`{side}` holds something that is no integer", "give the codec ids as integers")
    try:
        own = codec_named(row.get("codec"))
        if codec is not None and row.get("codec") is not None:
            codec.refuse_other(own.name, "")
        codec = codec or own
        speech = codec.speech(codes)
        speech.frames  # noqa: B018 (whole frames)
    except DataError as error:
        raise BadRow("other_codec", error.what, error.fix or "") from None
    if append_stop and not speech.stopped:
        speech = replace(speech, stop_id=codec.stop)
    if not speech.codes:
        raise BadRow("empty", f"`{side}` holds no code before the stop", "leave empty sequences out")
    wrong = codec.invalid(speech.codes)
    if wrong is not None:
        raise BadRow(
            "invalid_code",
            f"`{side}` holds the id {wrong}, which is no speech code",
            f"codes lie in 0..{max(codec.sizes) - 1}; a stop id ({stop_names(codec)}) may only come last",
        )
    return speech


def stop_names(codec: Codec) -> str:
    """The stop ids, for people."""
    return " or ".join(map(str, sorted(codec.stops)))


def _pair_of(row: dict[str, Any], prompt: Prompt, append_stop: bool) -> Pair:
    chosen, rejected = speech_in(row, "chosen", append_stop), speech_in(row, "rejected", append_stop)
    if chosen == rejected:
        raise BadRow("identical", "chosen and rejected are the same codes", "leave such rows out")
    if not chosen.stopped:
        raise BadRow(
            "chosen_truncated",
            "chosen does not end with a stop id: training on it would teach the Talker not to stop",
            f"end finished sequences with {chosen.codec.stop} (append_stop does it), leave cut ones out",
        )
    rewards = [row.get("chosen_reward"), row.get("rejected_reward")]
    margin = row.get("margin")
    if any(value is not None and not _is_number(value) for value in (*rewards, margin)):
        raise BadRow("bad_reward", "a reward or the margin is no number", "give numbers, or leave them out")
    # Without scores only the order is known: 1 against 0 says no more than that.
    chosen_reward = 1.0 if rewards[0] is None else float(rewards[0])
    rejected_reward = 0.0 if rewards[1] is None else float(rewards[1])
    pair_id = pair_id_of(prompt.prompt_id, chosen.ids, rejected.ids)
    return Pair(
        prompt_id=prompt.prompt_id,
        pair_id=pair_id,
        text=prompt.text,
        speaker=prompt.speaker,
        chosen_id=str(row.get("chosen_id") or f"{pair_id}-chosen"),
        rejected_id=str(row.get("rejected_id") or f"{pair_id}-rejected"),
        chosen=chosen,
        rejected=rejected,
        chosen_reward=chosen_reward,
        rejected_reward=rejected_reward,
        margin=chosen_reward - rejected_reward if margin is None else float(margin),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
