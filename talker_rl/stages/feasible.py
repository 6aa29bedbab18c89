"""Whether a configuration can give pairs or completions at all: told before the work, and, where none came out, why.

Only what cannot be otherwise is refused. Imports no torch.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from talker_rl.base.errors import ConfigError
from talker_rl.base.figures import count
from talker_rl.base.text.tokens import tokens_of
from talker_rl.config import RunConfig
from talker_rl.data.pairs import REASONS, rank_value
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow
from talker_rl.reward.combine import BUILT_IN_COMPONENTS
from talker_rl.reward.stability import speaking_units
from talker_rl.speech.config import SamplingConfig
from talker_rl.speech.registry import codec_of
from talker_rl.stages import named
from talker_rl.stages.order import VERBS

FASTEST = 15.0
"""Syllables per second that nobody speaks: quick speech has 8."""
ALIKE = 0.01
"""A temperature, or a probability to keep, at or below which every draw is the best id."""

_SHARES = {"pause_error", "pause_error_scorable", "pause_precision", "pause_recall", "pause_f1",
           "pause_scorable_share", "cap_hit", "clipping", "gate"}
"""Components that lie within [0, 1]; all built-in ones are 0 or more."""
_OF_THE_TEXT = {"ref_words", "pause_marks"}
"""Components that are the same for all candidates of a prompt."""


def check_config(config: RunConfig, verb: str = "run", *, here: bool = False, remote: bool = False) -> None:
    """Refuse what the verb could not do: settings with which no text can give a pair, or a completion, that a variant
    is to learn from; then what is named and is not there. Arguments as for :func:`named.faults`.

    Raises:
        ConfigError: names the setting and what to set it to.
        CheckpointError: a recognizer's folder is missing or incomplete.
    """
    if VERBS[verb].learns:
        check_learning(config)
    for fault in named.faults(config, verb, here=here, remote=remote):
        raise fault


def check_learning(config: RunConfig) -> None:
    """The first half of :func:`check_config`."""
    learns = {variant.data for variant in config.variants.values()}
    for s, at in _of_online(config):
        _check_differing(s, at, "what is learned lies in how they differ")
        _check_ending(config, s, at)
        if config.reward.remove_length:
            raise ConfigError("reward.remove_length is fitted to all candidates there are, and an online training "
                              "judges each sampling as it comes", where="reward.remove_length",
                              fix="leave it out; online.max_length_ratio and a loss with stop: drop are against length")
    if not learns & {None, "best_of_n"}:
        return
    if None in learns and not config.pairs.votes:
        _check_differing(config.rollouts.sampling, "rollouts.sampling", "a pair needs two that differ")
        _check_key(config, "pairs")
        _check_pairs(config)
    if "best_of_n" in learns:
        _check_key(config, "completions")
        _check_minimum(config, "completions.min_reward", config.completions.reward_key, config.completions.min_reward)
    _check_ending(config, config.rollouts.sampling, "rollouts.sampling")


def _of_online(config: RunConfig) -> Iterator[tuple[SamplingConfig, str]]:
    """How candidates of online trainings are drawn, each way once, and the place where it says so."""
    told = set()
    for name, variant in config.variants.items():
        if variant.data == "online" and variant.online is not None:
            own = variant.online.sampling is not None
            at = f"{config.place_of(name)}.online.sampling" if own else "rollouts.sampling"
            if at not in told:
                told.add(at)
                yield variant.online.drawn(config.rollouts.sampling.max_new_tokens), at


def check_texts(config: RunConfig, prompts: Sequence[Prompt]) -> str | None:
    """Refuse a token limit in which no train text can be said; what to tell where only some cannot.

    Raises:
        ConfigError: names the limit that is needed.
    """
    if not prompts:
        return None
    found = [_check_text(config, prompts, s.max_new_tokens, at) for s, at in _of_online(config)]
    if {variant.data for variant in config.variants.values()} & {None, "best_of_n"}:
        found.append(_check_text(config, prompts, config.rollouts.sampling.max_new_tokens, "rollouts.sampling"))
    return next((one for one in found if one is not None), None)


def _check_text(config: RunConfig, prompts: Sequence[Prompt], limit: int, at: str) -> str | None:
    codec = codec_of(config.model)
    needed = sorted(codes_needed(prompt.text, codec.rate) for prompt in prompts)
    if needed[0] > limit:
        raise ConfigError(
            f"No train text can be said in {count(limit, 'code')} ({limit / codec.rate:.2g} s): the shortest needs "
            f"{needed[0]} even at {FASTEST:g} syllables per second, so every candidate would be cut",
            where=f"{at}.max_new_tokens",
            fix=f"set max_new_tokens to {_usual(needed[-1])} or more (1024 is the default)")
    cut = sum(count > limit for count in needed)
    if not cut:
        return None
    return (f"{cut} of {count(len(needed), 'train text')} cannot be said in {count(limit, 'code')}, and give nothing: "
            f"raise {at}.max_new_tokens to {_usual(needed[-1])}")


def codes_needed(text: str, rate: float) -> int:
    """Steps, the stop included, that a text takes at the least; ``rate``: the codec's frames per second."""
    return math.ceil(speaking_units(tokens_of(text)) * rate / FASTEST) + 1


