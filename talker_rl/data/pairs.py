"""From scored candidates to preference pairs, with a counted reason for every prompt that gives none.

The order of the rows never matters: prompts and candidates are sorted by id, and the only random draw
(`best_vs_random`) is seeded by the prompt's id.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from rapidfuzz.distance import Levenshtein

from talker_rl.base.errors import DataError
from talker_rl.base.ids import derive_seed, stable_hash
from talker_rl.data.arms import Balance, mislabel
from talker_rl.data.config import PairsConfig
from talker_rl.records.candidate import Candidate
from talker_rl.records.pair import Completion, Pair, pair_id_of
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow, nothing_recognized, nothing_right, right_words

REASONS: dict[str, str] = {
    "no_candidates": "no candidate was sampled for the prompt",
    "not_scored": "candidates exist, none has a score row",
    "all_failed": "every score is a failure (or its reward_key component is null)",
    "one_scored": "only one candidate has a usable score",
    "duplicates": "the usable candidates are all the same code sequence",
    "all_truncated": "every usable candidate was cut at the token limit, none may be chosen",
    "nothing_recognized": "nothing was recognized in any finished candidate, none may be chosen",
    "over_limit": "every finished candidate is over the prompt's max_seconds",
    "length_outlier": "no finished candidate lies within max_length_sd of the prompt's mean length",
    "below_minimum": "no candidate reaches min_chosen_reward",
    "no_margin": "no candidate beats another by the margin",
    "fewer_words": "by reward per second only candidates with fewer right words are better",
    "unwritten": "the order hangs on figures, symbols or characters that recognizers do not write (pairs.unwritten)",
    "length_mismatch": "candidates differ enough in reward, but not within length_match codes",
    "not_longer": "candidates differ enough in reward, but none that is better is longer by chosen_longer_by codes",
    "unbalanced": "its pairs have no others whose chosen is as much shorter (or longer) beside them (balance_lengths)",
    "vote_tie": "the listener voted for a tie",
    "vote_cut": "the listener voted for speech that was cut at the token limit",
}
"""Why a prompt (or a vote) gave no pair; the first that applies, in this order."""

PAIRS_HASH = "sum2:"
"""What `pairs_hash` begins with; hashes of earlier versions have no colon."""


@dataclass(frozen=True)
class _Ranked:
    """A candidate with its rank value and raw reward."""

    candidate: Candidate
    reward: float
    value: float
    over_limit: bool = False
    """Demoted: longer than its prompt allows."""
    silent: bool = False
    """Nothing was recognized in it."""
    right: float | None = None
    """Words of the text that were recognized; None where they were not counted."""
    written: float | None = None
    """Its reward with the words left out that recognizers do not write; None where the text has none of them."""

    @property
    def ids(self) -> list[int]:
        return self.candidate.speech.ids

    @property
    def length(self) -> int:
        """Frames of speech, the stop not counted: of a codec of several codebooks each is many codes."""
        return self.candidate.speech.frames


def select_pairs(
    prompts: Iterable[Prompt], candidates: Iterable[Candidate], scores: Iterable[ScoreRow], cfg: PairsConfig
) -> tuple[list[Pair], dict[str, int]]:
    """Preference pairs, sorted by prompt id, and how many prompts gave none for which reason (see `REASONS`).

    Raises:
        DataError: a candidate or score id appears twice with different content.
    """
    pairs, reason_of = explain_pairs(prompts, candidates, scores, cfg)
    return pairs, dict(sorted(Counter(reason_of.values()).items()))


def explain_pairs(
    prompts: Iterable[Prompt], candidates: Iterable[Candidate], scores: Iterable[ScoreRow], cfg: PairsConfig
) -> tuple[list[Pair], dict[str, str]]:
    """Like `select_pairs`, with the reason of each prompt by its id."""
    selection, part = PairSelection(cfg), (list(prompts), list(candidates), list(scores))
    if selection.looks:
        selection.look(*part)
    pairs = selection.finish(selection.choose(*part))
    return pairs, selection.reason_of


class PairSelection:
    """Chooses pairs of prompts that come in parts, each with all candidates of its prompts: what is held between parts
    are a few numbers a prompt.

    Every part is given to :meth:`choose`; before, where ``looks`` says so, to :meth:`look`; and what was chosen to
    :meth:`finish`, in the parts' order or any other.
    """

    def __init__(self, cfg: PairsConfig) -> None:
        self.cfg = cfg
        self.looks = cfg.length_normalized == "residual"
        """Whether a slope is fitted over all prompts first."""
        self._sums: dict[str, tuple[float, float]] = {}
        self._slope: float | None = None
        self.reason_of: dict[str, str] = {}
        """Prompt id -> why it gave no pair, of those that gave none so far."""
        self._balance = Balance(cfg.balance_lengths) if cfg.balance_lengths is not None else None
        self._chosen: set[str] = set()
        """Prompts with pairs."""

    def look(self, prompts: Iterable[Prompt], candidates: Iterable[Candidate], scores: Iterable[ScoreRow]) -> None:
        """Take in what the slope is fitted to."""
        known = {prompt.prompt_id: prompt for prompt in prompts}
        for prompt_id, ranked in self._usable(known, candidates, scores)[0].items():
            if (sums := _length_sums(ranked)) is not None:
                self._sums[prompt_id] = sums

    def choose(
        self, prompts: Iterable[Prompt], candidates: Iterable[Candidate], scores: Iterable[ScoreRow],
        only: Callable[[list[Pair]], list[Pair]] = list,
    ) -> list[Pair]:
        """Pairs of some prompts, sorted by prompt id.

        Args:
            only: of the pairs that were chosen those that can be used, before lengths are balanced.

        Raises:
            DataError: a candidate or score id appears twice with different content.
        """
        known = {prompt.prompt_id: prompt for prompt in prompts}
        usable, reasons = self._usable(known, candidates, scores)
        pairs: list[Pair] = []
        for prompt_id, ranked in usable.items():
            chosen_rejected, reason = _choose(prompt_id, self._normalized(ranked), self.cfg)
            if reason is not None:
                reasons[prompt_id] = reason
            pairs += [_make_pair(known[prompt_id], better, worse) for better, worse in chosen_rejected]
        pairs = only(pairs)
        self.reason_of |= reasons
        if self._balance is not None:
            self._chosen |= {pair.prompt_id for pair in pairs}
            self._balance.add(pairs)
        return pairs

    def finish(self, pairs: Iterable[Pair]) -> list[Pair]:
        """Of pairs that were chosen those that stay, after all were: in their order."""
        if self._balance is not None:
            self.reason_of |= dict.fromkeys(self._chosen - self._balance.prompts, "unbalanced")
            pairs = [pair for pair in pairs if pair.pair_id in self._balance.kept]
        return list(pairs) if self.cfg.mislabeled is None else mislabel(pairs, self.cfg.mislabeled, self.cfg.seed)

    def _usable(
        self, known: dict[str, Prompt], candidates: Iterable[Candidate], scores: Iterable[ScoreRow]
    ) -> tuple[dict[str, list[_Ranked]], dict[str, str]]:
        """By prompt id the candidates that pairs are made of; of other prompts, the reason why not."""
        by_prompt: dict[str, dict[str, Candidate]] = defaultdict(dict)
        for candidate in candidates:
            group = by_prompt[candidate.prompt_id]
            if group.setdefault(candidate.candidate_id, candidate) != candidate:
                raise DataError(
                    f"candidate {candidate.candidate_id} appears twice with different content",
                    where="rollouts",
                    fix="use rollouts of one run, or give each run's candidates their own ids",
                )
        score_of = index_scores(scores)
        usable: dict[str, list[_Ranked]] = {}
        reason_of: dict[str, str] = {}
        for prompt_id in sorted(known):
            ranked, reason = _usable(by_prompt.get(prompt_id, {}), score_of, self.cfg)
            limit = known[prompt_id].max_seconds
            if self.cfg.demote_over_limit and limit is not None:
                ranked = [replace(r, over_limit=r.candidate.duration > limit) for r in ranked]
            if reason is not None:
                reason_of[prompt_id] = reason
            else:
                usable[prompt_id] = ranked
        return usable, reason_of

    def _normalized(self, ranked: list[_Ranked]) -> list[_Ranked]:
        """Rank values with the effect of duration removed, if the config asks for it."""
        if self.cfg.length_normalized == "off":
            return ranked
        if self.cfg.length_normalized == "per_second":
            return [replace(r, value=r.value / r.candidate.duration) for r in ranked]
        if self._slope is None:  # summed by prompt id, so that the order of the parts does not matter
            covariance = variance = 0.0
            for prompt_id in sorted(self._sums):
                covariance += self._sums[prompt_id][0]
                variance += self._sums[prompt_id][1]
            self._slope = covariance / variance if variance > 0 else 0.0
        slope, spoken = self._slope, [r for r in ranked if not r.silent]
        mean = math.fsum(r.candidate.duration for r in spoken) / len(spoken) if spoken else 0.0
        return [r if r.silent else replace(r, value=r.value - slope * (r.candidate.duration - mean)) for r in ranked]


def pairs_hash(records: Iterable[Pair | Completion]) -> str:
    """Content hash of a set of pairs or completions, independent of their order: the sum of the hashes of all, so that
    none has to be held."""
    total = count = 0
    for r in records:
        content = ([r.pair_id, r.chosen.ids, r.rejected.ids, r.margin] if isinstance(r, Pair)
                   else [r.completion_id, r.speech.ids, [], 0.0])
        total, count = (total + int(stable_hash("pair", content), 16)) % 2**256, count + 1
    return f"{PAIRS_HASH}{count}:{total:064x}"


def is_held_out(prompt_id: str, share: float) -> bool:
    """Whether a prompt's pairs are kept out of training: a property of the prompt, not of who else is there."""
    return share > 0 and derive_seed("held-out", prompt_id) / 2**31 < share


