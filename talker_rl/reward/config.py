"""Settings of the reward room. Imports no model library."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from talker_rl.base.settings import Settings
from talker_rl.reward.recognizer_config import Lang, RecognizerConfig, default_evaluator, shared_languages

__all__ = ["AlignerConfig", "PauseConfig", "RecognizerConfig", "RewardConfig", "ServiceConfig", "StabilityConfig",
           "shared_languages"]

Bounds = tuple[float, float]


class AlignerConfig(Settings):
    """A forced aligner: it says when the tokens of the given text are said."""

    path: str = Field(default="fa-zh", description="Folder of a FunASR MonotonicAligner, or the name fa-zh.")
    languages: list[Lang] = Field(
        default=["zh"], description="Languages it was trained for; elsewhere the recognizer's own times are used."
    )
    device: str = Field(default="cpu", description="torch device of the aligner.")
    threads: int = Field(default=1, ge=1, description="CPU threads while it works; the caller's count is restored.")
    silence_dbfs: float = Field(
        default=-60.0, description="Leading and trailing parts below this level are cut before it listens."
    )
    trim_keep_seconds: float = Field(default=0.1, ge=0.0, description="Silence that is left at each end.")

    def identity(self) -> dict[str, Any]:
        """What its times depend on besides its files."""
        return self.model_dump(mode="json", exclude={"path", "device"})


class PauseConfig(Settings):
    """What counts as silence, as a pause, and as a wrong one. Seconds and decibels."""

    frame_seconds: float = Field(default=0.02, gt=0.0, description="Length of an RMS frame.")
    hop_seconds: float = Field(default=0.01, gt=0.0, description="Distance between RMS frames.")
    level_percentile: float = Field(
        default=95.0, ge=0.0, le=100.0,
        description="Percentile of the levels of speech frames that stands for speech (not of all frames: a long "
        "silent tail is no speech)."
    )
    level_below_db: float = Field(
        default=35.0, gt=0.0, description="A frame this far below the speech level is silent."
    )
    floor_seconds: float = Field(
        default=0.5, gt=0.0, description="The noise floor is the quietest level that is kept for so long in all, "
        "steadily for hit_seconds at a time."
    )
    floor_margin_db: float = Field(
        default=12.0, gt=0.0,
        description="A floor at least so far below speech is noise, and what hardly exceeds it is silent."
    )
    bridge_seconds: float = Field(
        default=0.03, ge=0.0, description="Sound of at most this length inside a silence is bridged."
    )
    hit_seconds: float = Field(
        default=0.15, ge=0.0, description="A marked boundary with at least this silence is a hit."
    )
    spurious_seconds: float = Field(
        default=0.25, ge=0.0, description="An unmarked boundary with at least this is a false pause."
    )
    weak_bounds: Bounds = Field(
        default=(0.15, 0.8), description="A hit at a weak mark outside these durations costs extra."
    )
    strong_bounds: Bounds = Field(
        default=(0.2, 1.5), description="A hit at a strong mark outside these durations costs extra."
    )
    out_of_bounds_cost: float = Field(
        default=0.5, ge=0.0, le=1.0, description="What a hit of a wrong duration costs, in misses."
    )
    time_tolerance: float = Field(
        default=0.25, ge=0.0, description="Times that exceed the audio by more make the timestamps unusable."
    )
    aligner: AlignerConfig | None = Field(
        default=None,
        description="Takes the times of boundaries from a forced aligner instead of the recognizer, where the "
        "recognizer heard both tokens: `{path: fa-zh}`. null: the recognizer's own times.",
    )


class StabilityConfig(Settings):
    """What the stability columns measure."""

    ngram: int = Field(default=8, ge=1, description="Length, in codes, of the n-grams whose repetition is counted.")
    clip_level: float = Field(default=0.999, gt=0.0, description="A sample of at least this magnitude is clipped.")
    silence_dbfs: float = Field(default=-60.0, description="Audio that never exceeds this level is silent throughout.")


class RateConfig(Settings):
    """The two-sided rate term: too fast and too slow both lose, so that neither hurry nor drawl pays."""

    units_per_second: Bounds = Field(
        default=(2.0, 8.0),
        description="Free range of the rate (syllables of speech per second) where no reference is known.",
    )
    tolerance: float = Field(
        default=0.15, ge=0.0, description="Free deviation, in natural log, from the reference duration."
    )
    scale: float = Field(
        default=0.25, gt=0.0, description="Natural-log deviation beyond the free range that costs tanh(1)."
    )


class WeightsConfig(Settings):
    """Weights of the built-in terms, each within [0, 1]; the reward is their weighted mean."""

    wer: float = Field(default=0.7, ge=0.0, description="Weight of 1 - tanh(wer_scale * WER).")
    cer: float = Field(default=0.0, ge=0.0, description="Weight of 1 - tanh(wer_scale * CER).")
    pause: float = Field(default=0.3, ge=0.0, description="Weight of right * (1 - pause_error).")
    rate: float = Field(default=0.0, ge=0.0, description="Weight of right * the two-sided rate term.")


class GateConfig(Settings):
    """Multiplies the reward by `factor` where a component lies outside [min, max].

    A null component passes only where it does not apply to the item at all (no reference duration, no codes, no mark in
    the text); one that could not be measured does not.
    """

    component: str = Field(description="Name of a score component.")
    min: float | None = Field(default=None, description="Smallest value that passes.")
    max: float | None = Field(default=None, description="Largest value that passes.")
    factor: float = Field(default=0.0, ge=0.0, le=1.0, description="What the reward is multiplied by.")

    @model_validator(mode="after")
    def _has_a_side(self) -> GateConfig:
        if self.min is None and self.max is None:
            raise ValueError(f"gate on {self.component!r} has neither min nor max")
        return self


class ComponentConfig(Settings):
    """A component of one's own: `function(item, components, **kwargs) -> float | None`, recorded under `name`."""

    name: str = Field(description="Column name of the component.")
    import_path: str = Field(description="`module:function`.", pattern=r"^[\w.]+:[\w.]+$")
    weight: float = Field(
        default=0.0, ge=0.0, description="Weight in the reward; above 0 the value must lie within [0, 1]."
    )
    kwargs: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the function.")


