"""One configuration class per loss, and ``parse_loss``: from a dictionary to one of them.

A new loss is one file with a function ``my_loss(batch, config) -> LossOutput`` and one class here (or anywhere that is
imported first):

    @register
    class MyLossConfig(LossConfig):
        implementation = "my_package.my_file:my_loss"
        type: Literal["my_loss"] = "my_loss"
        beta: Beta = 0.1

This module does not import torch: a configuration can be checked before anything heavy is loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from talker_rl.base.errors import ConfigError
from talker_rl.base.settings import Settings
from talker_rl.records.token_classes import CLASSES

Finite = Annotated[float, Field(allow_inf_nan=False)]
Beta = Annotated[float, Field(gt=0, allow_inf_nan=False, description="Strength of the implicit KL constraint.")]


class LossConfig(Settings):
    """Base of all loss configurations: ``type`` names the loss."""

    aliases: ClassVar[tuple[str, ...]] = ()
    """Other names of ``type``, TRL's where TRL has one."""
    implementation: ClassVar[str] = ""
    """``module:name`` of a function ``(batch, config) -> LossOutput``, or of a class built with the config."""
    needs_reference: ClassVar[bool] = True
    """Whether the batch must carry reference log-probabilities."""
    needs_rejected: ClassVar[bool] = True
    """Whether it compares two completions; one that does not can be trained on completions alone."""

    type: str = Field(description="Name of the loss.")

    @classmethod
    def prepare(cls, data: dict[str, Any], where: str) -> dict[str, Any]:
        """Hook before validation; a loss made of losses parses its parts here, so that errors name their place."""
        return data


class PairLossConfig(LossConfig):
    """A loss that compares two completions."""

    stop: Literal["as_paper", "keep", "drop"] = Field(
        "as_paper", description="What the token that ends speech counts in the margin, on both sides. as_paper: as the "
        "loss's definition has it. keep: 1, where the loss would weigh, draw or divide it away. drop: nothing. A "
        "length preference of the pairs is learned first on it (talker-rl anatomy). A completion that was cut has none."
    )
    token_weights: dict[str, Finite] = Field(
        default_factory=dict, description="What tokens count by what they say, on both sides: a class of "
        "talker_rl.records.token_classes, or `others`, to a weight, e.g. {substituted: 1, inserted: 1, others: 0}. "
        "Left out: 1. It weighs log-ratios (SimPO: log-probs) before all else that the loss does with them."
    )

    @field_validator("token_weights")
    @classmethod
    def _known_classes(cls, value: dict[str, float]) -> dict[str, float]:
        for name, weight in value.items():
            if name not in (*CLASSES, OTHERS):
                near = difflib.get_close_matches(name, (*CLASSES, OTHERS), n=1)
                raise ValueError(f"there is no class {name!r} of tokens" + (f", did you mean {near[0]!r}?" if near else
                                 f": one of {', '.join(CLASSES)}, {OTHERS}"))
            if weight < 0:
                raise ValueError(f"{name}: {weight:g} is below 0")
        return value

    def weights(self) -> list[float] | None:
        """What a token of each of ``CLASSES`` counts, in their order; None where all count 1."""
        others = self.token_weights.get(OTHERS, 1.0)
        return [self.token_weights.get(name, others) for name in CLASSES] if self.token_weights else None


class SigmoidConfig(PairLossConfig):
    """A loss that is -log sigmoid of its margin, so that wrong labels can be reckoned with."""

    label_smoothing: float = Field(
        0.0, ge=0.0, lt=0.5, description="Probability that a preference is flipped. It keeps sure pairs from being "
        "pulled on forever (cDPO, Mitchell 2023)."
    )
    robust: bool = Field(
        False, description="With label_smoothing: divide the flips out, so that the loss is in expectation that of "
        "right labels, instead of smoothing them (rDPO, Chowdhury et al. 2024; TRL's `robust`)."
    )

    @model_validator(mode="after")
    def _flipped(self) -> SigmoidConfig:
        if self.robust and not self.label_smoothing:
            raise ValueError("robust divides out the share of flipped preferences: give it as label_smoothing, e.g. "
                             "0.1")
        return self


class MeanTypeConfig(LossConfig):
    """A loss that divides by a completion's length, which an empty completion does not have."""

    empty: Literal["raise", "skip"] = Field(
        "raise",
        description="A pair with an empty completion: `raise` an error, or `skip` it (loss and gradient 0, left out of "
        "the batch mean, counted in the metric `loss/skipped_pairs`).",
    )


OTHERS = "others"
"""In ``token_weights``: every class that is not named."""

_REGISTRY: dict[str, type[LossConfig]] = {}
_C = TypeVar("_C", bound=LossConfig)


