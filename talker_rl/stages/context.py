"""What every stage gets: configuration, run folder, workers; and what each stage's result depends on."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from talker_rl.base.disk import atomic_write, read_json
from talker_rl.base.figures import count
from talker_rl.base.ids import derive_seed, stable_hash
from talker_rl.base.processes import WorkerPool
from talker_rl.base.progress import bar
from talker_rl.config import RunConfig
from talker_rl.records.prompt import Prompt
from talker_rl.records.rows import from_row
from talker_rl.reward.config import RecognizerConfig
from talker_rl.speech.config import SPEAKING
from talker_rl.stages.flow import Leg, flow
from talker_rl.store.run_dir import RunDir
from talker_rl.store.shards import ShardFolder
from talker_rl.tracking import Tracking

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

SETS = ("train", "dev", "eval")

MODEL_KEYS = ("model.dtype", "model.attn_implementation")
DEPENDS: dict[str, tuple[str, ...]] = {
    "prompts": ("prompts",),
    "conditioning": ("conditioning.mode", "conditioning.max_reply_tokens", "model.dtype", "model.system_prompt",
                     "model.instruction", "model.thinker_quantization"),
    "rollouts": ("rollouts", "seed", *MODEL_KEYS),
    "scores": ("token2wav", "seed"),
    "pairs": ("pairs", "reward.remove_length"),
    "best_of_n": ("completions.reward_key", "completions.min_reward", "completions.max_per_prompt",
                  "completions.unwritten",
                  "reward.remove_length"),
    "file": (),
    "likelihood": (*MODEL_KEYS,),
    "train": (*MODEL_KEYS,),
    "choice": ("dev", "token2wav", "seed", *MODEL_KEYS),
    "diagnostics": ("dev.held_out_share", *MODEL_KEYS),
    "reward_noise": ("token2wav", "seed"),
    "report": ("report", "eval.bootstrap_samples"),
}
"""Stage -> the keys its result depends on. What is not here (workers, device, batch sizes of the machine's memory
aside from rollouts.batch_size, audio) may change between two starts of the same run."""


@dataclass
class Context:
    """One invocation on one run."""

    config: RunConfig
    run: RunDir
    pool: WorkerPool
    quiet: bool = False
    endpoints: tuple[str, ...] = ()
    """Reward services that score candidates; none: scores are made here."""
    said: list[str] = field(default_factory=list)
    tracking: Tracking = field(init=False)

    def __post_init__(self) -> None:
        self.tracking = Tracking(self.config, self.run.path)

    def say(self, message: str) -> None:
        """A line for the user (kept, printed unless quiet)."""
        self.said.append(message)
        if not self.quiet:
            print(message, file=sys.stderr, flush=True)

    def begin(self, stage: str, kind: str, inputs: dict[str, str], extra: dict[str, Any] | None = None) -> str:
        """``RunDir.begin`` with the part of the configuration that this kind of stage depends on."""
        return self.run.begin(stage, self.settings_of(kind) | (extra or {}), inputs)

    def settings_of(self, kind: str) -> dict[str, Any]:
        """The part of the configuration that this kind of stage depends on, by dotted key."""
        resolved = self.config.resolved()
        return {path: pick(resolved, path) for path in DEPENDS[kind]}

    def progress(self, items: Iterable[T], total: int, label: str, unit: str = "shard") -> Iterable[T]:
        """Progress of an iterable: a bar, or lines where there is no terminal."""
        return bar(items, total=total, desc=label, unit=unit, disable=self.quiet)

    def fill(
        self,
        stage: str,
        key: str,
        count: int,
        tasks: Callable[[int], Any],
        function: Callable[[Any], Any],
        store: Callable[[ShardFolder, int, Any], None],
    ) -> ShardFolder:
        """Make the shards that are missing: ``store(folder, i, function(tasks(i)))``."""
        leg = Leg(stage, ShardFolder(self.run.path / stage, key), count, tasks, function, store)
        self.flow(leg)
        return leg.folder

    def flow(self, *legs: Leg) -> float:
        """Make the missing shards of stages that overlap; returns the seconds it took."""
        for leg in legs:
            if len(leg.missing) < leg.count:
                self.say(f"{leg.stage}: {leg.count - len(leg.missing)} of {count(leg.count, 'shard')} made already")
        return flow(self.pool, legs, quiet=self.quiet)

    # -- what stages read ---------------------------------------------------------------------------------------

    def prompts(self, which: str) -> list[Prompt]:
        """Prompts of a set that the model can speak (conditioning may have skipped some)."""
        self.run.content("prompts")
        rows = ShardFolder(self.run.path / "prompts").rows(SETS.index(which))
        skipped = self.skipped_prompts()
        return [from_row(Prompt, row) for row in rows if row["prompt_id"] not in skipped]

    def skipped_prompts(self) -> dict[str, Any]:
        """Prompt id -> why the conditioning stage left it out: what, where, fix."""
        file = self.run.path / "conditioning" / "skipped.json"
        return read_json(file) if file.exists() else {}

    def model_dump(self) -> dict[str, Any]:
        """The model's settings as plain data."""
        return self.config.model.model_dump(mode="json")

    def model_input(self, *parts: str) -> dict[str, str]:
        """Content hash of the model, as an input of a stage.

        Args:
            parts: what the stage reads of it; by default Talker and token2wav. Shards that hold nothing of them are not
                opened: a rollout from cached conditioning needs no Thinker.
        """
        from talker_rl.speech.files import content_hash
        from talker_rl.speech.locate import resolve_model_path

        found = {"model": content_hash(resolve_model_path(self.config.model.path), parts or SPEAKING)}
        if self.config.model.talker:
            found["model.talker"] = content_hash(talker_path(self.config.model.talker))
        if self.config.model.speakers:
            found["model.speakers"] = content_hash(Path(self.config.model.speakers).expanduser())
        return found

    @cached_property
    def start_adapter(self) -> Path | None:
        """The adapter that the run begins with (``model.adapter``); None is the base.

        Raises:
            CheckpointError: it is not there, or several are.
        """
        from talker_rl.speech.lora import resolve_adapter

        return resolve_adapter(self.config.model.adapter) if self.config.model.adapter else None

    def start_input(self) -> dict[str, str]:
        """Content hash of that adapter, as an input of a stage; none where the run begins with the base."""
        from talker_rl.speech.files import content_hash, require_file

        if self.start_adapter is None:
            return {}
        files = [require_file(self.start_adapter, name, "the adapter that the run begins with")
                 for name in ("adapter_config.json", "adapter_model.safetensors")]
        return {"model.adapter": stable_hash([content_hash(file) for file in files])}

    def seeds(self, purpose: str, prompt: Prompt, count: int) -> list[int]:
        """Seeds of a prompt's candidates: they depend on nothing but the run's seed, the purpose and the prompt."""
        return [derive_seed(self.config.seed, purpose, prompt.prompt_id, k) for k in range(count)]

    def scorer_input(self, which: str) -> str:
        """Fingerprint of the reward with its ``recognizer`` or ``evaluator``, without loading it."""
        from talker_rl.reward.asr.names import hash_files, obtain, resolve
        from talker_rl.reward.versions import scores_version

        reward = self.config.reward
        recognizer: RecognizerConfig = getattr(reward, which)
        paths, heard = [recognizer.path], SETS if which == "recognizer" else ("eval",)
        if recognizer.by_lang:  # of the languages that occur: the others' models need not even be there
            paths = [recognizer.for_lang(lang).path for lang in self.languages(*heard)]
        if reward.pauses.aligner is not None:
            paths.append(reward.pauses.aligner.path)
        # A service has the models that it scores with; here, one that is not on the machine comes now, and once.
        folders = [(resolve if self.endpoints and which == "recognizer" else obtain)(path) for path in paths]
        files = [hash_files(folder) if folder.is_dir() else path for path, folder in zip(paths, folders, strict=True)]
        return stable_hash(reward.settings(), recognizer.identity(), scores_version(), *files)

    def languages(self, *sets: str) -> list[str]:
        """Languages of the prompts of these sets; of all where none is named."""
        return sorted({prompt.lang for which in sets or SETS for prompt in self.prompts(which)})

    def write_json(self, path: str, data: Any) -> Path:
        """Write a JSON file of the run atomically."""
        file = self.run.path / path
        atomic_write(file, json.dumps(data, indent=1, ensure_ascii=False, sort_keys=False) + "\n")
        return file


