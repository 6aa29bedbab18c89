"""Settings of the training room, and the refusal of TRL's loss fields. Imports neither torch nor transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from talker_rl.base.errors import ConfigError
from talker_rl.losses.config import parse_loss, parts_of
from talker_rl.losses.policy_config import learned_from
from talker_rl.speech.config import LoraSettings
from talker_rl.train.engine_config import EngineConfig
from talker_rl.train.online_config import OnlineConfig

LOSS_FIELDS: tuple[str, ...] = (
    "loss_type",
    "loss_weights",
    "beta",
    "label_smoothing",
    "ld_alpha",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "use_weighting",
    "discopop_tau",
)
"""DPOConfig's fields that describe a loss: refused, because `loss:` is the only way to name one."""

_TRL_TYPES = {"sigmoid": "dpo", "sigmoid_norm": "dpo_norm", "hinge": "hinge", "ipo": "ipo", "sft": "sft",
              "robust": "dpo"}


SAVE_STEPS = 50
"""`save_steps` of TalkerArguments, which cannot be imported here."""


class CommonConfig(BaseModel):
    """Data, a loss, what is trained, and how."""

    model_config = ConfigDict(extra="forbid")

    data: Literal["best_of_n", "file", "online"] | None = Field(
        None,
        description="null: preference pairs of the round's candidates. best_of_n: the best of the candidates "
        "themselves, to imitate (rejection sampling). file: given codes. Both as `completions:` says, with loss sft. "
        "online: samples of the policy as it is, as `online:` says: with loss grpo and its kin, with a loss of pairs "
        "(online DPO), or with sft (expert iteration).",
    )
    online: OnlineConfig | None = Field(None, description="Of data: online: what is sampled for each step.")
    loss: dict[str, Any] = Field(
        default_factory=lambda: {"type": "dpo", "beta": 0.1},
        description="The loss and its parameters, e.g. {type: ld_dpo, beta: 0.1, alpha: 0.5}; see talker_rl.losses. "
        "Where it is left out: dpo on pairs, sft on completions.",
    )
    lora: LoraSettings | None = Field(
        default_factory=lambda: LoraSettings.model_validate({}),
        description="LoRA on these Talker modules; null trains the full weights.",
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of TalkerArguments (transformers.TrainingArguments and trl.DPOConfig by their own names): "
        "learning_rate, max_steps, per_device_train_batch_size, gradient_accumulation_steps, save_steps, ...",
    )
    engine: EngineConfig = Field(
        default_factory=lambda: EngineConfig(), description="How it lies over its processes. No result hangs on it."
    )
    chosen_drop_alarm: float | None = Field(
        0.5,
        gt=0.0,
        description="Warn when the chosen's log-prob has fallen by more than so many nats per code against the "
        "reference, averaged over a logging window: the sign that training unlearns. Null is off.",
    )
    chosen_drop_stop: bool = Field(False, description="Stop training when the alarm rings.")
    reference_batch_size: int = Field(
        16, ge=1, description="Sequences at a time when reference log-probs are computed."
    )
    keep_optimizer: bool = Field(
        False, description="Keep the optimizer state of every checkpoint after training has finished."
    )

    @model_validator(mode="before")
    @classmethod
    def _loss_of_data(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("data") and "loss" not in data:
            data = {**data, "loss": {"type": "grpo" if data["data"] == "online" else "sft"}}
        if isinstance(data, dict) and data.get("data") == "online" and not data.get("online"):
            data = {**data, "online": {}}
        return data

    def content(self) -> dict[str, Any]:
        """What the weights depend on, as plain data."""
        return self.model_dump(mode="json", exclude={"engine"})

    @property
    def sides(self) -> int:
        """Sequences of a training record: a pair has two, a completion one."""
        return 1 if self.data else 2

    @property
    def pairs_per_step(self) -> int:
        """Pairs of an optimizer step on one device."""
        args = self.args
        return int(args.get("per_device_train_batch_size", 8) * args.get("gradient_accumulation_steps", 1))

    @property
    def fixed_steps(self) -> int | None:
        """Optimizer steps, where they don't depend on how many pairs there are."""
        steps = int(self.args.get("max_steps", 0))
        if self.online is not None and self.data == "online":
            most = self.online.samplings * self.online.steps_per_sampling
            return min(most, steps) if steps > 0 else most
        return steps if steps > 0 else None

    def steps(self, pairs: float) -> int:
        """Optimizer steps of a training on so many pairs."""
        return self.fixed_steps or math.ceil(self.args.get("num_train_epochs", 3) * pairs / self.pairs_per_step)

    def checkpoints(self, pairs: float) -> int:
        """Checkpoints that a training on so many pairs saves, unless it stops early."""
        strategy = self.args.get("save_strategy", "steps")
        if strategy != "steps":
            return math.ceil(self.args.get("num_train_epochs", 3)) if strategy == "epoch" else 1
        every = self.args.get("save_steps", SAVE_STEPS)
        return math.ceil(self.steps(pairs) / every if every >= 1 else 1 / every)  # below 1 it is a share of all steps


class TrainConfig(CommonConfig):
    """One training, complete."""

    select: Literal["last", "best"] = "last"
    """Which checkpoint becomes the result; all of them stay in the folder in either case."""
    select_metric: str = "eval_loss"
    """Of ``select: best`` and of early stopping, on held-out pairs."""
    patience: int | None = Field(None, ge=1)
    """Evaluations without a better metric after which a training stops."""
    save_at_kl: list[float] | None = None
    """KL to the policy that training began with, nats a step, at which it is saved too; rising."""
    stop_at_kl: float | None = Field(None, gt=0)
    """At which it ends."""

    @property
    def learned(self) -> Literal["samples", "pairs", "completions"]:
        """What the loss is given."""
        try:
            return learned_from(parse_loss(self.loss))
        except ValueError as error:
            raise ConfigError(str(error), where="train.loss", fix="mix it with sft, or train on pairs alone") from None

    @model_validator(mode="after")
    def _sound(self) -> TrainConfig:
        if parse_loss(self.loss).needs_rejected and self.data not in (None, "online"):
            raise ConfigError(
                f"data: {self.data} are completions, and the loss {self.loss['type']} compares two of them",
                where="train.loss",
                fix="loss: {type: sft}, or leave data out to train on pairs",
            )
        if self.learned == "samples" and self.data != "online":
            raise ConfigError(
                f"the loss {self.loss['type']} learns from samples with advantages, and data is {self.data}",
                where="train.loss", fix="data: online")
        refuse_loss_fields(self.args)
        if self.data == "online" and self.lora is None and any(
                (part.needs_rejected and part.needs_reference) or (not part.needs_rejected and getattr(part, "beta", 0))
                for part in parts_of(parse_loss(self.loss)) if part.type not in ("mix", "custom")):
            raise ConfigError("full weights leave no reference behind, which is needed live: samples are of the policy "
                              "as it is", where="train.lora", fix="train LoRA, or a loss without a reference (grpo, "
                              "gspo, rloo, sft)")
        if self.lora is None and (self.save_at_kl or self.stop_at_kl):
            raise ConfigError("full weights leave no reference behind, so their drift is not measured while they are "
                              "trained", where="checkpoint.save_at_kl, checkpoint.stop_at_kl",
                              fix="train LoRA, or leave both out")
        if self.lora is not None and self.lora.lora_dropout > 0 and self.args.get("disable_dropout", True):
            raise ConfigError(
                "lora_dropout > 0 and disable_dropout: true contradict each other",
                where="train.lora.lora_dropout, train.args.disable_dropout",
                fix="set lora_dropout: 0, or args: {disable_dropout: false}",
            )
        return self


def refuse_loss_fields(values: Mapping[str, Any]) -> None:
    """Raise when one of DPOConfig's loss fields is set, with the `loss:` dictionary to write instead.

    Raises:
        ConfigError: names the fields that were set.
    """
    given = {name: values[name] for name in LOSS_FIELDS if values.get(name) is not None}
    if not given:
        return
    unknown = [t for t in _types(given) if t not in _TRL_TYPES]
    if unknown:
        fix = f"TRL's loss {unknown[0]!r} is not among the losses here: write it as {{type: custom, import_path: ...}}"
    elif {"f_divergence_type", "f_alpha_divergence_coef", "use_weighting", "discopop_tau"} & set(given):
        fix = "this modification of DPO is not offered: write your own loss as {type: custom, import_path: ...}"
    else:
        fix = f"remove it and write  loss: {json.dumps(suggest_loss(given))}"
    raise ConfigError(
        "the `loss:` dictionary is the only way to name a loss",
        where="train.args: " + ", ".join(f"{name}={value!r}" for name, value in given.items()),
        fix=fix,
    )


def suggest_loss(given: Mapping[str, Any]) -> dict[str, Any]:
    """The `loss:` dictionary that means what TRL's loss fields mean."""
    terms = [_term(name, given) for name in _types(given)]
    if len(terms) == 1:
        return terms[0]
    weights = given.get("loss_weights") or [1.0] * len(terms)
    return {"type": "mix", "terms": [{"weight": w, "loss": term} for w, term in zip(weights, terms, strict=False)]}


def _types(given: Mapping[str, Any]) -> list[str]:
    types = given.get("loss_type") or ["sigmoid"]
    return [types] if isinstance(types, str) else list(types)


def _term(trl_type: str, given: Mapping[str, Any]) -> dict[str, Any]:
    kind = _TRL_TYPES[trl_type]
    if kind == "sft":
        return {"type": "sft", "normalize": "token"}  # TRL's normalization
    term: dict[str, Any] = {"type": kind, "beta": given.get("beta", 0.1)}
    if kind == "dpo" and given.get("ld_alpha") is not None:
        return term | {"type": "ld_dpo", "alpha": given["ld_alpha"]}
    if kind == "dpo" and given.get("label_smoothing"):
        term["label_smoothing"] = given["label_smoothing"]
        term |= {"robust": True} if trl_type == "robust" else {}
    if kind == "ipo":
        term["normalize"] = "mean"  # TRL divides by the length
    return term