def index_scores(scores: Iterable[ScoreRow]) -> dict[str, ScoreRow]:
    """Score by candidate id; a retried failure gives way to the value that the retry found."""
    found: dict[str, ScoreRow] = {}
    for row in scores:
        before = found.get(row.candidate_id)
        if before is None or (before.status == "failed" and row.status == "ok"):
            found[row.candidate_id] = row
        elif before.status == row.status == "ok" and (before.reward, before.components) != (row.reward, row.components):
            raise DataError(
                f"candidate {row.candidate_id} has two different scores",
                where="scores",
                fix="use the scores of one run: two scorers must not be mixed in one ranking",
            )
    return found


def rank_value(row: ScoreRow, key: str) -> float | None:
    """The finite number that ranks the candidate, or None: failures never become numbers."""
    if row.status != "ok":
        return None
    name = key.lstrip("-")
    value = row.reward if name == "reward" else row.components.get(name)
    if value is None or not math.isfinite(value):
        return None
    return -float(value) if key.startswith("-") else float(value)


def _usable(
    group: dict[str, Candidate], score_of: dict[str, ScoreRow], cfg: PairsConfig
) -> tuple[list[_Ranked], str | None]:
    """Candidates with codes, a speakable end and a score; or the reason why there are too few."""
    if not group:
        return [], "no_candidates"
    if not any(candidate_id in score_of for candidate_id in group):
        return [], "not_scored"
    ranked: list[_Ranked] = []
    for candidate_id in sorted(group):
        candidate, row = group[candidate_id], score_of.get(candidate_id)
        if row is None or candidate.end_reason not in ("eos", "max_tokens") or not candidate.codes:
            continue
        value = rank_value(row, cfg.reward_key)
        if value is not None:
            ranked.append(_Ranked(candidate, value if row.reward is None else row.reward, value,
                                  silent=is_silent(row, cfg.reward_key), right=right_words(row.components),
                                  written=written_reward(row, cfg.reward_key, cfg.unwritten)))
    if len(ranked) < 2:
        return [], "all_failed" if not ranked else "one_scored"
    if cfg.dedup:
        unique: dict[tuple[int, ...], _Ranked] = {}
        for item in ranked:
            unique.setdefault(tuple(item.ids), item)
        ranked = list(unique.values())
        if len(ranked) < 2:
            return [], "duplicates"
    return ranked, None


