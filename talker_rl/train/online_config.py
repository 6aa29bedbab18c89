"""Settings of online training: what is sampled for each step, and how much in all."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from talker_rl.base.settings import Settings
from talker_rl.data.config import CompletionsConfig, PairsConfig
from talker_rl.speech.config import SamplingConfig
from talker_rl.train.advantages import AdvantageConfig


class ImportanceConfig(Settings):
    """Correction for sampling from another distribution than the policy's."""

    mode: Literal["truncate", "mask"] = Field(
        "truncate", description="A weight above the cap is the cap (truncated importance sampling), or a step whose "
        "weight is outside [floor, cap] is not trained on (IcePop)."
    )
    level: Literal["token", "sequence"] = Field("token", description="Weights of steps, or of whole sequences.")
    cap: float = Field(2.0, gt=0, description="Largest weight.")
    floor: float = Field(0.0, ge=0, description="Of mask: smallest weight.")


class HeldOutConfig(Settings):
    """Check-ups while training: dev prompts, spoken by the policy and heard by the second recognizer."""

    every: int = Field(10, ge=1, description="Samplings between two check-ups; the first is of the start.")
    prompts: int = Field(60, ge=1, description="Dev prompts at most, one utterance each, from the same seeds always. "
                         "They are not among the decodes that the budget counts.")
    patience: int | None = Field(None, ge=1, description="Training ends after so many check-ups without a lower WER; "
                                 "null: it goes on to the last decode.")


class GuardsConfig(Settings):
    """What must not drift while the reward rises. Each alarm compares the last `window` samplings with the first ones;
    null is off. It is told once, and logged as `alarm/<name>`."""

    window: int = Field(5, ge=1, description="Samplings of a mean.")
    duration: float | None = Field(0.1, gt=0, description="Seconds a word of the text, relative change.")
    cut: float | None = Field(0.05, gt=0, description="Share of candidates cut at the token limit, rise of it.")
    tail_silence: float | None = Field(0.3, gt=0, description="Seconds of silence at the end, rise of the mean.")
    entropy: float | None = Field(0.5, gt=0, lt=1, description="Entropy a step, relative fall: groups stop differing.")
    failed: float | None = Field(0.05, gt=0, description="Share of candidates that could not be scored, rise of it.")
    kl: float | None = Field(None, gt=0, description="KL to the start, nats a step, exact on the policy's own samples.")
    f0_spread: float | None = Field(
        0.3, gt=0, lt=1, description="With held_out: spread of F0, relative fall: speech goes flat."
    )
    speaker_similarity: float | None = Field(0.05, gt=0, description="With held_out: likeness to the speaker, fall.")
    stop_logp: float | None = Field(2.0, gt=0, description="With held_out: log P(stop) where the policy stopped as "
                                    "training began, nats, change of the mean. It does not hang on where speech ends "
                                    "now.")
    hack: bool = Field(True, description="With held_out: the reward has risen by more than its noise, and the second "
                       "recognizer's WER has not fallen.")
    stop: bool = Field(False, description="End the training at the first alarm, with the checkpoint of that step.")


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
    max_length_ratio: float | None = Field(
        None, gt=1, description="A candidate longer than so many times the median of its group, or shorter than the "
        "inverse, is as its worst: no reward pays for dragging or rushing. null is off."
    )
    importance: ImportanceConfig | None = Field(
        None, description="With `sampling` options that bend the policy: weigh steps by policy over what was sampled "
        "from. null: ratios are raw over raw, and the gap is only logged."
    )
    overlap: bool = Field(
        False, description="Sample one step ahead: while candidates are decoded and judged, the policy trains on those "
        "before. Samples are then of the policy one sampling ago, never older, and ratios say so: their denominator is "
        "what was recorded."
    )
    pairs: PairsConfig = Field(
        default_factory=lambda: PairsConfig(margin=0.1, strategy="all_margin", max_pairs_per_prompt=4),
        description="Of a loss of pairs (online DPO): which candidates of a group meet."
    )
    completions: CompletionsConfig = Field(
        default_factory=lambda: CompletionsConfig(), description="Of loss sft (expert iteration, rejection sampling): "
        "which candidates of a group are imitated."
    )
    held_out: HeldOutConfig | None = Field(None, description="Check-ups by the second recognizer; null: none.")
    guards: GuardsConfig = Field(default_factory=lambda: GuardsConfig(), description="Alarms.")
    refill: int = Field(
        0, ge=0, description="So many further prompts at most are sampled in place of groups whose rewards are all "
        "equal; they cost decodes as others do."
    )

    @model_validator(mode="after")
    def _sound(self) -> OnlineConfig:
        if self.mini_batches > self.prompts_per_step:
            raise ValueError(f"{self.mini_batches} optimizer steps cannot share {self.prompts_per_step} groups: lower "
                             "mini_batches")
        if self.decodes < self.decodes_per_sampling:
            raise ValueError(f"one sampling takes {self.prompts_per_step} x {self.num_generations} decodes, and there "
                             f"are {self.decodes}")
        if self.overlap and self.refill:
            raise ValueError("overlap samples before the step before is judged, and refill after: choose one")
        return self

    @property
    def samplings(self) -> int:
        """Samplings that the decodes are enough for, where none is refilled."""
        return self.decodes // self.decodes_per_sampling

    @property
    def decodes_per_sampling(self) -> int:
        """Candidates of a sampling, where no group is refilled."""
        return self.prompts_per_step * self.num_generations

    @property
    def steps_per_sampling(self) -> int:
        """Optimizer steps on the candidates of one sampling."""
        return self.num_iterations * self.mini_batches

    def drawn(self, max_new_tokens: int) -> SamplingConfig:
        """The options of sampling."""
        return self.sampling or SamplingConfig(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0,
                                               max_new_tokens=max_new_tokens)