def default_gates() -> list[GateConfig]:
    """Cut-off speech earns nothing; run-away, hurried, drawled or clipped speech earns half."""
    return [
        GateConfig(component="cap_hit", max=0.5, factor=0.0),
        GateConfig(component="duration_ratio", min=0.6, max=1.6, factor=0.5),
        GateConfig(component="rate", min=2.0, max=9.0, factor=0.5),
        GateConfig(component="clipping", max=0.01, factor=0.5),
    ]


class RewardConfig(Settings):
    """How candidates are scored.

    The default reward, in [0, 1]: ``gates * (0.7 * (1 - tanh(3 * WER)) + 0.3 * right * (1 - pause_error))``, right
    being the share of the text's words that were recognized; the minimum where nothing was (docs/REWARD.md).

    >>> RewardConfig(weights={"wer": 1.0, "pause": 0.0})
    """

    recognizer: RecognizerConfig = Field(default_factory=RecognizerConfig, description="The recognizer that rewards.")
    evaluator: RecognizerConfig = Field(
        default_factory=RecognizerConfig,
        description="Another recognizer, for evaluation: a policy may learn the weaknesses of the one that rewards. By "
        "default micro:eval beside micro:reward, else seed-tts-eval's (zh: paraformer-zh, en: whisper-large-v3; "
        "SenseVoiceSmall where that one rewards).",
    )
    pauses: PauseConfig = Field(default_factory=PauseConfig, description="The pause score.")
    stability: StabilityConfig = Field(default_factory=StabilityConfig, description="The stability columns.")
    rate: RateConfig = Field(default_factory=RateConfig, description="The rate term.")
    weights: WeightsConfig = Field(default_factory=WeightsConfig, description="Weights of the built-in terms.")
    wer_scale: float = Field(default=3.0, gt=0.0, description="k in 1 - tanh(k * WER).")
    gates: list[GateConfig] = Field(default_factory=default_gates, description="Gates, all applied.")
    clip: Bounds = Field(default=(0.0, 1.0), description="The reward is clipped to this range.")
    components: list[ComponentConfig] = Field(default_factory=list, description="Components of one's own.")
    remove_length: bool = Field(
        default=False,
        description="Subtract the reward's linear dependence on duration, one slope fitted within prompts over the "
        "whole set (done once all candidates are scored, never batch by batch).",
    )
    batch_size: int = Field(default=16, ge=1, description="Utterances per batch of the scoring stage.")
    max_failure_rate: float = Field(
        default=0.2, ge=0.0, le=1.0, description="The stage stops when more scores than this fail."
    )

    @model_validator(mode="after")
    def _another_evaluator(self) -> RewardConfig:
        if "evaluator" not in self.model_fields_set:
            self.__dict__["evaluator"] = default_evaluator(self.recognizer)  # (frozen from here on)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> RewardConfig:
        names = [c.name for c in self.components]
        if len(set(names)) != len(names):
            raise ValueError(f"component names repeat: {sorted(n for n in set(names) if names.count(n) > 1)}")
        if sum((w := self.weights).model_dump().values()) + sum(c.weight for c in self.components) <= 0:
            raise ValueError(f"all weights are zero ({w}): nothing is left to reward")
        for label, (low, high) in (
            ("clip", self.clip),
            ("pauses.weak_bounds", self.pauses.weak_bounds),
            ("pauses.strong_bounds", self.pauses.strong_bounds),
            ("rate.units_per_second", self.rate.units_per_second),
        ):
            if not low < high:
                raise ValueError(f"{label}: the lower bound {low} is not below the upper bound {high}")
        return self


    def settings(self) -> dict[str, Any]:
        """What scores depend on besides the recognizers, as plain data.

        Batch size and failure limit change no score; ``remove_length`` is applied when scores are read.
        """
        others = {"recognizer", "evaluator", "batch_size", "max_failure_rate", "remove_length"}
        settings = self.model_dump(mode="json", exclude=others)
        if self.pauses.aligner is None:
            del settings["pauses"]["aligner"]
        else:
            settings["pauses"]["aligner"] = self.pauses.aligner.identity()
        return settings