_OF_WORDS = ("reward", "-wer", "-cer", "-substitutions", "-deletions", "-insertions")
"""Keys whose order follows from word errors."""


def is_silent(row: ScoreRow, key: str) -> bool:
    """Whether a candidate may not be chosen or imitated since nothing was recognized in it; where a component ranks,
    nothing of the text."""
    return nothing_recognized(row.components) or (key != "reward" and nothing_right(row.components))


def written_reward(row: ScoreRow, key: str, unwritten: bool) -> float | None:
    """The reward without the words that recognizers do not write; -inf where nothing else is left to judge, None where
    the order does not follow from word errors, or such words count (``unwritten``), or there are none."""
    if unwritten or key not in _OF_WORDS or not row.components.get("unwritten"):
        return None
    value = row.components.get("reward_written")
    return -math.inf if value is None else value


def _in_the_words(better: _Ranked, worse: _Ranked) -> bool:
    """Whether better is also better by the words that recognizers write."""
    if better.written is None or worse.written is None or worse.over_limit:
        return True
    return better.written > worse.written


def _length_sums(ranked: list[_Ranked]) -> tuple[float, float] | None:
    """Covariance of duration and value within a prompt, and variance of duration, as sums; None where nothing was said.

    Within prompts: texts differ in length and difficulty, only siblings are comparable. Silence says nothing of how
    length pays.
    """
    spoken = [r for r in ranked if not r.silent]
    if not spoken:
        return None
    mean_s = math.fsum(r.candidate.duration for r in spoken) / len(spoken)
    mean_v = math.fsum(r.value for r in spoken) / len(spoken)
    return (math.fsum((r.candidate.duration - mean_s) * (r.value - mean_v) for r in spoken),
            math.fsum((r.candidate.duration - mean_s) ** 2 for r in spoken))


