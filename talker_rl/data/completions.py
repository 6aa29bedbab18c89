"""From scored candidates to completions to imitate (best-of-N, rejection sampling), and one's own codes from a file.

The codec's encoder was never released, so a model's own best samples are the only codes that most users have.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from talker_rl.base.errors import DataError
from talker_rl.base.ids import stable_hash
from talker_rl.data.config import CompletionsConfig
from talker_rl.data.import_pairs import BadRow, read_rows, speech_in
from talker_rl.data.pairs import index_scores, is_silent, rank_value, written_reward
from talker_rl.data.texts import clean_text
from talker_rl.records.candidate import Candidate
from talker_rl.records.checks import as_id
from talker_rl.records.codec import Codec
from talker_rl.records.pair import Completion
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow
from talker_rl.records.speech import Speech

REASONS: dict[str, str] = {
    "no_candidates": "no candidate was sampled for the prompt",
    "all_truncated": "no candidate of the prompt ended by itself",
    "all_failed": "no finished candidate has a usable score",
    "nothing_recognized": "nothing was recognized in any finished candidate of the prompt",
    "unwritten": "which is best hangs on words that recognizers do not write (completions.unwritten)",
    "below_minimum": "no candidate reaches completions.min_reward",
    "unknown_prompt": "rows of the file whose text is not among the train prompts",
    "no_speaker": "rows of the file that name no speaker, where several train prompts have that text",
    "several_prompts": "rows of the file without prompt_id, where several train prompts have that text and speaker",
    "duplicate": "rows of the file with the codes of an earlier row",
}
"""Why a prompt (or a row of a file) gave no completion; for a prompt the first that applies, in this order."""


def select_completions(
    prompts: Iterable[Prompt], candidates: Iterable[Candidate], scores: Iterable[ScoreRow], cfg: CompletionsConfig
) -> tuple[list[Completion], dict[str, int]]:
    """The best candidates of each prompt, best first, sorted by prompt id; and prompts without any by reason.

    Of candidates with the same codes the first by id counts. Ties in rank go by candidate id, so the order of the rows
    never matters.

    Raises:
        DataError: a candidate has two different scores.
    """
    score_of = index_scores(scores)
    by_prompt: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        by_prompt[candidate.prompt_id].append(candidate)
    found: list[Completion] = []
    reasons: Counter[str] = Counter()
    for prompt in sorted(prompts, key=lambda p: p.prompt_id):
        group = sorted(by_prompt.get(prompt.prompt_id, ()), key=lambda c: c.candidate_id)
        finished = [c for c in group if c.end_reason == "eos" and c.codes]
        unique = {tuple(c.codes): c for c in reversed(finished)}
        scored = [(c, rank_value(score_of[c.candidate_id], cfg.reward_key)) for c in unique.values()
                  if c.candidate_id in score_of]
        ranked = sorted((-value, c.candidate_id, c) for c, value in scored if value is not None)
        heard = [item for item in ranked if not is_silent(score_of[item[1]], cfg.reward_key)]
        told = _told_by_what_is_written(heard, score_of, cfg)
        good = [item for item in told if cfg.min_reward is None or -item[0] >= cfg.min_reward - 1e-12]
        if not good:
            reasons["no_candidates" if not group else "all_truncated" if not finished else
                    "all_failed" if not ranked else "nothing_recognized" if not heard else
                    "unwritten" if not told else "below_minimum"] += 1
        for rank, (worth, candidate_id, candidate) in enumerate(good[: cfg.max_per_prompt], 1):
            reward = score_of[candidate_id].reward
            found.append(_completion(prompt, candidate.speech, candidate_id,
                                     -worth if reward is None else reward, rank, len(ranked)))
    return found, dict(sorted(reasons.items()))


_Ranked = tuple[float, str, Candidate]
"""(minus the rank value, candidate id, candidate)."""


def _told_by_what_is_written(
    ranked: list[_Ranked], score_of: dict[str, ScoreRow], cfg: CompletionsConfig
) -> list[_Ranked]:
    """The candidates in the order of the words that recognizers write; none where which is best hangs on the others."""
    written = {item[1]: written_reward(score_of[item[1]], cfg.reward_key, cfg.unwritten) for item in ranked}
    if None in written.values():  # the text has no such words
        return ranked
    ordered = sorted(ranked, key=lambda item: (-(written[item[1]] or 0.0), item[0], item[1]))
    best = [item for item in ordered if written[item[1]] == written[ordered[0][1]]] if ordered else []
    return ordered if len({item[0] for item in best}) == 1 else []


def import_completions(
    path: str | Path, prompts: Sequence[Prompt], codec: Codec | None = None
) -> tuple[list[Completion], dict[str, int]]:
    """Given codes of the prompts, in the file's order; and rows that were left out by reason.

    A row names its prompt by ``prompt_id``, or by ``text`` (or ``prompt``) with ``speaker``; without a speaker the text
    alone must name one prompt. ``codes`` are codec ids; the stop is added where it is not there. Optional:
    ``reward``.

    Raises:
        DataError: the file cannot be read, a row's codes are none (its number is named), or no row is of a prompt.
    """
    path = Path(path)
    by_id = {p.prompt_id: p for p in prompts}
    by_text: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_text[clean_text(prompt.text)].append(prompt)
    found: dict[str, Completion] = {}
    reasons: Counter[str] = Counter()
    for number, row in enumerate(read_rows(path), start=1):
        named, reason = _prompt_of(row, by_id, by_text)
        if named is None:
            reasons[reason] += 1
            continue
        try:
            speech = speech_in(row, "codes", append_stop=True, codec=codec)
        except BadRow as bad:
            raise DataError(f"{bad.what} ({bad.reason})", where=f"{path}, row {number}", fix=bad.fix) from None
        reward = row.get("reward")
        if reward is not None and (isinstance(reward, bool) or not isinstance(reward, int | float)):
            raise DataError(f"the reward is no number: {reward!r}", where=f"{path}, row {number}", fix="leave it out")
        completion = _completion(named, speech, f"{path.name}:{number}", reward)
        if completion.completion_id in found:
            reasons["duplicate"] += 1
        found.setdefault(completion.completion_id, completion)
    if not found:
        told = ", ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items())) or "it is empty"
        raise DataError(f"No row of the file gives codes of a train prompt ({told})", where=str(path),
                        fix="prompts.train must hold the texts that the codes speak: name the same file there")
    return list(found.values()), dict(sorted(reasons.items()))


def _prompt_of(
    row: dict[str, Any], by_id: dict[str, Prompt], by_text: dict[str, list[Prompt]]
) -> tuple[Prompt | None, str]:
    """The prompt that a row speaks, or the reason why there is none."""
    prompt_id = as_id(row.get("prompt_id"))
    if isinstance(prompt_id, str) and prompt_id in by_id:
        return by_id[prompt_id], ""
    text, speaker = row.get("text") or row.get("prompt"), row.get("speaker")
    same = by_text.get(clean_text(text), []) if isinstance(text, str) else []
    if speaker is not None:
        same = [prompt for prompt in same if prompt.speaker == speaker]
    if len(same) == 1:
        return same[0], ""
    if not same:
        return None, "unknown_prompt"
    return None, "no_speaker" if len({prompt.speaker for prompt in same}) > 1 else "several_prompts"


def _completion(
    prompt: Prompt, speech: Speech, origin: str, reward: float | None, rank: int | None = None,
    best_of: int | None = None,
) -> Completion:
    return Completion(
        prompt_id=prompt.prompt_id, completion_id=stable_hash("completion", prompt.prompt_id, speech.ids)[:16],
        text=prompt.text, speaker=prompt.speaker, speech=speech, origin=origin,
        reward=None if reward is None else float(reward), rank=rank, best_of=best_of,
    )
