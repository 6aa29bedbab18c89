"""One LoRA training by `TalkerTrainer` against the same one in padded rows: same pairs, order, start, rate.

Geometry mid: the other side is TRL's DPOTrainer, in float32. Other geometries: a plain loop that does the same
(`_padded`), so that TRL need not be there; the real one computes in bfloat16 (weights and autocast; adapters float32).
No gradient checkpointing. Both sides run from loading nothing to the last step: the reference log-probs are computed
by us and by precomputing baselines once, by the others with every batch.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PrinterCallback

from talker_rl.data.pairs import pair_id_of
from talker_rl.losses import build_loss
from talker_rl.records.pair import Pair
from talker_rl.speech.config import LoraSettings
from talker_rl.speech.lora import attach_lora
from talker_rl.speech.qwen2_5_omni.codec import CODEC
from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning
from talker_rl.speech.qwen2_5_omni.policy import TalkerPolicy
from talker_rl.train.arguments import TalkerArguments
from talker_rl.train.objective import PairObjective
from talker_rl.train.sources import Stored
from talker_rl.train.trainer import TalkerTrainer

from ._limits import counted, goal, share, utilization
from ._limits import training as counts
from ._measure import Row, compare, noted, say
from ._padded import train as padded_training
from .geometry import Models

STOP = 8294
BETA, LEARNING_RATE = 0.1, 1e-4


class Recording:
    """Mixin of trainers: keeps the loss of every step."""

    losses: list[Tensor]

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)  # type: ignore[misc]
        self.losses.append(loss.detach())
        return loss


class Ours(Recording, TalkerTrainer):
    """The project's trainer."""


@dataclass(frozen=True)
class Sizes:
    """Of one training. Lengths are drawn evenly from (shortest, longest)."""

    pairs: int = 64
    epochs: int = 3
    batch: int = 8
    layers: int | None = 3
    """None: all that the geometry has."""
    prefix: tuple[int, int] = (40, 100)
    codes: tuple[int, int] = (100, 200)

    def __str__(self) -> str:
        return (f"{self.pairs} pairs x {self.epochs}, batches of {self.batch}, {self.layers or 'all'} layers, prefix "
                f"{span(self.prefix)}, {span(self.codes)} codes")  # fmt: skip


