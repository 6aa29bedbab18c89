"""Settings of the data room: how scored candidates become preference pairs, or completions to imitate."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from talker_rl.base.settings import Settings


class PairsConfig(Settings):
    """How the scored candidates of one prompt become (chosen, rejected) pairs.

    Whatever these say: a failed score never enters a pair, a tie never makes one, and a candidate that was cut at
    the token limit (it would teach the Talker not to stop), or in which nothing was recognized (silence has no
    substitutions, no false pause, no tail), may be rejected but never chosen.
    """

    reward_key: str = Field(
        "reward",
        description="What ranks the candidates: `reward`, or the name of a score component. A leading minus means "
        "that less is better, e.g. `-wer`. A candidate whose component is null counts as failed.",
    )
    margin: float = Field(
        0.05, ge=0.0, description="Chosen must beat rejected by at least this much; exact ties are always dropped."
    )
    max_pairs_per_prompt: int = Field(1, ge=1, description="At most so many pairs of one prompt.")
    strategy: Literal["best_vs_worst", "best_vs_random", "all_margin"] = Field(
        "best_vs_worst",
        description="best_vs_worst: widest margin first, each candidate used once. best_vs_random: the best against "
        "rejected ones drawn with `seed`. all_margin: every pair that qualifies, widest first, up to the cap.",
    )
    length_match: int | None = Field(
        None,
        ge=0,
        description="Chosen and rejected differ by at most so many frames of the codec; null lets any lengths meet. "
        "Without it preference training learns `shorter` along with `better`.",
    )
    chosen_longer_by: int | None = Field(
        None,
        ge=1,
        description="Keep only pairs whose chosen is longer than the rejected by at least so many frames. This plants "
        "a length bias on purpose, for ablations that show which loss resists it; null is off.",
    )
    balance_lengths: int | None = Field(
        None,
        ge=1,
        description="Keep as many pairs whose chosen is longer as pairs whose chosen is shorter by as much, in bins of "
        "so many frames: length then says nothing of who is chosen, and every difference is still there (length_match "
        "has small ones only). Over all prompts, after everything else here; null is off.",
    )
    mislabeled: float | None = Field(
        None,
        gt=0.0,
        le=0.5,
        description="Exchange chosen and rejected in this share of the pairs, drawn with `seed`: plants wrong labels "
        "on purpose, for ablations that show which loss bears them; null is off.",
    )
    max_length_sd: float | None = Field(
        None,
        gt=0.0,
        description="Chosen's length lies within so many standard deviations of the mean length of the prompt's "
        "usable candidates; null is off.",
    )
    length_normalized: Literal["off", "residual", "per_second"] = Field(
        "off",
        description="residual: rank by the reward minus its linear dependence on duration (one slope, fitted within "
        "prompts over all of them). per_second: rank by the reward divided by the duration (for rewards that are "
        "sums over time). Margins are then in that unit; stored rewards stay raw.",
    )
    demote_over_limit: bool = Field(
        False,
        description="For prompts with max_seconds (LIFT-DPO): a candidate over the limit is never chosen, and loses "
        "against any candidate within it, whatever their rewards. Margins of such pairs may be negative.",
    )
    dedup: bool = Field(True, description="Of candidates with identical codes keep one (the first by id).")
    prefer_min_edit: bool = Field(
        False,
        description="Among the rejected that qualify for a chosen, take the one with the smallest edit distance "
        "between the code sequences: pairs that differ in one place carry a cleaner signal.",
    )
    min_chosen_reward: float | None = Field(
        None, description="Chosen's rank value is at least this: among bad candidates the best is still bad."
    )
    unwritten: bool = Field(
        False,
        description="Also make pairs whose order hangs on words that recognizers do not write as the text has them "
        "(figures, symbols, abbreviations, traditional characters): a perfect reading counts as wrong there, and the "
        "worse one may win.",
    )
    seed: int = Field(0, description="Seed of best_vs_random, and of mislabeled.")
    votes: str | None = Field(
        None,
        description="Votes that a page's blind A/B listening exported (JSON): the pairs of round 1 are then those "
        "voted on, chosen the one voted for, and nothing else here matters. `talker-rl pair --votes FILE` sets it.",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_it_was_spelled(cls, data: Any) -> Any:
        """Runs and configurations of before 2026-11-29 write `length_normalised`."""
        if not isinstance(data, dict) or "length_normalised" not in data:
            return data
        rest = {key: value for key, value in data.items() if key != "length_normalised"}
        return {"length_normalized": data["length_normalised"], **rest}

    @model_validator(mode="after")
    def _compatible(self) -> PairsConfig:
        if self.prefer_min_edit and self.strategy == "best_vs_random":
            raise ValueError("prefer_min_edit chooses the rejected itself: use strategy best_vs_worst or all_margin")
        if self.chosen_longer_by and self.length_match is not None and self.chosen_longer_by > self.length_match:
            raise ValueError("no pair can be longer by chosen_longer_by and within length_match: lower one of them")
        if self.length_normalized == "per_second" and self.reward_key.startswith("-"):
            raise ValueError(f"{self.reward_key} per second is smallest for the longest speech: use residual, or a "
                             "reward_key of which more is better")
        if not self.reward_key.lstrip("-"):
            raise ValueError("reward_key is empty: write `reward` or the name of a component")
        return self


class CompletionsConfig(Settings):
    """What supervised variants (``train.data``) imitate: the best of N samples, or codes from a file.

    Whatever these say: only candidates that ended by themselves, in which something was recognized, and that have a
    score are taken, and none twice.
    """

    reward_key: str = Field("reward", description="What ranks the candidates, as pairs.reward_key.", min_length=1)
    min_reward: float | None = Field(
        None, description="Rejection sampling: a completion's rank value is at least this; null takes the best of each "
        "prompt, however bad."
    )
    max_per_prompt: int = Field(1, ge=1, description="Best-of-N: at most so many completions of one prompt.")
    unwritten: bool = Field(False, description="Also take the best where that hangs on words that recognizers do not "
                            "write as the text has them, as pairs.unwritten.")
    file: str | None = Field(
        None, description="For data: file, a .jsonl or .parquet file with rows {text, speaker?, codes}, of texts that "
        "are among the train prompts; null is the file that prompts.train names."
    )