def _choose(
    prompt_id: str, ranked: list[_Ranked], cfg: PairsConfig
) -> tuple[list[tuple[_Ranked, _Ranked]], str | None]:
    """The pairs of one prompt, or the reason why there is none."""
    eligible = [r for r in ranked if r.candidate.end_reason == "eos"]
    if not eligible:
        return [], "all_truncated"
    eligible = [r for r in eligible if not r.silent]
    if not eligible:
        return [], "nothing_recognized"
    eligible = [r for r in eligible if not r.over_limit]
    if not eligible:
        return [], "over_limit"
    if cfg.max_length_sd is not None:
        lengths = np.array([r.length for r in ranked], dtype=np.float64)
        eligible = [r for r in eligible if abs(r.length - lengths.mean()) <= cfg.max_length_sd * lengths.std() + 1e-9]
        if not eligible:
            return [], "length_outlier"
    if cfg.min_chosen_reward is not None:
        eligible = [r for r in eligible if r.value >= cfg.min_chosen_reward]
        if not eligible:
            return [], "below_minimum"

    # Decimal margins meet binary floats: 0.8 - 0.7 must satisfy a margin of 0.1.
    apart = [
        (better, worse)
        for better in eligible
        for worse in ranked
        if worse.over_limit or (better.value > worse.value and better.value - worse.value >= cfg.margin - 1e-12)
    ]
    if not apart:
        return [], "no_margin"
    if cfg.length_normalized == "per_second":  # a fragment is short; it is not better for it
        apart = [(b, w) for b, w in apart if b.right is None or w.right is None or w.over_limit or b.right >= w.right]
        if not apart:
            return [], "fewer_words"
    apart = [(better, worse) for better, worse in apart if _in_the_words(better, worse)]
    if not apart:
        return [], "unwritten"
    if cfg.length_match is not None:
        apart = [(better, worse) for better, worse in apart if abs(better.length - worse.length) <= cfg.length_match]
        if not apart:
            return [], "length_mismatch"
    if cfg.chosen_longer_by is not None:
        apart = [(better, worse) for better, worse in apart if better.length - worse.length >= cfg.chosen_longer_by]
        if not apart:
            return [], "not_longer"
    return list(islice(_STRATEGIES[cfg.strategy](prompt_id, apart, cfg), cfg.max_pairs_per_prompt)), None


