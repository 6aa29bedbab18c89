"""The work on one shard: sample, decode, score. Runs in this process or in a worker; loaded models stay loaded.

A task is plain data in and plain rows out, so that it means the same wherever it runs.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from talker_rl.base.errors import CheckpointError, DataError
from talker_rl.base.ids import derive_seed
from talker_rl.base.processes import one_thread
from talker_rl.records.candidate import Candidate
from talker_rl.records.codec import codec_named
from talker_rl.records.prompt import Prompt
from talker_rl.records.rows import from_row, to_row
from talker_rl.reward.config import RecognizerConfig, RewardConfig
from talker_rl.speech.config import SPEAKING, ModelConfig, SamplingConfig, Token2WavConfig


@dataclass
class AudioSpec:
    """Which speech of a task is written where."""

    folder: str
    format: str
    prompt_ids: list[str] | None = None
    """None keeps all."""


@dataclass
class RolloutTask:
    """Sample candidates for some prompts."""

    model: dict[str, Any]
    policy: str | None
    """Folder of an adapter (or of full Talker weights); None is the base."""
    conditioning: str
    prompt_ids: list[str]
    seeds: list[list[int]]
    sampling: dict[str, Any]
    batch_size: int


@dataclass
class ScoreTask:
    """Decode candidates and let recognizers judge them."""

    model: dict[str, Any]
    token2wav: dict[str, Any]
    reward: dict[str, Any]
    prompts: list[dict[str, Any]]
    candidates: list[dict[str, Any]]
    seed: int
    """Root of the decoder's seeds: one per prompt, so that a prompt's candidates differ in their codes only."""
    audio: AudioSpec | None = None
    mode: Literal["score", "dev", "eval"] = "score"
    """score: score rows by the reward recognizer. dev: flat rows by it. eval: flat rows by the evaluator, with the
    reward recognizer's errors beside."""
    extras: int = 0
    """In flat rows: on so many candidates per prompt, speaker similarity and F0."""


@dataclass
class EvalTask:
    """Sample and score in one go: what evaluation and the choice of a checkpoint do."""

    rollout: RolloutTask
    score: ScoreTask = field(default_factory=lambda: ScoreTask({}, {}, {}, [], [], 0))


# -- models ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _omni(model_json: str, hashes: tuple[str, ...]) -> Any:
    from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni

    return load_omni(ModelConfig.model_validate_json(model_json), parts=SPEAKING)


def omni_of(model: dict[str, Any]) -> Any:
    """Talker and token2wav of a model, loaded once per process, and again when its files have changed."""
    from talker_rl.speech.qwen2_5_omni.checkpoint import part_hash

    settings = ModelConfig(**model)
    return _omni(settings.model_dump_json(), tuple(part_hash(settings, part) for part in SPEAKING))


@lru_cache(maxsize=4)
def _scorer(reward_json: str, recognizer_json: str) -> Any:
    from talker_rl.reward.scorer import Scorer

    reward = RewardConfig.model_validate_json(reward_json)
    return Scorer(reward.model_copy(update={"recognizer": RecognizerConfig.model_validate_json(recognizer_json)}))


def scorer_of(reward: dict[str, Any], which: str) -> Any:
    """Scorer with the reward's ``recognizer`` or ``evaluator``, loaded once per process."""
    config = RewardConfig(**reward)
    return _scorer(config.model_dump_json(), getattr(config, which).model_dump_json())


def forget_models() -> None:
    """Drop what is loaded."""
    _omni.cache_clear()
    _scorer.cache_clear()


@contextlib.contextmanager
def policy_on(omni: Any, policy: str | None) -> Iterator[Any]:
    """The Talker with a policy on it; the base again afterwards."""
    if policy is None:
        yield omni.talker
        return
    folder = Path(policy)
    if (folder / "adapter_config.json").exists():
        from talker_rl.speech.lora import load_lora

        wrapped = load_lora(omni.talker, folder)
        try:
            yield wrapped
        finally:
            wrapped.unload()
        return
    from talker_rl.speech.files import read_tensors, weight_files

    state = {k.removeprefix("talker."): v for k, v in read_tensors(weight_files(folder)).items()}
    before = {k: v.clone() for k, v in omni.talker.state_dict().items()}
    try:
        try:
            omni.talker.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError("These Talker weights are of another geometry", where=str(folder),
                                  fix="use weights of the model that `model.path` names") from error
        yield omni.talker
    finally:
        omni.talker.load_state_dict(before)


# -- tasks ----------------------------------------------------------------------------------------------------------


def sample(task: RolloutTask) -> list[dict[str, Any]]:
    """Candidate rows, in order of prompt, then seed."""
    from talker_rl.speech.cache import ConditioningCache
    from talker_rl.speech.qwen2_5_omni.rollouts import sample_candidates

    omni = omni_of(task.model)
    stored = ConditioningCache(task.conditioning, strict=True).load(task.prompt_ids)
    with one_thread(), policy_on(omni, task.policy) as talker:
        candidates = sample_candidates(
            talker, [stored[p] for p in task.prompt_ids], task.seeds,
            SamplingConfig(**task.sampling), batch_size=task.batch_size,
        )
    return [to_row(c) for c in candidates]


