"""Groups: the candidates of a prompt, what they earned by the rules, and the advantage of each of their steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field

import numpy as np

from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow
from talker_rl.records.slots import Place, Slot, slots
from talker_rl.records.token_classes import CLASSES, token_classes, words_and_gaps
from talker_rl.records.valued import Valued
from talker_rl.train import credit
from talker_rl.train.advantages import SPREAD, AdvantageConfig, advantages, decoupled
from talker_rl.train.online_config import OnlineConfig


@dataclass
class Group:
    """A prompt's candidates, what they earned, and the advantage of each of their steps."""

    prompt: Prompt
    candidates: list[Candidate]
    scores: list[ScoreRow]
    rewards: list[float]
    values: list[float] = field(default_factory=list)
    """Advantage of each candidate."""
    advantages: list[np.ndarray] = field(default_factory=list)
    """The same on its steps."""
    placed: int = 0
    """Candidates of which it is known where their words lie, where credit asks for it."""

    @property
    def teaches(self) -> bool:
        """Whether any step has an advantage."""
        return any(bool((np.abs(steps) > SPREAD).any()) for steps in self.advantages)

    def rows(self) -> list[Valued]:
        """For the disk."""
        return [Valued(c.prompt_id, c.candidate_id, float(reward), float(value), [round(float(a), 6) for a in steps])
                for c, reward, value, steps in zip(self.candidates, self.rewards, self.values, self.advantages,
                                                   strict=True)]


@dataclass
class Pauses:
    """What counts as a pause (``reward.pauses``)."""

    hit_seconds: float = 0.15
    spurious_seconds: float = 0.25
    tolerance: float = 0.25
    """Seconds by which a word's time may lie outside the sound."""


def grouped(
    prompts: Mapping[str, Prompt], candidates: Sequence[Candidate], scores: Sequence[ScoreRow], cfg: OnlineConfig
) -> list[Group]:
    """Candidates as they were sampled, ``num_generations`` of a prompt after the other, with their scores."""
    known = {s.candidate_id: s for s in scores}
    groups = []
    for start in range(0, len(candidates), cfg.num_generations):
        mine = list(candidates[start : start + cfg.num_generations])
        found = [known[c.candidate_id] for c in mine]
        groups.append(Group(prompts[mine[0].prompt_id], mine, found, _rewards(mine, found, cfg)))
    return groups


def value(groups: Sequence[Group], cfg: OnlineConfig, pauses: Pauses, running: float | None = None) -> None:
    """Give each step of a sampling's candidates its advantage.

    Args:
        running: mean reward of the samplings before, where that is the baseline.
    """
    how = cfg.advantages
    if how.rewards:
        values = decoupled([_components(group, how.rewards, cfg) for group in groups], how)
    else:
        values = advantages([group.rewards for group in groups], how, running)
    for group, each in zip(groups, values, strict=True):
        group.values = each.tolist()
        group.advantages = _credited(group, how, pauses, _at_worst(group.candidates, group.scores, cfg))


def classes_of(group: Group, pauses: Pauses) -> dict[str, list[int]]:
    """What each step of the candidates says, by candidate id, as places in ``CLASSES``; without those of which the
    recognizer's times cannot be used."""
    found = {}
    for candidate, score in zip(group.candidates, group.scores, strict=True):
        with suppress(ValueError):
            if score.status == "ok":
                kinds = token_classes(candidate.speech, group.prompt.text, group.prompt.lang, score.transcript,
                                      score.spans, **asdict(pauses))
                found[candidate.candidate_id] = [CLASSES.index(kind) for kind in kinds]
    return found


