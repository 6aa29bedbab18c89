"""Trainings of a run and their checkpoints: settings that all share, what each variant says over them, what is kept.

    train: {loss: {type: dpo, beta: 0.1}, args: {max_steps: 90}}     of every training
    variants: {dpo: {}, ipo: {loss: {type: ipo}}}                     what differs, by name; left out: one, `default`
    checkpoint: {tried: all, keep: best, metric: reward}              which of a training's checkpoints is its result

Runs and sweeps read them alike (:func:`over`), and write them alike (:func:`differences`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from talker_rl.base.settings import Settings
from talker_rl.config_files import merge
from talker_rl.losses.config import parse_loss
from talker_rl.speech.config import SamplingConfig
from talker_rl.train.config import CommonConfig, TrainConfig

ALONE = "default"
"""Name of the only variant of a run that names none."""


class Selection(Settings):
    """What held-out pairs decide, while a training runs."""

    select: Literal["last", "best"] = Field(
        "last", description="The checkpoint that a training itself selects: its last, or the best by "
        "metric_for_best_model on the held-out pairs. All of them stay in the folder in either case."
    )
    metric_for_best_model: str = Field(
        "eval_loss", description="Of select: best and of early stopping, e.g. eval_loss or eval_rewards/accuracies; "
        "lower is better if the name ends in `loss`, else higher."
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="Stop a training after so many evaluations without a better metric_for_best_model; "
        "null never stops early."
    )
    save_at_kl: list[float] | None = Field(
        None, description="Also save where the policy has moved so far from its reference (the one that "
        "training began with, but for reference: kept), e.g. [0.002, 0.005]: exact KL in nats a step on sequences of "
        "the training's own pairs. args.save_total_limit leaves these. Losses are compared fairly where they have "
        "moved as far."
    )
    stop_at_kl: float | None = Field(
        None, gt=0, description="End a training where it has moved so far (max_steps still ends it); saved there."
    )

    @field_validator("save_at_kl")
    @classmethod
    def _rising(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and (not all(kl > 0 for kl in value) or sorted(set(value)) != value):
            raise ValueError("give rising numbers above 0, e.g. [0.002, 0.005]")
        return value


class CheckpointConfig(Selection):
    """Which checkpoint of a training becomes its result: early stopping on held-out reward."""

    tried: Literal["all", "last", "selected"] = Field(
        "all", description="Which saved checkpoints speak the dev texts: every one; the last; or the one that select "
        "names (select: best costs no speech: for supervised training)."
    )
    keep: Literal["best", "last"] = Field(
        "best", description="best: of those that were tried, the one that metric names. last: the last step, whatever "
        "dev says; the others are tried all the same, for their curve (losses are compared at equal steps)."
    )
    metric: Literal["reward", "wer"] = Field(
        "reward", description="Mean reward (largest wins) or corpus WER (smallest wins), both by the reward recognizer."
    )
    num_candidates: int = Field(2, ge=1, description="Candidates a dev prompt and checkpoint; same seeds for each.")
    sampling: SamplingConfig | None = Field(None, description="null: as in rollouts.")
    held_out_share: float = Field(
        0.0, ge=0, le=0.5, description="Share of the train prompts whose pairs are not trained on: their loss and "
        "accuracy are logged, and select: best and early_stopping_patience need them."
    )

    def hashed(self) -> dict[str, Any]:
        """What stands in a choice's key, by the names that it had when keys began."""
        own = self.model_dump(mode="json", exclude=set(Selection.model_fields))
        return {"checkpoints": own.pop("tried"), **own}


class VariantConfig(CommonConfig):
    """One variant, complete."""

    checkpoint: Selection = Field(default_factory=Selection, description="What differs from `checkpoint` above.")

    @model_validator(mode="after")
    def _sound(self) -> VariantConfig:
        self.training()
        return self

    def checkpoints(self, pairs: float) -> int:
        return super().checkpoints(pairs) + len(self.checkpoint.save_at_kl or [])

    def training(self) -> TrainConfig:
        """The settings of its training."""
        chosen = self.checkpoint
        return TrainConfig.model_validate(self.model_dump(mode="json", exclude={"checkpoint"}) | {
            "select": chosen.select, "select_metric": chosen.metric_for_best_model,
            "patience": chosen.early_stopping_patience, "save_at_kl": chosen.save_at_kl,
            "stop_at_kl": chosen.stop_at_kl})


def over(run: Mapping[str, Any], variants: Any) -> Any:
    """Each variant complete: what it says, merged over the run's ``train`` and over what its ``checkpoint`` says of
    trainings. None is the one variant of a run that names none; what is no mapping is left to be refused.

    Raises:
        ConfigError: a variant's loss is wrong.
    """
    train, checkpoint = run.get("train") or {}, run.get("checkpoint") or {}
    if not isinstance(train, dict) or not set(train) <= set(CommonConfig.model_fields):
        train = {}  # a mistake is told there, and not of each variant
    if isinstance(checkpoint, dict) and (told := {k: v for k, v in checkpoint.items() if k in Selection.model_fields}):
        train = {**train, "checkpoint": told}
    named = {ALONE: {}} if variants is None else variants
    if not isinstance(named, dict):
        return named
    found = {str(name): merge(train, own or {}) if isinstance(own or {}, dict) else own for name, own in named.items()}
    for name, variant in found.items():
        if isinstance(variant, dict) and isinstance(variant.get("loss"), dict):
            parse_loss(variant["loss"], where=f"{place_of(name, found)}.loss")
    return found


def place_of(variant: str, variants: Iterable[str]) -> str:
    """Where a configuration says what is a variant's own: ``train``, or ``variants.<name>``."""
    return "train" if list(variants) == [ALONE] else f"variants.{variant}"


def differences(train: CommonConfig, checkpoint: CheckpointConfig, variants: Mapping[str, VariantConfig]) -> dict[str,
                                                                                                                  Any]:
    """``train`` and ``variants`` as plain data, of which :func:`over` makes the same variants again."""
    common = train.model_dump(mode="json")
    base = {**common, "checkpoint": checkpoint.model_dump(mode="json", include=set(Selection.model_fields))}
    whole = {name: cfg.model_dump(mode="json") for name, cfg in variants.items()}
    if whole == {ALONE: base}:
        return {"train": common}
    if "loss" not in train.model_fields_set:  # then there was none to merge over
        del common["loss"], base["loss"]
    return {"train": common, "variants": {name: _difference(base, full) for name, full in whole.items()}}


def _difference(base: dict[str, Any], full: dict[str, Any]) -> dict[str, Any]:
    """What has to be merged over ``base`` to get ``full``, which lacks none of its keys; a loss is given whole."""
    return {key: _difference(base[key], value) if key != "loss" and isinstance(value, dict) and isinstance(
        base.get(key), dict) else value for key, value in full.items() if key not in base or base[key] != value}