def speech(task: ScoreTask, candidates: list[Candidate]) -> dict[str, np.ndarray]:
    """Decoded speech by candidate id; candidates that cannot be decoded have none."""
    from talker_rl.speech.qwen2_5_omni.token2wav import decode

    omni = omni_of(task.model)
    able = [c for c in candidates if c.codes and c.end_reason != "invalid_code"]
    with one_thread():
        audio = decode(
            omni.need("token2wav"), [c.codes for c in able], [omni.speaker(c.speaker) for c in able],
            [derive_seed(task.seed, "token2wav", c.prompt_id) for c in able], Token2WavConfig(**task.token2wav),
        )
    return {c.candidate_id: np.asarray(a, dtype=np.float32) for c, a in zip(able, audio, strict=True)}


def score(task: ScoreTask) -> list[dict[str, Any]]:
    """Score rows (or evaluation rows) of the task's candidates, in their order."""
    from talker_rl.reward.scorer import ScoreItem, ScoreResult, to_score_row

    prompts = {p["prompt_id"]: from_row(Prompt, p) for p in task.prompts}
    candidates = [from_row(Candidate, row) for row in task.candidates]
    strangers = [c.candidate_id for c in candidates if c.prompt_id not in prompts]
    if strangers:
        raise DataError(f"Candidate {strangers[0]} belongs to no prompt of this run", fix="run the rollouts again")
    audio = speech(task, candidates)
    if task.audio is not None:
        _keep_audio(task.audio, candidates, audio)
    items = [ScoreItem.from_candidate(prompts[c.prompt_id], c, audio.get(c.candidate_id)) for c in candidates]
    batch = RewardConfig(**task.reward).batch_size

    def judge(which: str) -> list[Any]:
        scorer = scorer_of(task.reward, which)
        return [r for at in range(0, len(items), batch) for r in scorer.score(items[at : at + batch])]

    with one_thread():
        rewarded = judge("recognizer")
        rewards = [to_score_row(item, r) for item, r in zip(items, rewarded, strict=True)]
        if task.mode == "score":
            return [to_row(r) for r in rewards]
        judged = judge("evaluator") if task.mode == "eval" else rewarded
        evaluated = [to_score_row(item, r) for item, r in zip(items, judged, strict=True)]
        written = [r.text if isinstance(r, ScoreResult) else "" for r in judged]
        measured = _extras(task, candidates, audio) if task.extras else [{} for _ in candidates]
    return [
        _evaluation_row(prompts[c.prompt_id], c, row, by_reward) | {"heard": heard} | extra
        for c, row, by_reward, heard, extra in zip(candidates, evaluated, rewards, written, measured, strict=True)
    ]


def sample_and_score(task: EvalTask) -> dict[str, list[dict[str, Any]]]:
    """``candidates`` and ``rows`` of an evaluation shard."""
    candidates = sample(task.rollout)
    task.score.candidates = candidates
    return {"candidates": candidates, "rows": score(task.score)}


def _evaluation_row(prompt: Prompt, candidate: Candidate, row: Any, by_reward: Any) -> dict[str, Any]:
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


def _extras(task: ScoreTask, candidates: list[Candidate], audio: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Speaker similarity and F0 of each prompt's first candidates; null elsewhere and where there is no speech."""
    from talker_rl.evaluation.prosody import f0_stats
    from talker_rl.speech.qwen2_5_omni.speaker import speaker_similarity

    omni = omni_of(task.model)
    rows: list[dict[str, Any]] = []
    seen: Counter[str] = Counter()
    for candidate in candidates:
        sound = audio.get(candidate.candidate_id)
        seen[candidate.prompt_id] += 1
        if sound is None or seen[candidate.prompt_id] > task.extras:
            rows.append(dict.fromkeys(("speaker_similarity", "f0_mean", "f0_spread")))
            continue
        f0 = f0_stats(sound, codec_named(candidate.codec).sample_rate)
        rows.append({
            "speaker_similarity": speaker_similarity(omni.token2wav, sound, omni.speaker(candidate.speaker)),
            "f0_mean": f0.mean_hz if f0 else None,
            "f0_spread": f0.spread_semitones if f0 else None,
        })
    return rows


def _keep_audio(spec: AudioSpec, candidates: list[Candidate], audio: dict[str, np.ndarray]) -> None:
    """Write the kept speech as Opus or FLAC, each file whole or not at all."""
    import io

    import soundfile

    from talker_rl.base.disk import atomic_write

    kept = None if spec.prompt_ids is None else set(spec.prompt_ids)
    folder, suffix = Path(spec.folder), "opus" if spec.format == "opus" else "flac"
    for candidate in candidates:
        sound = audio.get(candidate.candidate_id)
        if sound is None or (kept is not None and candidate.prompt_id not in kept):
            continue
        file = folder / f"{candidate.candidate_id}.{suffix}"
        if file.parent != folder:  # (ids are checked where they are read; a run may be older than that)
            raise DataError(f"The candidate id {candidate.candidate_id!r} is no file name", where=spec.folder,
                            fix="leave prompt_id out, or write it without / and begin the run again")
        sink = io.BytesIO()
        kind = {"format": "OGG", "subtype": "OPUS"} if spec.format == "opus" else {"format": "FLAC"}
        soundfile.write(sink, np.clip(sound, -1.0, 1.0), codec_named(candidate.codec).sample_rate, **kind)
        atomic_write(file, sink.getvalue())
