"""The work on one shard: sample, decode, score. Runs in this process or in a worker; loaded models stay loaded.

A task is records and settings, so that it means the same wherever it runs. Samples of rollouts, their scores,
and what checkpoints and variants say on dev and eval are one kind of task, with or without either half.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from talker_rl.base.errors import DataError
from talker_rl.base.processes import one_thread
from talker_rl.records.candidate import Candidate
from talker_rl.records.codec import codec_named
from talker_rl.records.evaluation import EvalRow
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow
from talker_rl.reward.config import RecognizerConfig, RewardConfig
from talker_rl.speech.config import ModelConfig, SamplingConfig, Token2WavConfig
from talker_rl.stages.inputs import SPEAKING
from talker_rl.stages.worn import policy_with

if TYPE_CHECKING:
    from talker_rl.speech.protocol import Generator



@dataclass
class AudioSpec:
    """Which speech of a task is written where."""

    folder: Path
    format: str
    prompt_ids: list[str] | None = None
    """None keeps all."""


@dataclass
class Sampling:
    """Candidates of some prompts are sampled."""

    policy: Path | None
    """Folder of an adapter (or of full Talker weights); None is the base."""
    conditioning: Path
    prompt_ids: list[str]
    seeds: list[list[int]]
    settings: SamplingConfig
    batch_size: int
    maker: str = ""
    """Stands in the candidates' ids before their numbers."""


@dataclass
class Judging:
    """Candidates are decoded, and recognizers judge them."""

    token2wav: Token2WavConfig
    reward: RewardConfig
    prompts: list[Prompt]
    seed: int
    """Root of the decoder's seeds: one per prompt, so that a prompt's candidates differ in their codes only."""
    audio: AudioSpec | None = None
    rows: Literal["score", "dev", "eval"] = "score"
    """score: scores by the reward recognizer. dev: flat rows by it. eval: flat rows by the evaluator, with the reward
    recognizer's errors beside."""
    extras: int = 0
    """In flat rows: on so many candidates per prompt, speaker similarity and F0."""


@dataclass
class Task:
    """A shard of work."""

    model: ModelConfig
    sampling: Sampling | None = None
    """None: the candidates are given."""
    judging: Judging | None = None
    """None: they are sampled, and that is all."""
    candidates: list[Candidate] = field(default_factory=list)


@dataclass
class Made:
    """What comes of a task."""

    candidates: list[Candidate] = field(default_factory=list)
    """Those that it sampled, in order of prompt, then seed."""
    scores: list[ScoreRow] = field(default_factory=list)
    """By the reward recognizer, in the order of the candidates."""
    rows: list[EvalRow] = field(default_factory=list)
    """Flat rows in that order, where they were asked for."""
    audio: dict[str, str] = field(default_factory=dict)
    """Name and SHA-256 of the files of speech that were kept."""


def work(task: Task) -> Made:
    """Do a task."""
    made = Made(_sample(task.model, task.sampling) if task.sampling else [])
    if task.judging is not None:
        _judge(task.model, task.judging, made.candidates if task.sampling else task.candidates, made)
    return made


# -- models ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _generator(model_json: str, identities: tuple[str, ...]) -> Generator:
    from talker_rl.speech.registry import load

    return load(ModelConfig.model_validate_json(model_json), SPEAKING)


def generator_of(settings: ModelConfig) -> Generator:
    """Talker and decoder of a model, loaded once per process, and again when its files have changed."""
    from talker_rl.speech.registry import family_of

    family = family_of(settings.path)
    return _generator(settings.model_dump_json(), tuple(family.identity(settings, part) for part in SPEAKING))


@lru_cache(maxsize=4)
def _scorer(reward_json: str, recognizer_json: str) -> Any:
    from talker_rl.reward.scorer import Scorer

    reward = RewardConfig.model_validate_json(reward_json)
    return Scorer(reward.model_copy(update={"recognizer": RecognizerConfig.model_validate_json(recognizer_json)}))


# -- halves of a task -----------------------------------------------------------------------------------------------


def _sample(model: ModelConfig, asked: Sampling) -> list[Candidate]:
    from talker_rl.speech.cache import ConditioningCache
    from talker_rl.speech.protocol import SampleRequest

    generator = generator_of(model)
    stored = ConditioningCache.opened(asked.conditioning).load(asked.prompt_ids)
    requests = [SampleRequest(stored[p], seeds) for p, seeds in zip(asked.prompt_ids, asked.seeds, strict=True)]
    with one_thread(), policy_with(generator, asked.policy) as policy:
        candidates = policy.sample(requests, asked.settings, batch_size=asked.batch_size)
    ids = [f"{p}-{asked.maker}{k}" for p, seeds in zip(asked.prompt_ids, asked.seeds, strict=True)
           for k in range(len(seeds))]
    return [replace(c, candidate_id=name) for c, name in zip(candidates, ids, strict=True)]


def decode(
    model: ModelConfig, token2wav: Token2WavConfig, seed: int, candidates: list[Candidate]
) -> dict[str, np.ndarray]:
    """Decoded speech by candidate id; candidates that cannot be decoded have none."""
    from talker_rl.speech.candidates import decode_candidates

    generator = generator_of(model)
    with one_thread():
        return decode_candidates(generator, candidates, token2wav, seed)


