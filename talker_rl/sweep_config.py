"""The configuration of a sweep: one run's settings, and what varies, i.e. losses, ways of choosing pairs, seeds.

    run: {extends: [../demo.yaml], checkpoint: {num_candidates: 1}}      what every training has in common
    variants: {dpo: {loss: {type: dpo}}, ipo: {loss: {type: ipo}}}  each merged over run.train
    arms: {natural: {}, biased: {pairs: {chosen_longer_by: 5}}}     each merged over run.pairs
    seeds: [0, 1]
    baseline: dpo

Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from talker_rl.base.disk import read_json
from talker_rl.base.errors import ConfigError
from talker_rl.base.settings import Settings
from talker_rl.config import RunConfig, check_names, parse_as
from talker_rl.config_files import Reading, merge, read_files
from talker_rl.data.config import PairsConfig
from talker_rl.older_keys import Moved, modern
from talker_rl.overrides import with_overrides
from talker_rl.shipped import locate
from talker_rl.tuning import TUNED, TuningConfig, with_settings
from talker_rl.variants import VariantConfig, differences, over

_LENGTH = ("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps")
"""Training arguments that say how much is trained: alike in all variants, or the losses are not what differs."""


class ArmConfig(Settings):
    """One way of choosing pairs, and who is trained on them."""

    pairs: PairsConfig = Field(default_factory=PairsConfig, description="Merged over run.pairs.")
    variants: list[str] = Field(description="Names of variants; left out, or `all`: every one.")


class SweepConfig(Settings):
    """A grid: every arm's variants, each with every seed."""

    name: str = Field("sweep", pattern=r"^[\w.-]+$", description="Its folder is runs/<name> unless --run-dir says "
                      "otherwise.")
    run: RunConfig = Field(
        default_factory=RunConfig, description="What all trainings have in common, as in a run's own file; `extends: "
        "[files]`, relative to the sweep's file, are merged first. The last step is kept (checkpoint.keep: last), for "
        "losses are compared at equal steps."
    )
    variants: dict[str, VariantConfig] = Field(description="Name -> what differs from run.train, e.g. {loss: {...}}.")
    arms: dict[str, ArmConfig] = Field(description="Name -> what differs from run.pairs, and which variants.")
    seeds: list[int] = Field([0, 1], min_length=1, description="Training seeds (train.args.seed) of every variant.")
    baseline: str = Field("dpo", description="The variant that the others are measured against; part of every arm.")
    tuning: TuningConfig | None = Field(
        None, description="Try a small grid of settings of each variant first, and add each once more with those that "
        "were best on dev, as <variant>_tuned: `as published` and `tuned` are separate rows."
    )
    at_kl: list[float] | None = Field(
        None, description="Where losses are compared at equal drift, KL to the base in nats, e.g. [0.003]; with "
        "run.eval.checkpoints: all. null: as far as four in five of an arm's variants came. Beside it each is compared "
        "with the baseline as far as both came."
    )
    drift: Literal["code", "utterance", "code_on_base"] = Field(
        "code", description="What KL is of: a token of what the policy said itself; an utterance of that (a policy "
        "that speaks longer moves further); a token of what the base said."
    )

    @model_validator(mode="before")
    @classmethod
    def _merge_over_run(cls, data: Any) -> Any:
        """Fill in what variants and arms share, so that each is complete and is checked with its own path."""
        if not isinstance(data, dict) or not isinstance(run := data.get("run", {}), dict):
            return data
        run = merge({"checkpoint": {"keep": "last"}}, run)
        if run.get("variants"):
            raise ValueError("run.train holds what all variants share: name the variants under `variants`, and not "
                             "under run")
        out = {**data, "run": run, "variants": over(run, data.get("variants") or {})}
        common = {"pairs": run.get("pairs") or {}, "variants": "all"}
        if isinstance(data.get("arms"), dict):
            out["arms"] = {str(name): merge(common, own or {}) if isinstance(own or {}, dict) else own
                           for name, own in data["arms"].items()}
        if isinstance(out["variants"], dict):
            for arm in (out.get("arms") or {}).values():
                if isinstance(arm, dict) and arm.get("variants") == "all":
                    arm["variants"] = list(out["variants"])
        return out

    @field_validator("variants", "arms")
    @classmethod
    def _names(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not value:
            raise ValueError("at least one is needed")
        check_names(value, "be a name here")
        return value

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value) or min(value) < 0:
            raise ValueError("seeds are different numbers from 0 on")
        return value

    @field_validator("at_kl")
    @classmethod
    def _targets(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and (not value or not all(kl > 0 for kl in value)):
            raise ValueError("give numbers above 0, e.g. [0.003], or null")
        return value

    @model_validator(mode="after")
    def _sound(self) -> SweepConfig:
        if self.run.iterations > 1:
            raise ValueError("a sweep compares losses on the same pairs, so run.iterations is 1")
        if self.run.checkpoint.keep != "last":
            raise ValueError("a sweep compares losses at equal steps, so run.checkpoint.keep is `last`")
        for arm, cfg in self.arms.items():
            for name in cfg.variants:
                if name not in self.variants:
                    near = difflib.get_close_matches(name, self.variants, n=1)
                    raise ValueError(f"arms.{arm}.variants: there is no variant {name!r}"
                                     + (f", did you mean {near[0]!r}?" if near else ""))
            if self.baseline not in cfg.variants:
                raise ValueError(f"arms.{arm}.variants lacks the baseline {self.baseline!r}, which the others are "
                                 "measured against")
        if self.tuning is not None:
            trained = dict.fromkeys(name for cfg in self.arms.values() for name in cfg.variants)
            self.tuning.check(self.variants, trained, ("checkpoint", "args.seed", *(f"args.{key}" for key in _LENGTH)))
            for arm in self.arms:
                try:
                    self.tuning_run(arm)  # what is tried is checked now
                except ConfigError as error:
                    raise ConfigError(f"tuning tries what a variant does not take: {error.what}", where=error.where,
                                      fix=f"name it under tuning.own of those that take it ({error.fix})") from None
        if self.at_kl is not None and self.run.eval.checkpoints != "all":
            raise ValueError("at_kl compares checkpoints on the eval texts, so run.eval.checkpoints is `all`")
        for key in _LENGTH:
            values = {name: cfg.args.get(key) for name, cfg in self.variants.items()}
            if len(set(values.values())) > 1:
                told = ", ".join(f"{name}: {value}" for name, value in values.items())
                raise ValueError(f"variants differ in args.{key} ({told}): losses are compared at equal steps")
        return self

    def arm_run(self, arm: str, tuned: Mapping[str, Mapping[str, Any]] | None = None) -> RunConfig:
        """The run of one arm: its pairs, and ``<variant>-s<seed>`` for every variant and seed.

        Args:
            tuned: the settings that tuning chose, by variant; each stands there once more with them.
        """
        variants = {cell(variant, seed): self._with_seed(variant, seed) for variant, seed in self.cells(arm)}
        variants |= {cell(f"{variant}{TUNED}", seed): self._with_seed(variant, seed, settings)
                     for variant, settings in (tuned or {}).items() for seed in self.seeds}
        return self._run_of(arm, variants)

    def tuning_run(self, arm: str) -> RunConfig:
        """The run of one arm's tries: ``<variant>-<number>`` for every combination of settings."""
        assert self.tuning is not None
        data = self._run_of(arm, {
            f"{variant}-{k}": self._with_seed(variant, self.tuning.seed, settings, tried=True)
            for variant in self.arms[arm].variants for k, settings in enumerate(self.tuning.settings(variant))})
        return data.model_copy(update={"name": f"{data.name}-tuning",
                                       "checkpoint": data.checkpoint.model_copy(update={"tried": "last"})})

    def _run_of(self, arm: str, variants: dict[str, Any]) -> RunConfig:
        data = self.run.resolved()
        data["train"].pop("loss")  # each has its own, whole
        return RunConfig.model_validate(data | {
            "name": f"{self.name}-{arm}", "pairs": self.arms[arm].pairs.model_dump(mode="json"), "variants": variants})

    def cells(self, arm: str, tuned: Iterable[str] = ()) -> list[tuple[str, int]]:
        """(variant, seed) of every training of an arm, in order."""
        names = [*self.arms[arm].variants, *(f"{variant}{TUNED}" for variant in tuned)]
        return [(variant, seed) for variant in names for seed in self.seeds]

    def _with_seed(
        self, variant: str, seed: int, settings: Mapping[str, Any] | None = None, *, tried: bool = False
    ) -> dict[str, Any]:
        data = with_settings(self.variants[variant].model_dump(mode="json"), settings or {})
        if tried:  # nothing of a try is kept but what its last step says
            data["checkpoint"] |= {"save_at_kl": None}
        return data | {"args": data["args"] | {"seed": seed}}

    def resolved(self) -> dict[str, Any]:
        """Everything, defaults included, as plain JSON data; of variants what differs."""
        told = differences(self.run.train, self.run.checkpoint, self.variants)
        return self.model_dump(mode="json") | {"run": self.run.resolved() | {"train": told["train"]},
                                               "variants": told.get("variants", {name: {} for name in self.variants})}

    def to_yaml(self) -> str:
        """The resolved configuration; loading it gives an equal one."""
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True)