def span(ends: tuple[int, int]) -> str:
    return f"{ends[0]}-{ends[1]}" if ends[0] < ends[1] else str(ends[0])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options by the names of :class:`Sizes`, and how often to train."""
    for name in ("pairs", "epochs", "batch", "layers"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("prefix", "codes"):
        parser.add_argument(f"--{name}", type=int, nargs=2, metavar=("SHORTEST", "LONGEST"))
    parser.add_argument("--trainings", type=int, default=1, help="timed ones of each side, instead of --repeats")


def rows(
    name: str, args: argparse.Namespace, sizes: dict[str, Sizes], *, precompute: bool = False, aim: float | None = None
) -> Iterator[Row]:
    """The benchmark's row; of the real geometry another one with gradient checkpointing, which tells memory.

    Args:
        sizes: by geometry (mid, real) or ``quick``; each is replaced by what the command line says.
        precompute: whether the baseline computes its reference once.
        aim: the ratio that is the goal.
    """
    models = Models.of(args)
    chosen = {f.name: getattr(args, f.name) for f in fields(Sizes) if getattr(args, f.name) is not None}
    found = sizes["quick" if args.quick else "mid" if models.mid else "real"]
    found = replace(found, **{k: _hashable(v) for k, v in chosen.items()})
    run = Trainings(models, found)
    side = "TRL's defaults" if models.mid else "a padded loop with TRL's defaults"
    if precompute:
        side = "TRL's precompute_ref_log_probs" if models.mid else "a padded loop with precompute_ref_log_probs"
    row = compare(name, f"{found}; against {side}", run.ours, lambda: run.theirs(precompute),
                  lambda a, b: float((a - b).abs().max()), repeats=args.trainings)  # fmt: skip
    trained = found.pairs * found.epochs
    say(f"{name}: {trained / row.ours_s:.2f} pairs/s against {trained / row.theirs_s:.2f}")
    reached, met = run.judge(row, aim)
    yield noted(row, reached, run.memory(row), met)
    if not models.mid and name == "train":
        case = f"{found}; gradient_checkpointing, against ours without it"
        row = compare(name, case, lambda: run.ours(gradient_checkpointing=True), run.ours,
                      lambda a, b: float((a - b).abs().max()), repeats=1)  # fmt: skip
        yield noted(row, run.memory(row, goal_gib=16))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class Trainings:
    """Each call of a side trains a fresh adapter and returns the loss of every step, on the CPU."""

    def __init__(self, models: Models, sizes: Sizes) -> None:
        self.models, self.sizes = models, sizes
        self.talker = models.talker(sizes.layers)
        self.other = models.talker(sizes.layers) if models.mid else self.talker
        self.geometry = counted(talker=self.talker)
        width = self.talker.config.embedding_size
        self.conditionings, self.pairs = random_pairs(sizes, width, getattr(torch, models.dtype))
        self.lora = LoraSettings()  # type: ignore[call-arg]
        self.bf16 = models.dtype == "bfloat16"
        self.loop_s = math.nan
        """Of our last training: the trainer's loop, without the reference."""

    def ours(self, **options: Any) -> Tensor:
        """By the project's trainer; ``options``: more arguments of it."""
        model = attach_lora(self.talker, self.lora, base_model="benchmark", seed=0)
        with tempfile.TemporaryDirectory() as folder:
            policy, source = TalkerPolicy(model), Stored(self.pairs, [], self.conditionings)
            source.refer(policy, folder, bf16=self.bf16)
            args = TalkerArguments(output_dir=folder, **self._arguments(), **options)
            objective = PairObjective(build_loss({"type": "dpo", "beta": BETA}))
            trainer = Ours(policy, args, objective=objective, source=source)
            trainer.losses = []
            trainer.remove_callback(PrinterCallback)
            start = time.perf_counter()
            trainer.train()
            losses = torch.stack(trainer.losses).cpu()  # waits for the device
            self.loop_s = time.perf_counter() - start
        if options.get("gradient_checkpointing"):
            model.gradient_checkpointing_disable()
        model.unload()
        self.talker.requires_grad_(False)
        return losses

    def theirs(self, precompute: bool = False) -> Tensor:
        """In padded rows."""
        train = self._by_trl if self.models.mid else self._by_loop
        losses = train(precompute)
        self.other.requires_grad_(False)
        return losses

    def _by_trl(self, precompute: bool) -> Tensor:
        from ._trl_shim import TRLTrainer

        config = LoraConfig(r=self.lora.r, lora_alpha=int(self.lora.lora_alpha),
                            target_modules=self.lora.target_modules)  # fmt: skip
        index = {c.prompt_id: i for i, c in enumerate(self.conditionings)}
        ids = [{"prompt_ids": [index[p.prompt_id]], "chosen_ids": p.chosen.ids, "rejected_ids": p.rejected.ids}
               for p in self.pairs]  # fmt: skip
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            trainer = TRLTrainer(self.other, self.conditionings, ids, config, output_dir=folder, beta=BETA,
                                 gradient_checkpointing=False, precompute_ref_log_probs=precompute,
                                 **self._arguments())  # fmt: skip
            trainer.train()
        trainer.accelerator.unwrap_model(trainer.model).unload()
        return torch.stack(trainer.losses)

    def _by_loop(self, precompute: bool) -> Tensor:
        model = attach_lora(self.other, self.lora, base_model="benchmark", seed=0)
        losses = padded_training(
            model, self.other, self.conditionings, self.pairs, epochs=self.sizes.epochs, batch=self.sizes.batch,
            learning_rate=LEARNING_RATE, beta=BETA, bf16=self.bf16, precompute=precompute,
        )  # fmt: skip
        model.unload()
        return losses

    def _arguments(self) -> dict[str, Any]:
        return {
            "learning_rate": LEARNING_RATE, "num_train_epochs": self.sizes.epochs,
            "per_device_train_batch_size": self.sizes.batch, "train_sampling_strategy": "sequential",
            "bf16": self.bf16, "use_cpu": self.models.device.type == "cpu", "seed": 0, "report_to": "none",
            "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
        }  # fmt: skip

    def judge(self, row: Row, aim: float | None) -> tuple[str, str]:
        """(share of the limit and MFU, whether the goals were met) of our side."""
        prefixes = {c.prompt_id: len(c.prefix) for c in self.conditionings}
        reference, steps = counts(self.geometry, self.pairs, prefixes, self.sizes.epochs, self.sizes.batch,
                                  self.models.dtype, self.lora)  # fmt: skip
        device = self.models.device
        mfu, words = utilization(steps, self.loop_s, device)
        reached = f"{share([*reference, *steps], row.ours_s, device)}; {words} in the trainer's loop"
        if aim is None:
            return reached, ""
        met = [goal(f"{aim:g} x", row.ratio >= aim, self.models), goal("MFU 54 %", mfu >= 0.54, self.models)]
        return reached, ", ".join(filter(None, met))

    def memory(self, row: Row, goal_gib: float | None = None) -> str:
        """Our peak with the Talker's weights."""
        weights = sum(p.numel() * p.element_size() for p in self.talker.parameters())
        peak = row.ours_peak_mib / 1024 + weights / 2**30
        met = goal(f"{goal_gib:g} GiB", peak <= goal_gib, self.models) if goal_gib else ""
        return ", ".join(filter(None, [f"peak with weights {peak:.2f} GiB", met]))


def random_pairs(sizes: Sizes, width: int, dtype: torch.dtype) -> tuple[list[Conditioning], list[Pair]]:
    """A prompt for each pair, lengths drawn evenly; ``width``: the Thinker's."""
    generator = torch.Generator().manual_seed(0)

    def draw(ends: tuple[int, int]) -> int:
        return int(torch.randint(ends[0], ends[1] + 1, (1,), generator=generator))

    def codes() -> list[int]:
        return [*torch.randint(0, CODEC.sizes[0], (draw(sizes.codes) - 1,), generator=generator).tolist(), STOP]

    conditionings, pairs = [], []
    for i in range(sizes.pairs):
        lengths = (draw(sizes.prefix), 30)
        prefix, stream = (torch.randn(n, width, generator=generator).to(dtype) for n in lengths)
        conditionings.append(Conditioning(prompt_id=f"p{i}", prefix=prefix, reply_stream=stream, speaker="a"))
        chosen, rejected = codes(), codes()
        pair_id = pair_id_of(f"p{i}", chosen, rejected)
        sides = [CODEC.speech(side) for side in (chosen, rejected)]
        pairs.append(Pair(f"p{i}", pair_id, "", "a", f"p{i}-0", f"p{i}-1", *sides, 1.0, 0.0, 1.0))
    return conditionings, pairs