def register(cls: type[_C]) -> type[_C]:
    """Class decorator: makes a configuration class known under its ``type`` and its aliases."""
    for name in (cls.model_fields["type"].default, *cls.aliases):
        if _REGISTRY.get(name, cls).__qualname__ != cls.__qualname__:
            raise ValueError(f"loss type {name!r} is already registered by {_REGISTRY[name].__name__}")
        _REGISTRY[name] = cls
    return cls


def loss_types() -> list[str]:
    """Every name that ``type`` accepts, aliases included."""
    import_module("talker_rl.losses.policy_config")  # which builds on this module
    return sorted(_REGISTRY)


@register
class DPOLossConfig(SigmoidConfig):
    """DPO (Rafailov et al. 2023, eq. 7)."""

    aliases = ("sigmoid",)
    implementation = "talker_rl.losses.dpo:dpo_loss"
    type: Literal["dpo"] = "dpo"
    beta: Beta = 0.1


@register
class DPONormLossConfig(SigmoidConfig, MeanTypeConfig):
    """DPO on log-ratios averaged over each completion's tokens; TRL's ``sigmoid_norm``."""

    aliases = ("sigmoid_norm",)
    implementation = "talker_rl.losses.dpo:dpo_norm_loss"
    type: Literal["dpo_norm"] = "dpo_norm"
    beta: Beta = 0.1


@register
class HingeLossConfig(PairLossConfig):
    """Hinge on the DPO margin (SLiC, Zhao et al. 2023, with DPO's reward)."""

    implementation = "talker_rl.losses.dpo:hinge_loss"
    type: Literal["hinge"] = "hinge"
    beta: Beta = 0.1


@register
class IPOLossConfig(PairLossConfig, MeanTypeConfig):
    """IPO (Azar et al. 2023, eq. 17)."""

    implementation = "talker_rl.losses.ipo:ipo_loss"
    type: Literal["ipo"] = "ipo"
    beta: Beta = Field(0.1, description="The paper's tau; the margin is pulled to 1 / (2 beta).")
    normalize: Literal["mean", "sum"] = Field(
        "mean", description="Log-ratios per token (as TRL), or summed over the completion (as the paper's formula)."
    )


@register
class RDPOLossConfig(SigmoidConfig):
    """R-DPO (Park et al. 2024, eq. 9): DPO with a constant margin against length."""

    implementation = "talker_rl.losses.r_dpo:r_dpo_loss"
    type: Literal["r_dpo"] = "r_dpo"
    beta: Beta = 0.1
    alpha: Finite = Field(0.01, ge=0, description="Margin per unit of length by which chosen exceeds rejected.")
    alpha_unit: Literal["token", "second"] = Field("token", description="What alpha is counted in.")
    code_rate: Finite | None = Field(
        None, gt=0, description="Tokens per second; used when alpha_unit is `second`. null: the frames per second of "
        "the model's codec (of a call without a model, Qwen2.5-Omni's)."
    )


@register
class SamPOLossConfig(SigmoidConfig):
    """SamPO (Lu et al. 2024): as many tokens of the longer completion as the shorter one has."""

    implementation = "talker_rl.losses.sampo:sampo_loss"
    type: Literal["sampo"] = "sampo"
    beta: Beta = 0.1
    mode: Literal["random", "top_k"] = Field("random", description="How the tokens of the longer side are chosen.")
    by: Literal["ratio", "logp"] = Field(
        "ratio", description="`top_k` keeps the largest policy/reference log-ratios, or the largest policy log-probs."
    )


@register
class LDDPOLossConfig(SigmoidConfig):
    """LD-DPO (Liu et al. 2024, eq. 11): tokens past the common length weigh alpha."""

    implementation = "talker_rl.losses.ld_dpo:ld_dpo_loss"
    type: Literal["ld_dpo"] = "ld_dpo"
    beta: Beta = 0.1
    alpha: float = Field(0.5, ge=0, le=1, description="Weight of the tokens past min(T_chosen, T_rejected); 1 is DPO.")
    reference: Literal["both", "policy"] = Field(
        "both", description="Weigh policy and reference alike (ln 2 at initialization), or the policy only."
    )


@register
class SimPOLossConfig(SigmoidConfig, MeanTypeConfig):
    """SimPO (Meng et al. 2024, eq. 6); no reference."""

    implementation = "talker_rl.losses.simpo:simpo_loss"
    needs_reference = False
    type: Literal["simpo"] = "simpo"
    beta: Beta = Field(2.0, description="Scale of the mean log-probability; 2 to 10 in the paper.")
    gamma: Finite = Field(0.5, ge=0, description="Target margin, absolute (not divided by beta).")


@register
class SFTLossConfig(MeanTypeConfig):
    """Negative log-likelihood of the chosen completion; a term to mix in, or supervised training by itself."""

    implementation = "talker_rl.losses.sft:sft_loss"
    needs_reference = False
    needs_rejected = False
    type: Literal["sft"] = "sft"
    normalize: Literal["sequence", "token"] = Field(
        "sequence",
        description="Mean over a completion's tokens then over pairs, or over all tokens of the batch (TRL).",
    )


