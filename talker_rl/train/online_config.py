"""Settings of online training: what is sampled for each step, and how much in all."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from talker_rl.base.settings import Settings
from talker_rl.speech.config import SamplingConfig
from talker_rl.train.advantages import AdvantageConfig


class OnlineConfig(Settings):
    """A training on samples of the policy as it is."""

    prompts_per_step: int = Field(8, ge=1, description="Prompts of each sampling; drawn without replacement, round and "
                                  "round.")
    num_generations: int = Field(8, ge=2, description="Candidates a prompt: a group.")
    decodes: int = Field(
        4800, ge=1, description="Candidates that are decoded and judged in all: what online training costs, and the "
        "unit in which it is compared. It ends with the sampling that spends the last of them."
    )
    sampling: SamplingConfig | None = Field(
        None, description="How candidates are drawn. null: from the policy itself (temperature 1, no top-k, no top-p, "
        "no penalty), so that the ratio's denominator is the distribution that was sampled from."
    )
    num_iterations: int = Field(1, ge=1, description="Passes over the candidates of a sampling.")
    mini_batches: int = Field(1, ge=1, description="Optimizer steps of a pass: its groups are dealt out to them.")
    advantages: AdvantageConfig = Field(default_factory=AdvantageConfig, description="From rewards to advantages.")
    truncated: Literal["worst", "left_out"] = Field(
        "worst", description="A candidate that was cut at the token limit: worst of its group, or not trained on. "
        "Never by its own reward: what was cut may be right so far."
    )
    refill: int = Field(
        0, ge=0, description="So many further prompts at most are sampled in place of groups whose rewards are all "
        "equal; they cost decodes as others do."
    )

    @model_validator(mode="after")
    def _sound(self) -> OnlineConfig:
        if self.mini_batches > self.prompts_per_step:
            raise ValueError(f"{self.mini_batches} optimizer steps cannot share {self.prompts_per_step} groups: lower "
                             "mini_batches")
        if self.decodes < self.prompts_per_step * self.num_generations:
            raise ValueError(f"one sampling takes {self.prompts_per_step} x {self.num_generations} decodes, and there "
                             f"are {self.decodes}")
        return self

    @property
    def samplings(self) -> int:
        """Samplings that the decodes are enough for, where none is refilled."""
        return self.decodes // (self.prompts_per_step * self.num_generations)

    @property
    def steps_per_sampling(self) -> int:
        """Optimizer steps on the candidates of one sampling."""
        return self.num_iterations * self.mini_batches

    def drawn(self, max_new_tokens: int) -> SamplingConfig:
        """The options of sampling."""
        return self.sampling or SamplingConfig(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0,
                                               max_new_tokens=max_new_tokens)