def _usual(least: int) -> int:
    """A limit that leaves time to speak, from the codes that are needed at the least: a fifth of that pace."""
    return 5 * least


def _check_differing(s: SamplingConfig, at: str, why: str) -> None:
    """Candidates of a prompt must differ, or there is nothing to prefer."""
    alike = {
        f"{at}.do_sample": not s.do_sample, f"{at}.top_k": s.top_k == 1, f"{at}.top_p": s.top_p <= ALIKE,
        f"{at}.temperature": s.temperature <= ALIKE, f"{at}.min_p": (s.min_p or 0) >= 1 - ALIKE,
        f"{at}.epsilon_cutoff": (s.epsilon_cutoff or 0) >= 0.5,
    }
    for key, is_alike in alike.items():
        if is_alike:
            name = key.rpartition(".")[2]
            raise ConfigError(
                f"All candidates of a text would be alike: {name} is {getattr(s, name)}, so every code is the most "
                f"probable one, and {why}", where=key,
                fix=f"set {at}.do_sample=true" if name == "do_sample" else
                f"leave {name} out of {at} (its default: {type(s).model_fields[name].default})")


def _check_key(config: RunConfig, section: str) -> None:
    key = getattr(config, section).reward_key
    name = key.removeprefix("-")
    if name.startswith("-"):
        raise ConfigError(f"{section}.reward_key is {key!r}, with more than one minus", where=f"{section}.reward_key",
                          fix=f"write {name.lstrip('-')} where more is better, -{name.lstrip('-')} where less is")
    known = ["reward", *BUILT_IN_COMPONENTS, *(c.name for c in config.reward.components)]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"{section}.reward_key is {key!r}, and no score has such a component"
            + (f"; did you mean {near[0]!r}?" if near else ""), where=f"{section}.reward_key",
            fix=f"one of: {', '.join(known)}; a minus before it where less is better")
    if name in _OF_THE_TEXT:
        raise ConfigError(
            f"{section}.reward_key is {key!r}, which the text decides: it is the same for all its candidates",
            where=f"{section}.reward_key", fix="rank by what differs between candidates, e.g. reward or -wer")


def _reach(config: RunConfig, key: str) -> tuple[float, float]:
    """Least and largest rank value that a key can have; infinite where it is not known."""
    name, own = key.lstrip("-"), {c.name: c.weight for c in config.reward.components}
    low, high = -math.inf, math.inf
    if name == "reward":
        if config.reward.remove_length:  # moves rewards by what durations explain
            return low, high
        low, high = (min(max(bound, config.reward.clip[0]), config.reward.clip[1]) for bound in (0.0, 1.0))
    elif name in _SHARES or own.get(name, 0.0) > 0:
        low, high = 0.0, 1.0
    elif name in BUILT_IN_COMPONENTS and name != "max_inner_silence":
        low = 0.0
    return (0.0 - high, 0.0 - low) if key.startswith("-") else (low, high)


def _check_pairs(config: RunConfig) -> None:
    pairs, sampling = config.pairs, config.rollouts.sampling
    low, high = _reach(config, pairs.reward_key)
    span = high - low
    over_limit = pairs.demote_over_limit  # such pairs need no margin
    if pairs.length_normalized == "off" and not over_limit:
        if span == 0:
            raise ConfigError(f"Every reward is {low:g}: reward.clip {list(config.reward.clip)} leaves no other value",
                              where="reward.clip", fix="leave it out: rewards lie within [0, 1]")
        if pairs.margin > span + 1e-12:
            raise ConfigError(
                f"No candidate can beat another by {pairs.margin:g}: {pairs.reward_key} lies within "
                f"[{low:g}, {high:g}]", where="pairs.margin",
                fix=f"lower pairs.margin: at most {span:g} can be reached, 0.05 is the default")
    if pairs.length_normalized == "off":
        _check_minimum(config, "pairs.min_chosen_reward", pairs.reward_key, pairs.min_chosen_reward)
    longest = sampling.max_new_tokens - 1 - max(1, sampling.min_new_tokens or 0)
    if pairs.chosen_longer_by is not None and pairs.chosen_longer_by > longest:
        raise ConfigError(
            f"No chosen can be longer than its rejected by {count(pairs.chosen_longer_by, 'frame')}: candidates have "
            f"{max(1, sampling.min_new_tokens or 0)} to {sampling.max_new_tokens - 1} frames",
            where="pairs.chosen_longer_by", fix=f"lower it below {max(longest, 0) + 1}, or raise "
            "rollouts.sampling.max_new_tokens")