@register
class CustomLossConfig(LossConfig):
    """A function of one's own: ``function(batch, **kwargs) -> LossOutput``.

    Set ``function.needs_reference = False`` if it does not read the reference.
    """

    implementation = "talker_rl.losses.custom:CustomLoss"
    type: Literal["custom"] = "custom"
    import_path: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$", description="`module:function`.")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the function.")


class MixTerm(Settings):
    """One weighted part of a mixture."""

    weight: Finite = Field(1.0, ge=0, description="Factor of this term; at 0 it is computed for the metrics only.")
    loss: SerializeAsAny[LossConfig] = Field(description="The term's own loss dictionary.")

    @field_validator("loss", mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        return parse_loss(value, where="loss.terms[].loss") if isinstance(value, Mapping) else value


@register
class MixLossConfig(LossConfig):
    """A weighted sum of losses."""

    implementation = "talker_rl.losses.mix:MixLoss"
    type: Literal["mix"] = "mix"
    terms: list[MixTerm] = Field(min_length=1, description="The weighted terms.")

    @classmethod
    def prepare(cls, data: dict[str, Any], where: str) -> dict[str, Any]:
        terms = data.get("terms")
        if not isinstance(terms, (list, tuple)):
            return data
        parsed = []
        for i, term in enumerate(terms):
            if isinstance(term, Mapping) and "loss" in term:
                term = {**term, "loss": parse_loss(term["loss"], where=f"{where}.terms[{i}].loss")}
            parsed.append(term)
        return {**data, "terms": parsed}


def parse_loss(data: Mapping[str, Any] | LossConfig, where: str = "loss") -> LossConfig:
    """Check a loss dictionary.

    Args:
        data: e.g. ``{"type": "ld_dpo", "beta": 0.1, "alpha": 0.5}``; a parsed configuration is returned as it is.
        where: place of the dictionary in the whole configuration, for messages.

    Returns:
        The configuration of the named loss, with its ``type`` in the canonical spelling (``sigmoid`` -> ``dpo``).

    Raises:
        ConfigError: no such type or key (the nearest right one is named), or a value that is not allowed.
    """
    if isinstance(data, LossConfig):
        return data
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"A loss is a dictionary with a type, not {data!r}.", where=where, fix='write {"type": "dpo", "beta": 0.1}'
        )
    if "type" not in data:
        raise ConfigError("The loss has no `type`.", where=where, fix=f"add `type`, one of: {', '.join(loss_types())}")
    known = loss_types()
    cls = _REGISTRY.get(data["type"]) if isinstance(data["type"], str) else None
    if cls is None:
        fix = _suggest(str(data["type"]), known, "types")
        raise ConfigError(f"There is no loss of type {data['type']!r}.", where=f"{where}.type", fix=fix)
    values = cls.prepare({**data, "type": cls.model_fields["type"].default}, where)
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise _config_error(cls, error, where) from None


def parts_of(loss: LossConfig) -> list[LossConfig]:
    """A loss, and all those that it is mixed of."""
    terms = loss.terms if isinstance(loss, MixLossConfig) else []
    return [loss, *(part for term in terms for part in parts_of(term.loss))]


def filled(loss: LossConfig, **values: Any) -> LossConfig:
    """The loss with these values where it, or a part of it, has such a field and left it null."""
    if isinstance(loss, MixLossConfig):
        terms = [term.model_copy(update={"loss": filled(term.loss, **values)}) for term in loss.terms]
        return loss.model_copy(update={"terms": terms})
    open_ = {name: value for name, value in values.items()
             if name in type(loss).model_fields and getattr(loss, name) is None}
    return loss.model_copy(update=open_)


def _suggest(word: str, known: Iterable[str], kind: str) -> str:
    known = list(known)
    nearest = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    listing = f"{kind} are: {', '.join(known)}"
    return f"did you mean `{nearest[0]}`? ({listing})" if nearest else listing


def _config_error(cls: type[LossConfig], error: ValidationError, where: str) -> ConfigError:
    """Every problem of one dictionary in one message; the first one gives the place."""
    problems, fixes, places = [], [], []
    for item in error.errors():
        place = where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"])
        places.append(place)
        if item["type"] == "extra_forbidden":
            owner: type[BaseModel] = MixTerm if len(item["loc"]) > 1 else cls
            problems.append(f"`{place}` is not a key of this loss.")
            fixes.append(_suggest(str(item["loc"][-1]), owner.model_fields, "keys"))
        else:
            got = "" if item["type"] == "missing" else f", got {item['input']!r}"
            problems.append(f"`{place}`: {item['msg']}{got}.")
            fixes.append(f"change `{place}`")
    return ConfigError(" ".join(problems), where=places[0], fix="; ".join(dict.fromkeys(fixes)))
