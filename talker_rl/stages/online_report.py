"""What the report shows of an online training, read from its folders: figures of its samplings, groups to listen to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from talker_rl.base.figures import written
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow, counted_errors
from talker_rl.records.valued import Valued
from talker_rl.report.clips import spaced
from talker_rl.report.credit import by_token, credit_of
from talker_rl.report.model import Clip, Comparison
from talker_rl.report.online import (
    DIFFERENCE,
    Alarm,
    Online,
    Sampling,
    check_ups,
    curve,
    kl_by_decodes,
    times_by_decodes,
    window_of,
)
from talker_rl.rounds import train_stage
from talker_rl.stages.context import Context
from talker_rl.store.shards import ShardFolder
from talker_rl.train.advantages import says_something
from talker_rl.train.groups import Group, grouped

if TYPE_CHECKING:
    from talker_rl.train.online_config import OnlineConfig

MakeClip = Callable[[str, np.ndarray, str, list[str], Sequence[Sequence[float]], str], Clip]
"""(label, sound, text, what was heard, times, caption) -> clip."""


class Shards:
    """The samplings of an online training of one round, as they lie on disk."""

    def __init__(self, folder: Path, cfg: OnlineConfig, prompts: Sequence[Prompt]) -> None:
        self.cfg, self._prompts = cfg, {prompt.prompt_id: prompt for prompt in prompts}
        self._rollouts, self._scores, self._valued, self.held_out = (
            ShardFolder(folder / name) for name in ("rollouts", "scores", "advantages", "held_out"))

    def __len__(self) -> int:
        """Samplings that were trained on; with overlap another may have been begun."""
        return len(self._valued)

    def groups(self, number: int) -> list[Group]:
        """Those of a sampling, with the rewards and advantages that were trained with."""
        valued = {row.candidate_id: row for row in self._valued.read(number, Valued)}
        groups = grouped(self._prompts, self._rollouts.read(number, Candidate), self._scores.read(number, ScoreRow),
                         self.cfg)
        for group in groups:
            mine = [valued[candidate.candidate_id] for candidate in group.candidates]
            group.rewards, group.values = [row.reward for row in mine], [row.advantage for row in mine]
            group.advantages = [np.asarray(row.steps) for row in mine]
        return groups

    def decodes(self, number: int) -> int:
        """Candidates of a sampling."""
        return self._valued.row_count(number)


def shards_of(ctx: Context, variant: str, index: int) -> Shards:
    """Of a round."""
    cfg = ctx.config.variants[variant].training().online
    assert cfg is not None
    return Shards(ctx.run.path / train_stage(variant, index) / "online", cfg, ctx.prompts("train"))


def figures(ctx: Context, variant: str, log: list[dict[str, Any]]) -> Online:
    """All rounds, one after the other.

    Args:
        log: rows of ``train/<variant>/log.jsonl``.
    """
    from talker_rl.train.guards import rung
    from talker_rl.train.live_metrics import held_out_metrics, sampling_metrics

    training, resamples = ctx.config.variants[variant].training(), ctx.config.eval.bootstrap_samples
    online = Online([])
    heard: dict[int, list[dict[str, Any]]] = {}
    for index in range(1, ctx.config.iterations + 1):
        shards = shards_of(ctx, variant, index)
        cfg, mine = shards.cfg, [row for row in log if row.get("round", 1) == index]
        ends = np.cumsum([online.samplings[-1].decodes if online.samplings else 0,
                          *(shards.decodes(i) for i in range(len(shards)))]).tolist()
        found = []
        for number in range(len(shards)):
            groups = shards.groups(number)
            trained = max(0, number - cfg.overlap)  # with overlap the policy is that of one sampling ago
            found.append(Sampling(ends[trained], ends[number + 1], sampling_metrics(groups, ends[number + 1]),
                                  [row for group in groups for row in _rows(group)]))
        checked = [shards.held_out.rows(i) for i in range(len(shards.held_out))]
        heard |= {ends[rows[0]["sampling"]]: rows for rows in checked if rows}
        kl = [row for row in mine if "kl" in row]
        history = [{**one.metrics, **_last([row for row in kl if row["step"] <= (i + 1) * cfg.steps_per_sampling])}
                   for i, one in enumerate(found)]
        alarms = rung(history, [held_out_metrics(rows) for rows in checked], cfg.guards,
                      cfg.held_out.every if cfg.held_out else 1)
        online.samplings += found
        online.kl += kl_by_decodes(kl, ends[1:], cfg.steps_per_sampling)
        online.times += times_by_decodes(mine, ends[0])
        online.differences += [row[DIFFERENCE] for row in mine if DIFFERENCE in row]
        online.alarms += [Alarm(name, what, ends[number + 1]) for name, (number, what) in alarms.items()]
        online.credit = cfg.advantages.credit if training.learned == "samples" else ""
        online.guarded, online.overlap = 2 * cfg.guards.window, cfg.overlap
    online.window = window_of(len(online.samplings))
    online.reward = curve(online.samplings, "reward", None, online.window, resamples)
    online.wer = curve(online.samplings, "errors", "words", online.window, resamples)
    online.held_out = check_ups(heard, resamples)
    return online


def _rows(group: Group) -> list[dict[str, Any]]:
    """A row a candidate, as :class:`Sampling` has them."""
    found = []
    for score, reward in zip(group.scores, group.rewards, strict=True):
        found.append({"prompt_id": group.prompt.prompt_id, "text": group.prompt.text, "lang": group.prompt.lang,
                      "reward": reward, "errors": counted_errors(score.components),
                      "words": score.components.get("ref_words") or 0})
    return found


def _last(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {"kl": rows[-1]["kl"]} if rows else {}


def groups_to_hear(
    ctx: Context, variant: str, decode: Callable[[list[Candidate]], dict[str, np.ndarray]], clip: MakeClip
) -> dict[str, list[Comparison]]:
    """Groups of the first sampling and of the last, evenly spaced in each: ``report.pairs`` in all, none hand-picked.

    Args:
        decode: speech by candidate id; what cannot be decoded has none.
    """
    wanted, last = ctx.config.report.pairs, ctx.config.iterations
    ends = [shards_of(ctx, variant, 1), shards_of(ctx, variant, last)]
    credited = ctx.config.variants[variant].training().learned == "samples"
    one = last == 1 and len(ends[0]) == 1
    sides = [("The only sampling, of the policy as training began", ends[0], 0, wanted)] if one else [
        ("The first sampling, of the policy as training began", ends[0], 0, (wanted + 1) // 2),
        (f"The last sampling, number {len(ends[1])}" + (f" of round {last}" if last > 1 else ""), ends[1],
         len(ends[1]) - 1, wanted // 2)]
    shown = {heading: spaced(shards.groups(number), count) for heading, shards, number, count in sides if count}
    sounds = decode([candidate for groups in shown.values() for group in groups for candidate in group.candidates])
    return {heading: [comparison(group, sounds, clip, credited=credited) for group in groups]
            for heading, groups in shown.items()}


def comparison(group: Group, sounds: dict[str, np.ndarray], clip: MakeClip, *, credited: bool) -> Comparison:
    """All candidates of a group, the one with the largest reward first.

    Args:
        credited: whether their advantages were trained on.
    """
    full = max((float(np.abs(steps).max()) for steps in group.advantages if len(steps)), default=0.0)
    ranked = sorted(range(len(group.candidates)), key=lambda k: -group.rewards[k])
    clips = []
    for rank, k in enumerate(ranked, 1):
        candidate, score = group.candidates[k], group.scores[k]
        sound = sounds.get(candidate.candidate_id, np.zeros(0, dtype=np.float32))
        made = clip(f"{rank}. reward {group.rewards[k]:.2f}", sound, group.prompt.text, score.transcript, score.spans,
                    _caption(group, k, credited=credited))
        if credited and made.strip is not None:
            speech, marks = candidate.speech, made.strip.marks
            made.credit = credit_of(group.advantages[k].tolist(), speech.frames, speech.codec.rate, marks, full)
            made.credits = by_token(made.alignment, marks, made.credit.marks)
        clips.append(made)
    about = "" if says_something(group.rewards) else "All rewards are equal: nothing is learned from this group."
    return Comparison(group.prompt.text, group.candidates[0].speaker, clips, about)


def _caption(group: Group, k: int, *, credited: bool) -> str:
    score, candidate = group.scores[k], group.candidates[k]
    parts = [f"advantage\u00a0{written(group.values[k], '{:+.2f}')}"] if credited else []
    if score.reward is None:
        parts.append(f"no score ({score.error_code}): as the worst of its group")
    elif abs(score.reward - group.rewards[k]) > 1e-9:
        parts.append(f"by the rules as the worst of its group (by itself {score.reward:.2f})")
    wer = score.components.get("wer")
    return " · ".join([*parts, *([] if wer is None else [f"WER\u00a0{wer:.2f}"]), f"{candidate.duration:.1f}\u00a0s"])