class ServiceConfig(Settings):
    """`talker-rl serve`: where it listens, how it batches, and what it refuses."""

    host: str = Field(
        default="127.0.0.1", description="Address to listen on; any but a loopback address needs a token."
    )
    port: int = Field(default=8020, ge=0, le=65535, description="Port; 0 takes a free one.")
    token_file: str | None = Field(
        default=None,
        description="File whose first line is the bearer token; null: the variable TALKER_RL_TOKEN, where set.",
    )
    decoders: int = Field(default=1, ge=1, description="Worker processes that turn codes into speech.")
    recognizers: int = Field(default=1, ge=1, description="Worker processes that recognize and score it.")
    batch_items: int = Field(default=8, ge=1, description="Most utterances per batch; alike lengths share one.")
    batch_seconds: float = Field(default=120.0, gt=0, description="Most seconds of speech per batch.")
    batch_wait: float = Field(
        default=0.01, ge=0, le=1, description="Seconds that a batch which is not full waits for company."
    )
    queue_seconds: float = Field(
        default=600.0, gt=0, description="Most seconds of speech accepted and not yet answered; beyond it: 429."
    )
    request_timeout: float = Field(
        default=300.0, gt=0, le=3600, description="Seconds until a request is answered, if need be with failures."
    )
    worker_timeout: float = Field(
        default=120.0, gt=0, description="A worker that does not answer a batch for so many seconds is killed."
    )
    start_timeout: float = Field(default=900.0, gt=0, description="Likewise for a worker that loads its models.")
    max_body_mib: float = Field(default=16.0, gt=0, description="Largest request body.")
    max_items: int = Field(default=64, ge=1, description="Most items per request.")
    max_seconds: float = Field(default=60.0, gt=0, description="Longest utterance, as codes or as audio.")
    cache_items: int = Field(default=4096, ge=0, description="Answers kept for items that are asked again.")

    @model_validator(mode="after")
    def _one_fits(self) -> ServiceConfig:
        if self.max_seconds > self.queue_seconds:
            raise ValueError(f"queue_seconds {self.queue_seconds:g} takes no item of max_seconds {self.max_seconds:g}")
        return self
