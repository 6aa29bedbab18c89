"""Samples that another engine recorded: a JSONL file, and whether its log-probs are raw or processed."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from talker_rl.base.errors import DataError
from talker_rl.base.figures import count
from talker_rl.diagnostics.parity import Logps
from talker_rl.records.codec import Codec
from talker_rl.records.messages import check_messages
from talker_rl.records.prompt import Prompt
from talker_rl.records.speech import Speech
from talker_rl.speech.config import SamplingConfig
from talker_rl.speech.protocol import Policy, TalkerSequence

PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
"""Options that change nothing: what a file's settings leave out was not used."""
KEYS = {"prompt_id", "text", "speaker", "lang", "messages", "codec", "codes", "stop_id", "logps", "sampling", "id"}
"""What is read of a row. Another key is refused: what it says (a voice, a stop) would be left out of the scoring."""
PASSED = {"seed", "end_reason", "processed_logps", "reference_seconds", "max_seconds", "category", "provenance"}
"""Of candidates and prompts of our own, which change nothing."""
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
        PromptError: messages that are none, likewise.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # (a text may hold other ends of lines)
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
    row = _keys(row, wrong)
    if row.get("codec") not in (None, codec.name):
        raise wrong(f"the codes are of codec {row['codec']!r}, the model's codec is {codec.name!r}",
                    "score them with a model of their family (model.path), or leave codec out where it is wrong")
    for key in ("codes", "logps"):
        if not isinstance(row.get(key), list):
            raise wrong(f"{key} is missing, or no list")
    speech = _speech(row, codec, wrong)
    name = name if row.get("id") is None else str(row["id"])
    return Sample(name, _prompt(row, prompts, speaker, where, wrong), speech, _logps(row["logps"], speech, wrong),
                  _sampling(row.get("sampling"), wrong))


def _keys(row: dict[str, Any], wrong: Any) -> dict[str, Any]:
    """The row by the names of KEYS."""
    known = sorted(KEYS | ALIASES.keys())
    for key in row:
        if key not in KEYS | ALIASES.keys() | PASSED:
            near = difflib.get_close_matches(key, known, n=1)
            raise wrong(f"unknown key {key!r}", f"did you mean {near[0]}?" if near else
                        f"leave it out; keys are {', '.join(sorted(KEYS))}")
    found: dict[str, Any] = {}
    for key, value in row.items():
        name = ALIASES.get(key, key)
        if name in found and found[name] != value:
            raise wrong(f"{name} is given twice, and not the same", f"give one of {name} and its other names")
        found[name] = value
    return found


def _prompt(row: dict[str, Any], prompts: dict[str, Prompt], speaker: str, where: str, wrong: Any) -> Prompt:
    """The row's own text, or a prompt that is known by its id; null is as good as left out."""
    for key in ("text", "speaker", "lang", "prompt_id"):
        if row.get(key) is not None and not isinstance(row[key], str):
            raise wrong(f"{key} is no text: {row[key]!r}")
    if row.get("text") is not None:
        if not row["text"].strip():
            raise wrong("text is empty", "give the text that was spoken")
        messages = None if row.get("messages") is None else check_messages(row["messages"], where)
        return Prompt(row["text"], row.get("speaker") or speaker, messages=messages, lang=row.get("lang") or "en")
    if row.get("prompt_id") is None:
        raise wrong("neither text nor prompt_id is given", "give text and speaker, or the prompt_id of a prompt")
    if row["prompt_id"] not in prompts:
        raise wrong(f"prompt {row['prompt_id']!r} is not among the configuration's",
                    "give text and speaker, or the configuration whose prompts these are (-c)")
    return prompts[row["prompt_id"]]


def _speech(row: dict[str, Any], codec: Codec, wrong: Any) -> Speech:
    """Codes flat or frame by frame; the stop in ``stop_id``, or last among them."""
    ids = f"codes of {codec.name}: {codec.groups} a frame, and the stop last or in stop_id"
    codes: list[Any] = []
    for at, item in enumerate(row["codes"]):
        if isinstance(item, list) and len(item) != codec.groups and not (
                at == len(row["codes"]) - 1 and len(item) == 1 and item[0] in codec.stops):
            raise wrong(f"frame {at} has {count(len(item), 'code')}, not {codec.groups}", ids)
        codes += item if isinstance(item, list) else [item]
    if not all(type(c) is int for c in codes):
        raise wrong("codes are whole numbers, flat or one list a frame")
    speech, stop = codec.speech(codes), row.get("stop_id")
    if stop is not None:
        if type(stop) is not int or stop not in codec.stops:
            raise wrong(f"stop_id {stop!r} is none of the codec's: {', '.join(map(str, codec.stops))}")
        if speech.stop_id not in (None, stop):
            raise wrong(f"stop_id is {stop}, the last of codes the stop {speech.stop_id}", "give the one that was said")
        speech = Speech(speech.codes, stop, codec)
    if not speech.ids:
        raise wrong("nothing was said: codes is empty, and there is no stop_id", ids)
    invalid = codec.invalid(speech.codes)
    if invalid is not None:
        book = speech.codes.index(invalid) % codec.groups
        raise wrong(f"{invalid} is no code of {codec.name}" if invalid not in codec.stops else
                    f"the stop {invalid} is not the last of codes", f"{ids}; each from 0 to {codec.sizes[book] - 1}")
    if len(speech.codes) % codec.groups:
        raise wrong(f"{len(speech.codes)} codes are no whole frames of {codec.groups}", ids)
    return speech


def _logps(values: list[Any], speech: Speech, wrong: Any) -> Logps:
    """One a step, or a list of one a code; of the stop a list of one, or its number alone.

    How many steps there are is not looked at: what is missing, the diagnosis says.
    """
    groups, nested = speech.codec.groups, any(isinstance(v, list) for v in values)
    if not values:
        raise wrong("logps is empty", "one number a step: each frame, and the stop")
    rows = [v if isinstance(v, list) else [v] for v in values]
    out = np.zeros((len(rows), groups if nested else 1))
    for step, row in enumerate(rows):
        asked = groups if nested and step < speech.frames else 1
        if len(row) != asked:
            raise wrong(f"logps of step {step} are {count(len(row), 'number')}, not {asked}",
                        f"one number a step; or lists of {groups} for each of the {count(speech.frames, 'frame')}, and "
                        "of 1 for the stop")
        for at, value in enumerate(row):
            if type(value) not in (int, float):
                raise wrong(f"logps are numbers, one a step, or lists of {groups}, one a code: step {step} has "
                            f"{value!r}")
            if not abs(value) <= sys.float_info.max:
                raise wrong(f"step {step} of logps is not finite: {str(value)[:20]}",
                            "what was said has a finite log-prob: look at what the engine records")
            out[step, at] = value
    return out[:, 0] if out.shape[1] == 1 else out


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