def cell(variant: str, seed: int) -> str:
    """Name of one training of a sweep among its arm's variants."""
    return f"{variant}-s{seed}"


def trainings(cells: Iterable[tuple[str, int]]) -> dict[str, dict[str, Any]]:
    """What the names of trainings mean, as an arm's manifest says it: name -> ``variant, seed``."""
    return {cell(variant, seed): {"variant": variant, "seed": seed} for variant, seed in cells}


def stored_sweep(folder: Path) -> dict[str, Any]:
    """The configuration that a sweep's folder was last started with; {} where it has none.

    Raises:
        DataError: it is damaged.
    """
    file, fix = folder / "sweep.json", f"give the sweep's configuration again: talker-rl sweep FILE --run-dir {folder}"
    found: dict[str, Any] = read_json(file, fix=fix) if file.is_file() else {}
    return found


def load_sweep(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> SweepConfig:
    """Read YAML files, or shipped sweeps by name, left to right, put what ``run.extends`` names under ``run``, apply
    ``dotted.key=value``.

    Raises:
        ConfigError: a file that cannot be read, an unknown key (the nearest right one is named), a wrong value.
    """
    data: dict[str, Any] = {}
    moved: Moved = {}

    def reading(one: dict[str, Any]) -> dict[str, Any]:
        return modern(one, moved)

    for file in files:
        path = locate(file, sweep=True)
        data = merge(data, _extended(read_files([path], reading), path.parent, reading))
    where = ", ".join(map(str, files)) or "overrides"
    if not data.keys() & {"run", "arms"} and data.keys() & RunConfig.model_fields.keys() - {"name"}:
        raise ConfigError("This is the configuration of a run, and of no sweep", where=where,
                          fix=f"talker-rl run -c {files[-1]}; a sweep has `variants`, `arms`, and the rest under `run`")
    return load_sweep_data(data, overrides, where, moved)


def load_sweep_data(
    data: dict[str, Any], overrides: Sequence[str] = (), where: str = "sweep", moved: Moved | None = None
) -> SweepConfig:
    """Plain data with ``dotted.key=value`` applied; see :func:`load_sweep`."""
    return parse_as(SweepConfig, with_overrides(data, overrides, where, moved), where)


def _extended(data: dict[str, Any], folder: Path, reading: Reading) -> dict[str, Any]:
    run = data.get("run")
    if not isinstance(run, dict) or "extends" not in run:
        return data
    files = run["extends"]
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise ConfigError("run.extends is a list of files", where=f"run.extends: {files!r}",
                          fix="write e.g. extends: [../demo.yaml], relative to the sweep's file")
    own = {key: value for key, value in run.items() if key != "extends"}
    return {**data, "run": merge(read_files([locate(file, beside=folder) for file in files], reading), own)}
