"""The whole configuration of a run: the rooms' settings composed, read from YAML, overridden by ``key=value``.

    config = load_config(["demo"], ["pairs.margin=0.1", "train.loss.beta=0.2"])

Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

import difflib
import typing
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from talker_rl.base.errors import ConfigError
from talker_rl.base.processes import check_kind, sound_devices
from talker_rl.base.settings import Settings
from talker_rl.config_files import read_files
from talker_rl.data.config import CompletionsConfig, PairsConfig
from talker_rl.data.speaker_settings import SpeakerSettings
from talker_rl.older_keys import Moved, modern
from talker_rl.overrides import with_overrides
from talker_rl.reward.config import RewardConfig, ServiceConfig
from talker_rl.rounds import stage_kinds
from talker_rl.speech.config import ConditioningConfig, ModelConfig, SamplingConfig, Token2WavConfig
from talker_rl.train.config import CommonConfig
from talker_rl.variants import CheckpointConfig, VariantConfig, differences, over, place_of

_Config = TypeVar("_Config", bound=BaseModel)


def check_names(names: Iterable[str], what: str) -> None:
    """Raise ValueError on a name that cannot be a folder, or is the base's."""
    for name in names:
        if name == "base" or not all(c.isalnum() or c in "_-." for c in name):
            raise ValueError(f"{name!r} cannot {what}: letters, digits, _ - . only, and not `base`")


class SetLimits(Settings):
    """How many prompts of each file are used, from its beginning; null is all."""

    train: int | None = Field(None, ge=1, description="Prompts that pairs are made of.")
    dev: int | None = Field(None, ge=1, description="Prompts that every choice is made on.")
    eval: int | None = Field(None, ge=1, description="Prompts that are touched once, for the final figures.")


Lang = Literal["zh", "en", "mixed"]


class SetLangs(Settings):
    """The language of each set's texts; null finds each by its script."""

    train: Lang | None = Field(None, description="zh, en or mixed, for all train prompts that name none.")
    dev: Lang | None = Field(None, description="Likewise.")
    eval: Lang | None = Field(None, description="Likewise; zh for seed-tts-eval's Chinese list, Latin letters or not.")


class PromptsConfig(SpeakerSettings):
    """Three prompt sets, disjoint by text."""

    train: str = Field("micro:train", description="A .txt (one text per line), .jsonl, .csv, .tsv or .parquet file, a "
                       "list of seed-tts-eval (.lst), a folder of datasets.save_to_disk (folder:split), a hub dataset "
                       "hf:owner/name[@revision][:config][:split], or micro:train. #column behind it names the column "
                       "of the texts.")
    dev: str = Field("micro:dev", description="Likewise, for the choice of the checkpoint.")
    eval: str = Field("micro:eval", description="Likewise, for the final figures.")
    speaker: str | None = Field(None, description="Speaker of prompts that name none; null is the checkpoint's first.")
    lang: Lang | SetLangs | None = Field(
        None, description="Language of prompts that name none: zh, en or mixed; one for the three sets, or one per "
        "set: {eval: zh}. null: by the script of their letters, and texts in other scripts are skipped."
    )
    limit: SetLimits = Field(default_factory=SetLimits, description="Prompts used of each set.")
    columns: dict[str, str] | None = Field(
        None, description="Field of a prompt -> column of the source, e.g. {text: sentence, speaker: voice}; no other "
        "column is read then. null: columns are named as the fields are."
    )
    max_chars: int | None = Field(
        None, ge=1, description="Longer texts are split at sentence ends, else at commas, else at spaces; each piece "
        "is a prompt <id>_1, <id>_2, ... null: never."
    )
    max_words: int | None = Field(None, ge=1, description="Likewise, in words; each Chinese character is one.")

    def reading(self, which: str) -> dict[str, Any]:
        """What ``read_prompts`` is told of a set."""
        lang = getattr(self.lang, which) if isinstance(self.lang, SetLangs) else self.lang
        return {"spec": getattr(self, which), "limit": getattr(self.limit, which), "default_speaker": self.speaker,
                "columns": self.columns, "max_chars": self.max_chars, "max_words": self.max_words, "lang": lang}


class RolloutConfig(Settings):
    """How many candidates, of which prompts."""

    num_candidates: int = Field(8, ge=2, description="Candidates per prompt.")
    batch_size: int = Field(64, ge=1, description="Candidates a Talker forward.")
    shard_size: int = Field(32, ge=1, description="Prompts per shard; what an interruption loses at most.")
    prompts_per_round: int | None = Field(
        None, ge=1, description="Of the train prompts, how many a round: round 1 the first so many, round 2 the next, "
        "from the beginning again at the end. null: all of them in every round."
    )
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="How candidates are drawn.")