_Apart = list[tuple[_Ranked, _Ranked]]


def _key(better: _Ranked, worse: _Ranked) -> tuple[str, str]:
    return better.candidate.candidate_id, worse.candidate.candidate_id


def _best_vs_worst(prompt_id: str, apart: _Apart, cfg: PairsConfig) -> Iterator[tuple[_Ranked, _Ranked]]:
    """In the order of `_all_margin`, each candidate used once."""
    taken: set[str] = set()
    for better, worse in _all_margin(prompt_id, apart, cfg):
        if not taken & set(_key(better, worse)):
            taken |= set(_key(better, worse))
            yield better, worse


def _best_vs_random(prompt_id: str, apart: _Apart, cfg: PairsConfig) -> Iterator[tuple[_Ranked, _Ranked]]:
    """The best chosen that has a rejected, against rejected ones in a random order fixed by seed and prompt."""
    best = min((better for better, _ in apart), key=lambda r: (-r.value, r.candidate.candidate_id))
    mine = sorted((p for p in apart if p[0] is best), key=lambda p: _key(*p))
    random.Random(derive_seed(cfg.seed, "best_vs_random", prompt_id)).shuffle(mine)
    yield from mine


def _all_margin(prompt_id: str, apart: _Apart, cfg: PairsConfig) -> Iterator[tuple[_Ranked, _Ranked]]:
    """Every pair that qualifies, widest margin first (or best chosen first, then by edit distance).

    Pairs whose rejected is over the limit come before all others: they are what the limit is stated for.
    """
    if not cfg.prefer_min_edit:
        yield from sorted(apart, key=lambda p: (not p[1].over_limit, p[1].value - p[0].value, _key(*p)))
        return
    rejected_of: dict[str, _Apart] = defaultdict(list)
    for pair in sorted(apart, key=lambda p: (-p[0].value, _key(*p))):
        rejected_of[pair[0].candidate.candidate_id].append(pair)
    for mine in rejected_of.values():  # lazily: with a cap of one, only the best chosen is compared
        yield from sorted(mine, key=_distance_then_margin)


_STRATEGIES = {"best_vs_worst": _best_vs_worst, "best_vs_random": _best_vs_random, "all_margin": _all_margin}


def _distance_then_margin(pair: tuple[_Ranked, _Ranked]) -> tuple[bool, int, float, str]:
    better, worse = pair
    distance = Levenshtein.distance(better.ids, worse.ids)
    return not worse.over_limit, distance, worse.value, worse.candidate.candidate_id


def _make_pair(prompt: Prompt, better: _Ranked, worse: _Ranked) -> Pair:
    chosen, rejected = better.candidate.speech, worse.candidate.speech
    return Pair(
        prompt_id=prompt.prompt_id,
        pair_id=pair_id_of(prompt.prompt_id, chosen.ids, rejected.ids),
        text=prompt.text,
        speaker=prompt.speaker,
        chosen_id=better.candidate.candidate_id,
        rejected_id=worse.candidate.candidate_id,
        chosen=chosen,
        rejected=rejected,
        chosen_reward=better.reward,
        rejected_reward=worse.reward,
        margin=better.value - worse.value,
    )