def _credited(
    group: Group, cfg: AdvantageConfig, pauses: Pauses, at_worst: Sequence[bool]
) -> list[np.ndarray]:
    steps = [c.speech.steps for c in group.candidates]
    if cfg.credit == "sequence":
        return credit.of_sequences(group.values, steps)
    places = [_places(group.prompt, c, s, pauses) for c, s in zip(group.candidates, group.scores, strict=True)]
    group.placed = sum(map(bool, places))
    if cfg.credit == "what_differs":
        found = credit.of_what_differs(group.values, steps, places)
    else:
        found = credit.of_words(group.values, steps, places, cfg.sequence_share)
    # Who was cut is wrong behind its last word. What else makes a candidate its group's worst, its length or what could
    # not be decoded, is no word's doing: then all of it is to blame.
    whole = credit.of_sequences(group.values, steps)
    return [whole[k] if low and value < 0 and (group.candidates[k].end_reason != "max_tokens" or not places[k])
            else found[k] for k, (low, value) in enumerate(zip(at_worst, group.values, strict=True))]


def _places(prompt: Prompt, candidate: Candidate, score: ScoreRow, pauses: Pauses) -> dict[Place, Slot]:
    """Empty where the recognizer's times cannot be used, or nothing was scored."""
    with suppress(ValueError):
        if score.status == "ok":
            heard = words_and_gaps(prompt.text, prompt.lang, score.transcript, score.spans,
                                   seconds=candidate.speech.seconds, **asdict(pauses))
            return slots(candidate.speech, heard)
    return {}


def demoted(candidates: Sequence[Candidate], cfg: OnlineConfig) -> list[bool]:
    """Which candidates of a group are as its worst, whatever was heard in them: those that were cut, which may be right
    so far, and those out of proportion."""
    middle = float(np.median([c.duration for c in candidates])) if candidates else 0.0
    ratio = cfg.max_length_ratio or float("inf")
    return [c.end_reason == "max_tokens" or c.duration > middle * ratio or c.duration * ratio < middle
            for c in candidates]


OWN_DOING = frozenset(("invalid_code", "empty", "too_long", "hallucination"))
"""Failures of scoring that are the candidate's: codes that are no speech, and speech that no end is found of. Others
are the machinery's, and say nothing of it."""


def _at_worst(candidates: Sequence[Candidate], scores: Sequence[ScoreRow], cfg: OnlineConfig) -> list[bool]:
    """Which are as their group's worst: demoted, or failed by their own doing."""
    return [low or score.error_code in OWN_DOING
            for low, score in zip(demoted(candidates, cfg), scores, strict=True)]


def _rewards(candidates: Sequence[Candidate], scores: Sequence[ScoreRow], cfg: OnlineConfig) -> list[float]:
    """Of a failure that is its own doing, and demoted, a candidate has its group's worst reward, and less than all
    others where these are alike. What the machinery failed to judge has their mean, so that nothing follows from it."""
    low = _at_worst(candidates, scores, cfg)
    known = [s.reward for s in scores if s.reward is not None]
    judged = [s.reward for s, one in zip(scores, low, strict=True) if s.reward is not None and not one]
    worst = min(known, default=0.0)
    if judged and max(judged) - worst <= SPREAD:
        worst = min(worst, 0.0)
    mean = float(np.mean(judged)) if judged else worst
    return [worst if one else mean if s.reward is None else s.reward for s, one in zip(scores, low, strict=True)]


def _components(group: Group, names: Mapping[str, float], cfg: OnlineConfig) -> list[dict[str, float]]:
    """Components of a group; one that is null, of a failure or of a demoted candidate, is as the group's worst by the
    sign of its weight; of what the machinery failed to judge, as the mean."""
    table = [{name: score.reward if name == "reward" else score.components.get(name) for name in names}
             for score in group.scores]
    worst = {name: (min if weight > 0 else max)((v for row in table if (v := row[name]) is not None), default=0.0)
             for name, weight in names.items()}
    mean = {name: float(np.mean([v for row in table if (v := row[name]) is not None] or [0.0])) for name in names}
    found = []
    for low, score, row in zip(_at_worst(group.candidates, group.scores, cfg), group.scores, table, strict=True):
        missing = worst if low or score.status == "ok" else mean
        found.append({name: worst[name] if low else missing[name] if value is None else value
                      for name, value in row.items()})
    return found