class AudioConfig(Settings):
    """Which decoded speech is kept, under audio/."""

    keep: Literal["none", "sample", "all"] = Field("sample", description="sample: of a stage's first prompts.")
    format: Literal["opus", "flac"] = Field("opus", description="opus is small, flac is exact (16 bit).")
    sample_prompts: int = Field(24, ge=0, description="Prompts whose audio `sample` keeps, a stage.")


class EvalConfig(Settings):
    """The final figures: base and trained side by side, by a second recognizer."""

    seeds: int = Field(4, ge=1, description="Utterances an eval prompt.")
    protocol: Literal["seed-tts-eval"] | None = Field(
        None, description="Also score the evaluator's transcripts as seed-tts-eval does, by language: figures that "
        "compare with published ones where the evaluator is its own too (zh paraformer-zh, en whisper-large-v3)."
    )
    sampling: SamplingConfig | None = Field(None, description="null: as in rollouts.")
    checkpoints: Literal["chosen", "all"] = Field(
        "chosen", description="all: every saved checkpoint of a training speaks the eval texts, not only the one that "
        "was chosen, and its drift is measured on them: losses can then be compared where they have moved as far."
    )
    talkers: dict[str, str] = Field(
        default_factory=dict,
        description="More Talkers to evaluate: name -> folder or safetensors file; micro:clean is the clean micro one.",
    )
    bootstrap_samples: int = Field(10_000, ge=100, description="Resamples of the paired bootstrap over texts.")
    extras: int = Field(
        1, ge=0, description="Of each prompt's utterances, on how many speaker similarity and F0 are measured: "
        "evaluated, never rewarded. They cost as much as half a decoding."
    )

    @field_validator("talkers")
    @classmethod
    def _free_names(cls, value: dict[str, str]) -> dict[str, str]:
        if "base" in value:
            raise ValueError("the name `base` is taken by the model before training")
        return value


class ReportConfig(Settings):
    """The page."""

    title: str | None = Field(None, description="null: the name of the run.")
    before_after: int = Field(12, ge=0, description="Eval prompts to listen to, base beside trained.")
    pairs: int = Field(8, ge=0, description="Pairs to listen to, chosen beside rejected; of an online training "
                       "groups, half of them of its first sampling and half of its last.")
    max_mib: int = Field(40, ge=1, description="Largest page; fewer clips are embedded rather than more.")


class TrackingConfig(Settings):
    """Where figures, tables and speech go besides the run folder."""

    to: Literal["none", "wandb", "trackio", "tensorboard"] = Field(
        "none", description="Needs `pip install talker-rl[<the same word>]`. wandb is offline unless WANDB_MODE says "
        "otherwise. A tracker that fails is switched off with a warning; the run goes on."
    )
    project: str = Field("talker-rl", description="Its project (TensorBoard has none).")


class ExecutorConfig(Settings):
    """Where a run's workers are."""

    name: Literal["local", "ray"] = Field(
        "local", description="local: processes of this machine. ray: actors, on as many machines as a cluster has; "
        "all of them see the run's folder and the model. Needs talker-rl[ray]."
    )
    address: str | None = Field(
        None, description="Of a Ray cluster: `auto` (the one that this machine is in), or ray://HOST:PORT. null starts "
        "one on this machine, and ends it."
    )
    cpus: float = Field(1, gt=0, description="Cores that Ray gives a worker.")
    gpus: float = Field(0, ge=0, description="GPUs that Ray gives a worker; 0.5 lets two share one.")