def _check_minimum(config: RunConfig, where: str, key: str, least: float | None) -> None:
    low, high = _reach(config, key)
    if least is not None and least > high + 1e-12:
        raise ConfigError(f"No candidate can reach {where} {least:g}: {key} is {high:g} at the most", where=where,
                          fix=f"lower it to {high:g} or less" + (
                              f" ({key} is 0 at its best, and negative else)" if key.startswith("-") else ""))


def _check_ending(config: RunConfig, s: SamplingConfig, at: str) -> None:
    """A candidate must be able to end by itself: one that is cut is never chosen."""
    codec, limit = codec_of(config.model), f"{at}.max_new_tokens"
    if set(codec.stops) <= set(s.suppress_tokens or []):
        raise ConfigError("No candidate can end by itself: suppress_tokens holds both stop ids, so every one is cut",
                          where=f"{at}.suppress_tokens", fix=f"take {codec.stop} out of it")
    if s.max_new_tokens <= (s.min_new_tokens or 0):
        raise ConfigError(
            f"No candidate can end by itself: min_new_tokens {s.min_new_tokens} forbids a stop before the limit of "
            f"{s.max_new_tokens}, so every one is cut", where=limit,
            fix="raise max_new_tokens above min_new_tokens (1024 is the default)")
    least = math.ceil(codec.rate / FASTEST) + 1
    if s.max_new_tokens < least:
        raise ConfigError(f"No text can be said in {count(s.max_new_tokens, 'code')} "
                          f"({s.max_new_tokens / codec.rate:g} s): "
                          "every candidate would be cut", where=limit,
                          fix=f"set max_new_tokens to what the texts take, {codec.rate:g} codes per second "
                          "(1024 is the default)")


_FIXES = {
    "no_candidates": "sample again: --force-stage rollouts",
    "not_scored": "score again: --force-stage scores",
    "one_scored": "mend what made the others fail, or sample more (rollouts.num_candidates)",
    "duplicates": "let candidates differ: rollouts.sampling.do_sample=true, with a higher temperature, top_k or top_p",
    "all_truncated": "raise rollouts.sampling.max_new_tokens: all were cut at {limit} codes ({seconds:.3g} s)",
    "over_limit": "raise the prompts' max_seconds, or set pairs.demote_over_limit=false",
    "length_outlier": "raise pairs.max_length_sd",
    "below_minimum": "lower {minimum}: {best} is the best that was reached",
    "no_margin": "lower pairs.margin ({margin:g}): the largest difference within a prompt is {widest}",
    "length_mismatch": "raise pairs.length_match",
    "not_longer": "lower pairs.chosen_longer_by",
}


def advice(
    config: RunConfig, reasons: Mapping[str, int], scores: Iterable[ScoreRow], key: str, minimum: str
) -> tuple[str, str]:
    """Why nothing came out, in a few words, and what helps against the most frequent reasons.

    Args:
        reasons: prompts without a pair or completion by reason.
        scores: of the candidates.
        key: what ranked them.
        minimum: the setting that asks for a least rank value.
    """
    by_prompt: dict[str, list[float]] = {}
    codes: Counter[str] = Counter()
    messages: dict[str, str] = {}
    for row in scores:
        if row.status != "ok":
            code = row.error_code or "unknown"
            codes[code] += 1
            messages.setdefault(code, row.error_message or "")
        if (value := rank_value(row, key)) is not None:
            by_prompt.setdefault(row.prompt_id, []).append(value)
    widest = max((max(v) - min(v) for v in by_prompt.values()), default=0.0)
    best = max((max(v) for v in by_prompt.values()), default=math.nan)
    limit = config.rollouts.sampling.max_new_tokens
    rate = codec_of(config.model).rate
    facts = {"limit": limit, "seconds": limit / rate, "margin": config.pairs.margin, "minimum": minimum,
             "widest": f"{widest:.3g}" + " (all are equal)" * (widest == 0), "best": f"{best:.3g}"}
    found = [(reason, count) for reason, count in Counter(dict(reasons)).most_common() if count]
    fixes = [_failures(codes, messages, key) if reason == "all_failed" else _FIXES[reason].format(**facts)
             for reason, _ in found[:2] if reason == "all_failed" or reason in _FIXES]
    told = "; ".join(f"{count} x {REASONS.get(reason, reason)}" for reason, count in found)
    return told or "there is no prompt", "; ".join(fixes) or "look at the stages before this one"


def _failures(codes: Counter[str], messages: Mapping[str, str], key: str) -> str:
    """Why scores failed, the most frequent code first."""
    if not codes:
        return f"rank by another component: {key} has no value for any candidate"
    code, count = codes.most_common(1)[0]
    return f"mend what made scores fail: {count} x {code} ({messages[code][:120]})"