def _judge(model: ModelConfig, asked: Judging, candidates: list[Candidate], made: Made) -> None:
    from talker_rl.reward.scorer import ScoreItem, ScoreResult, to_score_row

    prompts = {p.prompt_id: p for p in asked.prompts}
    strangers = [c.candidate_id for c in candidates if c.prompt_id not in prompts]
    if strangers:
        raise DataError(f"Candidate {strangers[0]} belongs to no prompt of this run", fix="run the rollouts again")
    audio = decode(model, asked.token2wav, asked.seed, candidates)
    if asked.audio is not None:
        made.audio = _keep_audio(asked.audio, candidates, audio)
    items = [ScoreItem.from_candidate(prompts[c.prompt_id], c, audio.get(c.candidate_id)) for c in candidates]
    reward = asked.reward

    def heard(which: str) -> list[Any]:
        scorer, size = _scorer(reward.model_dump_json(), getattr(reward, which).model_dump_json()), reward.batch_size
        return [r for at in range(0, len(items), size) for r in scorer.score(items[at : at + size])]

    with one_thread():
        rewarded = heard("recognizer")
        made.scores = [to_score_row(item, r) for item, r in zip(items, rewarded, strict=True)]
        if asked.rows == "score":
            return
        judged = heard("evaluator") if asked.rows == "eval" else rewarded
        evaluated = [to_score_row(item, r) for item, r in zip(items, judged, strict=True)]
        written = [r.text if isinstance(r, ScoreResult) else "" for r in judged]
        measured = _extras(generator_of(model), asked.extras, candidates, audio)
    made.rows = [
        _flat_row(prompts[c.prompt_id], c, row, by_reward) | {"heard": text} | extra
        for c, row, by_reward, text, extra in zip(candidates, evaluated, made.scores, written, measured, strict=True)
    ]


def _flat_row(prompt: Prompt, candidate: Candidate, row: ScoreRow, by_reward: ScoreRow) -> EvalRow:
    """One flat row: the evaluator's components as columns, the reward recognizer's under ``reward_*``.

    ``transcript`` holds the evaluator's tokens; what it wrote, marks and case included, is added as ``heard``.
    """
    heard = by_reward.components if by_reward.status == "ok" else {}
    counts = [heard.get(name) for name in ("substitutions", "deletions", "insertions")]
    return {
        "prompt_id": prompt.prompt_id,
        "candidate_id": candidate.candidate_id,
        "seed": candidate.seed,
        "text": prompt.text,
        "speaker": prompt.speaker,
        "lang": prompt.lang,
        "reference_seconds": prompt.reference_seconds,
        "end_reason": candidate.end_reason,
        "length": len(candidate.codes),
        "status": row.status,
        "error_code": row.error_code,
        "error_message": row.error_message,
        "transcript": " ".join(row.transcript),
        "errors": row.errors,
        "spans": [value for span in row.spans for value in span],
        **row.components,
        "reward": by_reward.reward,
        "reward_errors": None if any(n is None for n in counts) else sum(counts),
        "reward_wer": heard.get("wer"),
        "reward_pause_error": heard.get("pause_error"),
        "reward_transcript": " ".join(by_reward.transcript),
    }


def _extras(
    generator: Generator, count: int, candidates: list[Candidate], audio: dict[str, np.ndarray]
) -> list[EvalRow]:
    """Speaker similarity and F0 of each prompt's first ``count``; null elsewhere and where there is no speech. No
    columns where none are asked for."""
    from talker_rl.evaluation.prosody import f0_stats

    rows: list[EvalRow] = []
    seen: Counter[str] = Counter()
    for candidate in candidates:
        sound = audio.get(candidate.candidate_id)
        seen[candidate.prompt_id] += 1
        if sound is None or seen[candidate.prompt_id] > count:
            rows.append(dict.fromkeys(("speaker_similarity", "f0_mean", "f0_spread")) if count else {})
            continue
        f0 = f0_stats(sound, generator.codec.sample_rate)
        rows.append({
            "speaker_similarity": generator.similarity(sound, candidate.speaker),
            "f0_mean": f0.mean_hz if f0 else None,
            "f0_spread": f0.spread_semitones if f0 else None,
        })
    return rows


def _keep_audio(spec: AudioSpec, candidates: list[Candidate], audio: dict[str, np.ndarray]) -> dict[str, str]:
    """Write the kept speech as Opus or FLAC, each file whole or not at all; name -> SHA-256."""
    import io

    import soundfile

    from talker_rl.base.disk import atomic_write

    kept = None if spec.prompt_ids is None else set(spec.prompt_ids)
    written: dict[str, str] = {}
    folder, suffix = spec.folder, "opus" if spec.format == "opus" else "flac"
    for candidate in candidates:
        sound = audio.get(candidate.candidate_id)
        if sound is None or (kept is not None and candidate.prompt_id not in kept):
            continue
        file = folder / f"{candidate.candidate_id}.{suffix}"
        if file.parent != folder:  # (ids are checked where they are read; a run may be older than that)
            raise DataError(f"The candidate id {candidate.candidate_id!r} is no file name", where=str(folder),
                            fix="leave prompt_id out, or write it without / and begin the run again")
        sink = io.BytesIO()
        kind = {"format": "OGG", "subtype": "OPUS"} if spec.format == "opus" else {"format": "FLAC"}
        soundfile.write(sink, np.clip(sound, -1.0, 1.0), codec_named(candidate.codec).sample_rate, **kind)
        written[file.name] = atomic_write(file, sink.getvalue())
    return written