class RunConfig(Settings):
    """One run: from prompts to a report."""

    name: str = Field("run", description="Name of the run; its folder is runs/<name> unless --run-dir says otherwise.",
                      pattern=r"^[\w.-]+$")
    seed: int = Field(0, ge=0, description="Root of every seed but training's own (train.args.seed).")
    model: ModelConfig = Field(default_factory=ModelConfig, description="The checkpoint.")
    prompts: PromptsConfig = Field(default_factory=PromptsConfig, description="The texts to speak.")
    conditioning: ConditioningConfig = Field(default_factory=ConditioningConfig, description="The Thinker's part.")
    rollouts: RolloutConfig = Field(default_factory=RolloutConfig, description="Candidates.")
    token2wav: Token2WavConfig = Field(default_factory=Token2WavConfig, description="Codes to speech.")
    audio: AudioConfig = Field(default_factory=AudioConfig, description="What speech is kept.")
    reward: RewardConfig = Field(default_factory=RewardConfig, description="Speech to scores.")
    pairs: PairsConfig = Field(default_factory=PairsConfig, description="Scores to pairs.")
    completions: CompletionsConfig = Field(
        default_factory=CompletionsConfig, description="Scores, or a file, to completions: of variants with data."
    )
    train: CommonConfig = Field(default_factory=CommonConfig, description="What all trainings have in common.")
    variants: dict[str, VariantConfig] = Field(
        default_factory=dict, description="Trainings by name, and what differs from `train`, e.g. {dpo: {}, ipo: "
        "{loss: {type: ipo}}}; left out: one, `default`."
    )
    iterations: int = Field(1, ge=1, description="On-policy rounds: sample, score, pair, train, again from the result.")
    reference: Literal["moved", "kept"] = Field(
        "moved", description="What later rounds measure the policy against. moved: the policy as that round began. "
        "kept: the policy as the run began, so that the losses hold all rounds together to it."
    )
    checkpoint: CheckpointConfig = Field(
        default_factory=CheckpointConfig, description="Which of a training's checkpoints is its result."
    )
    eval: EvalConfig = Field(default_factory=EvalConfig, description="Final figures.")
    report: ReportConfig = Field(default_factory=ReportConfig, description="The page.")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="Figures elsewhere.")
    service: ServiceConfig = Field(default_factory=ServiceConfig, description="The scorer over HTTP (verb serve).")
    workers: int = Field(
        1, ge=1, description="Processes that sample, decode and score (one thread each); results don't depend on it. "
        "On a GPU each holds its models: 2 let one sample while the other scores."
    )
    executor: ExecutorConfig = Field(
        default_factory=lambda: ExecutorConfig(), description="Where workers are: processes here, or actors of a Ray "
        "cluster. `ray` alone is short for {name: ray}."
    )
    devices: int | list[str] | None = Field(
        None, description="What a training is spread over, one process each: so many of model.device's kind, or names "
        "such as [cuda:0, cuda:1]. It gives what one process gives but for the last digits: batch sizes are those of "
        "all processes together. Several variants take turns. Worker i works on the i-th, round and round. null: a "
        "training is one process on model.device."
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        return {**data, "variants": over(data, data.get("variants"))} if isinstance(data, dict) else data

    @field_validator("variants")
    @classmethod
    def _variant_names(cls, value: dict[str, VariantConfig]) -> dict[str, VariantConfig]:
        if not value:
            raise ValueError("at least one is needed")
        check_names(value, "name a variant")
        return value

    @field_validator("executor", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("devices", mode="before")
    @classmethod
    def _sound_devices(cls, value: Any) -> Any:
        return sound_devices(value)

    @model_validator(mode="after")
    def _sound(self) -> RunConfig:
        check_kind(self.devices, self.model.device)
        full = [self.place_of(name) for name, cfg in self.variants.items() if cfg.lora is None]
        if self.iterations > 1 and full:
            raise ValueError(f"iterations above 1 need LoRA, and {full[0]}.lora is null")
        if self.model.adapter and full:
            raise ValueError(f"model.adapter is trained on, which needs LoRA, and {full[0]}.lora is null")
        given = [self.place_of(name) for name, cfg in self.variants.items() if cfg.data == "file"]
        if self.iterations > 1 and given:
            raise ValueError(f"iterations above 1 sample again, and {given[0]}.data: file stays what it is")
        stages = Counter(name for name, _ in stage_kinds(list(self.variants), self.iterations))
        twice, times = stages.most_common(1)[0]
        if times > 1:  # of variants that are called as stages are, e.g. `train` and `pairs`
            raise ValueError(f"two stages would share the folder {twice}: rename the variant {Path(twice).name}")
        waiting = any(cfg.checkpoint.select == "best" or cfg.checkpoint.early_stopping_patience
                      for cfg in self.variants.values())
        if waiting and not self.checkpoint.held_out_share:
            raise ValueError("checkpoint.select: best and checkpoint.early_stopping_patience judge by held-out pairs: "
                             "set checkpoint.held_out_share")
        return self

    def place_of(self, variant: str) -> str:
        """Where a file says what is a variant's own: ``train``, or ``variants.<name>``."""
        return place_of(variant, self.variants)

    def resolved(self) -> dict[str, Any]:
        """Everything, defaults included, as plain JSON data; of variants what differs."""
        told = differences(self.train, self.checkpoint, self.variants)
        return {key: told.get(key, value) for key, value in self.model_dump(mode="json").items()
                if key != "variants" or key in told}

    def to_yaml(self) -> str:
        """The resolved configuration; loading it gives an equal one."""
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True)


def load_config(files: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> RunConfig:
    """Read YAML files, or shipped ones by name, left to right (later ones win, mappings are merged), then apply
    ``dotted.key=value``.

    Raises:
        ConfigError: a file that cannot be read, an unknown key (the nearest right one is named), a wrong value.
    """
    moved: Moved = {}
    data, where = read_files(files, lambda one: modern(one, moved)), ", ".join(map(str, files)) or "overrides"
    if "arms" in data or "run" in data:
        raise ConfigError("This is the configuration of a sweep", where=where,
                          fix=f"talker-rl sweep {files[-1]} (--dry-run shows its grid)")
    return load_data(data, overrides, where, moved)


def load_data(
    data: dict[str, Any], overrides: Sequence[str] = (), where: str = "config", moved: Moved | None = None
) -> RunConfig:
    """Plain data with ``dotted.key=value`` applied; see :func:`load_config`."""
    return parse_config(with_overrides(data, overrides, where, moved), where)


def parse_config(data: dict[str, Any], where: str = "config") -> RunConfig:
    """Validate plain data; every mistake is told at once, with its dotted path."""
    return parse_as(RunConfig, data, where)


def parse_as(model: type[_Config], data: dict[str, Any], where: str) -> _Config:
    """:func:`parse_config` for any configuration class."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems, fixes, found = [], [], [(tuple(map(str, item["loc"])), item) for item in error.errors()]
        for loc, item in found:
            if _of_all(loc, [other for other, _ in found]):
                continue
            path = list(loc)
            dotted = ".".join(path)
            if item["type"] == "extra_forbidden":
                problems.append(f"unknown key `{dotted}`")
                near = nearest_key(path, model)
                if near:
                    fixes.append(f"did you mean `{near}`?")
            else:
                told = item["msg"].removeprefix("Value error, ")
                problems.append(f"`{dotted}`: {told} (got {item['input']!r:.60})" if dotted else told)
        fix = " ".join(dict.fromkeys(fixes)) or "talker-rl configs qwen2.5-omni explains every key"
        raise ConfigError("The configuration is wrong: " + "; ".join(problems), where=where, fix=fix) from None
    except ConfigError as error:  # a room's own parser, e.g. of the loss dictionary
        place = f"{where}: {error.where}" if error.where else where
        raise ConfigError(error.what, where=place, fix=error.fix) from None


def _of_all(loc: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> bool:
    """Whether a variant's mistake is one that all have in common, which is told where it stands."""
    if "variants" not in loc:
        return False
    own = loc[loc.index("variants") + 2 :]
    common = own if own[:1] == ("checkpoint",) else ("train", *own)
    return any("variants" not in other and other[-len(common):] == common for other in others)


def known_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key; ``*`` stands for a name that the user gives, e.g. ``variants.*.loss``."""
    keys = []
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        keys.append(path)
        for part in (info.annotation, *typing.get_args(info.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                star = "*." if typing.get_origin(info.annotation) is dict else ""
                keys += known_keys(part, f"{path}.{star}")
    return keys


def nearest_key(path: Sequence[str], model: type[BaseModel] = RunConfig) -> str | None:
    """The right key nearest to a wrong one: first among its neighbors, then the same leaf elsewhere, then anywhere."""
    keys = known_keys(model)
    parent, leaf = _match_parent(path[:-1], keys), path[-1]
    siblings = [k for k in keys if k.rpartition(".")[0] == parent]
    by_leaf = {k.rpartition(".")[2]: k for k in reversed(siblings)}
    close = difflib.get_close_matches(leaf, list(by_leaf), n=1, cutoff=0.6)
    shown = ".".join(path[:-1])
    if close:
        return f"{shown}.{close[0]}" if shown else close[0]
    same_leaf = [k for k in keys if k.rpartition(".")[2] == leaf]
    if same_leaf:
        return same_leaf[0].replace("*", "default")
    anywhere = difflib.get_close_matches(".".join(path), keys, n=1, cutoff=0.6)
    leaves = {k.rpartition(".")[2]: k for k in reversed(keys)}
    near_leaf = difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.75)
    found = leaves[near_leaf[0]] if near_leaf else (anywhere[0] if anywhere else None)
    return found.replace("*", "default") if found else None


def _match_parent(path: Sequence[str], keys: Sequence[str]) -> str:
    """``variants.dpo`` -> ``variants.*``: names that the user gave become the star of ``known_keys``."""
    at = ""
    for part in path:
        named = f"{at}.{part}" if at else part
        star = f"{at}.*"
        is_name = named not in keys and any(key.startswith(f"{star}.") for key in keys)
        at = star if is_name else named
    return at
