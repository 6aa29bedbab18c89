"""Scoring candidates of the micro model: the scoring stage's own function with preset `reward`, against one by one.

One by one means transformers' module with upstream's defaults for an utterance's speech, then the scorer on that
utterance. Both on one thread, as the stage runs in its workers.
"""

from __future__ import annotations

import argparse
from typing import Any

from talker_rl.config import RunConfig
from talker_rl.records.rows import to_row
from talker_rl.reward.scorer import ScoreItem, Scorer, to_score_row
from talker_rl.speech.qwen2_5_omni.token2wav import utterance_noise
from talker_rl.stages import worker

from ._measure import Row, compare
from ._speech import spoken
from ._upstream import upstream_wave


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--candidates", type=int, default=64)


def rows(args: argparse.Namespace) -> list[Row]:
    """One row; the difference is the largest of two rewards (the decodes differ)."""
    said = spoken(8 if args.quick else args.candidates, "micro:train")
    config = RunConfig.model_validate({"model": {"path": "micro", "device": "cpu"}, "token2wav": {"preset": "reward"}})
    judging = worker.Judging(config.token2wav, config.reward, list(said.prompts), seed=0)
    task = worker.Task(config.model, judging=judging, candidates=list(said.candidates))
    scorer = Scorer(config.reward)

    def theirs() -> list[dict[str, Any]]:
        out = []
        with worker.one_thread():
            for prompt, candidate, seed in zip(said.prompts, said.candidates, said.seeds, strict=True):
                noise = utterance_noise(seed, 2 * len(candidate.codes), 80)
                wave = upstream_wave(said.omni.token2wav, candidate.codes, said.omni.speaker(candidate.speaker), noise)
                item = ScoreItem.from_candidate(prompt, candidate, wave)
                out.append(to_row(to_score_row(item, scorer.score([item])[0])))
        return out

    def changed(ours: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
        return max(abs(a["reward"] - b["reward"]) for a, b in zip(ours, other, strict=True))

    case = f"{len(said.candidates)} candidates, preset reward; against one by one with upstream's defaults"
    return [compare("score", case, lambda: [to_row(row) for row in worker.work(task).scores], theirs, changed,
                    repeats=args.repeats)]
