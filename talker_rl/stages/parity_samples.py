"""Samples that another engine recorded: a JSONL file, and whether its log-probs are raw or processed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from talker_rl.base.errors import DataError
from talker_rl.diagnostics.parity import Logps
from talker_rl.records.codec import Codec
from talker_rl.records.prompt import Prompt
from talker_rl.records.speech import Speech
from talker_rl.speech.config import SamplingConfig
from talker_rl.speech.protocol import Policy, TalkerSequence

PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
"""Options that change nothing: what a file's settings leave out was not used."""
KEYS = {"prompt_id", "text", "speaker", "lang", "messages", "codes", "stop_id", "logps", "sampling", "id"}
PROBES, PROBED_STEPS = 4, 16
"""Sequences, and steps of each, by which settings are tried."""
ALIASES = {"token_logps": "logps", "logprobs": "logps", "log_probs": "logps", "candidate_id": "id", "ids": "codes"}


@dataclass
class Sample:
    """One line."""

    name: str
    prompt: Prompt
    speech: Speech
    logps: Logps
    """(T,), one a step, or (T, G), one a code."""
    sampling: SamplingConfig | None
    """As the engine drew it; None: not told."""


def read_samples(file: Path, codec: Codec, prompts: dict[str, Prompt], speaker: str) -> list[Sample]:
    """The samples of a file.

    Args:
        prompts: known ones by id, for lines that name one.
        speaker: of lines with a text and none.

    Raises:
        DataError: a line that is no sample; its number and what is wrong.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"The samples cannot be read: {error}", where=str(file), fix="give a JSONL file") from error
    samples = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            samples.append(_sample(line, f"{file}:{number}", f"line {number}", codec, prompts, speaker))
    if not samples:
        raise DataError("The file holds no samples", where=str(file), fix="a JSON object a line: see docs/PARITY.md")
    return samples


def _sample(line: str, where: str, name: str, codec: Codec, prompts: dict[str, Prompt], speaker: str) -> Sample:
    def wrong(what: str, fix: str = "see docs/PARITY.md for the format") -> DataError:
        return DataError(what, where=where, fix=fix)

    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise wrong(f"this is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise wrong("this is no JSON object")
    row = {ALIASES.get(k, k): v for k, v in row.items()}
    for key in ("codes", "logps"):
        if not isinstance(row.get(key), list) or not row[key]:
            raise wrong(f"{key} is missing, or no list")
    if "text" in row:
        prompt = Prompt(str(row["text"]), str(row.get("speaker") or speaker), messages=row.get("messages"),
                        lang=row.get("lang", "en"))
    elif row.get("prompt_id") in prompts:
        prompt = prompts[row["prompt_id"]]
    else:
        raise wrong(f"prompt {row.get('prompt_id')!r} is not among the configuration's",
                    "give text and speaker, or the configuration whose prompts these are (-c)")
    return Sample(str(row.get("id", name)), prompt, _speech(row, codec, wrong), _logps(row["logps"], codec, wrong),
                  _sampling(row.get("sampling"), wrong))


def _speech(row: dict[str, Any], codec: Codec, wrong: Any) -> Speech:
    """Codes flat or frame by frame; the stop in ``stop_id``, or last among them."""
    codes: list[Any] = []
    for item in row["codes"]:
        codes += item if isinstance(item, list) else [item]
    if not all(type(c) is int for c in codes):
        raise wrong("codes are whole numbers, flat or one list a frame")
    speech = codec.speech(codes)
    stop = row.get("stop_id")
    if stop is not None:
        if stop not in codec.stops:
            raise wrong(f"stop_id {stop!r} is none of the codec's: {', '.join(map(str, codec.stops))}")
        speech = Speech(speech.codes, stop, codec)
    invalid = codec.invalid(speech.codes)
    if invalid is not None or len(speech.codes) % codec.groups:
        raise wrong(f"{invalid} is no code of {codec.name}" if invalid is not None else
                    f"{len(speech.codes)} codes are no whole frames of {codec.groups}",
                    f"codes of {codec.name}: {codec.groups} a frame, each from 0 to {codec.sizes[0] - 1}")
    return speech


def _logps(values: list[Any], codec: Codec, wrong: Any) -> Logps:
    """One a step, or a list of one a code; the stop's list may hold its number alone."""
    try:
        if any(isinstance(v, list) for v in values):
            rows = [list(v) if isinstance(v, list) else [v] for v in values]
            padded = np.array([r + [0.0] * (codec.groups - len(r)) for r in rows], dtype=np.float64)
            return padded[:, 0] if codec.groups == 1 else padded
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise wrong(f"logps are numbers, one a step, or lists of {codec.groups}, one a code: {error}") from error


def _sampling(told: Any, wrong: Any) -> SamplingConfig | None:
    if told is None:
        return None
    try:
        return SamplingConfig.model_validate(PLAIN | told)
    except (ValidationError, TypeError) as error:
        first = str(error).splitlines()
        raise wrong(f"sampling is not understood: {' '.join(first[1:3]) or first[0]}",
                    "transformers' names: temperature, top_k, top_p, repetition_penalty, ...") from error


def trials(own: SamplingConfig) -> list[SamplingConfig]:
    """Settings to try where none are told: the configuration's, parts of it, and temperatures."""
    plain = SamplingConfig.model_validate(PLAIN)
    tried = [own, own.model_copy(update={"repetition_penalty": 1.0}),
             *(plain.model_copy(update={k: getattr(own, k)}) for k in PLAIN)]
    tried += [plain.model_copy(update={"temperature": t / 20}) for t in range(6, 41) if t != 20]
    tried += [plain.model_copy(update={"temperature": own.temperature, k: getattr(own, k)}) for k in ("top_k", "top_p")]
    return [s for s in {s.model_dump_json(): s for s in tried}.values() if words(s)]


def nearest(
    policy: Policy, sequences: Sequence[TalkerSequence], recorded: Sequence[Logps], own: SamplingConfig
) -> SamplingConfig:
    """Of the settings that are tried those whose processed log-probs are nearest, by the beginnings of some."""
    from talker_rl.stages.parity_scoring import processed

    some = [TalkerSequence(s.conditioning, s.speech.cut(PROBED_STEPS)) for s in sequences[:PROBES]]

    def off(sampling: SamplingConfig) -> float:
        with np.errstate(invalid="ignore"):
            found = [np.abs(v - r[: len(v)]).mean() for v, r in zip(processed(policy, some, sampling), recorded,
                                                                      strict=False)]
        return float(np.mean(found)) if np.isfinite(found).all() else float("inf")

    return min(trials(own), key=off)


def words(sampling: SamplingConfig) -> str:
    """The options that change something."""
    changed = sampling.model_dump(exclude_defaults=True, exclude={"max_new_tokens", "do_sample"})
    every = {k: getattr(sampling, k) for k in PLAIN} | {k: v for k, v in changed.items() if k not in PLAIN}
    return ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in every.items()
                     if k not in PLAIN or v != PLAIN[k])


def by_settings(samples: Sequence[Sample]) -> list[list[int]]:
    """Indices of samples by their settings."""
    groups: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault("" if sample.sampling is None else sample.sampling.model_dump_json(), []).append(i)
    return list(groups.values())