@dataclass(frozen=True)
class Round:
    """One on-policy round of one variant; the first round's samples serve all variants."""

    index: int
    """1-based."""
    variant: str | None = None
    """None in round 1."""

    @property
    def prefix(self) -> str:
        """Folder prefix inside the run."""
        return "" if self.index == 1 else f"round{self.index}/{self.variant}/"

    def stage(self, name: str) -> str:
        """Name of a stage of this round."""
        return f"{self.prefix}{name}"

    def data_stage(self, data: str | None) -> str:
        """Name of the stage whose records a variant with this ``data`` is trained on."""
        return self.stage("pairs" if data is None else f"completions/{data}")

    def variants(self, config: RunConfig) -> list[str]:
        """Names of the variants that this round trains."""
        return [self.variant] if self.variant else list(config.train)


def rounds_of(config: RunConfig, index: int) -> list[Round]:
    """The rounds that run at this index: one for all variants first, one per variant then."""
    return [Round(1)] if index == 1 else [Round(index, variant) for variant in config.train]


def train_stage(variant: str, index: int) -> str:
    """Name of the training stage of a variant's round."""
    return f"round{index}/train/{variant}"


def choice_stage(variant: str, index: int) -> str:
    """Name of the stage that chooses among that training's checkpoints."""
    return f"round{index}/choice/{variant}"


def device_name(setting: str) -> str:
    """``auto`` resolved: cuda where there is one."""
    if setting != "auto":
        return setting
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def talker_path(spec: str) -> Path:
    """A Talker's weights: a path, or ``micro:clean``."""
    if spec == "micro:clean":
        from talker_rl.speech.locate import resolve_model_path

        return resolve_model_path("micro") / "talker_clean"
    return Path(spec).expanduser()


def pick(data: Any, dotted: str) -> Any:
    """The value at a dotted path."""
    for key in dotted.split("."):
        data = data[key]
    return data


def some(items: Sequence[T], count: int, index: int) -> list[T]:
    """``count`` items from ``(index - 1) * count`` on, going round at the end."""
    if count >= len(items):
        return list(items)
    start = (index - 1) * count % len(items)
    return [items[(start + i) % len(items)] for i in range(count)]
