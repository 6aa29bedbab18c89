"""One LoRA training by `TalkerDPOTrainer` against the same one by TRL's DPOTrainer: same pairs, order, start, rate.

Both run in float32 without gradient checkpointing, from loading nothing to the last step: the reference log-probs are
computed on both sides, by us and by TRL's `precompute_ref_log_probs` once, by TRL's default with every batch.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PrinterCallback

from talker_rl.data.pairs import pair_id_of
from talker_rl.data.records import CODE_RATE_HZ, NUM_CODES, Pair
from talker_rl.omni.conditioning import Conditioning
from talker_rl.omni.config import LoraSettings
from talker_rl.omni.lora import attach_lora
from talker_rl.train.arguments import TalkerDPOConfig
from talker_rl.train.collate import PairExample
from talker_rl.train.reference import reference_logps
from talker_rl.train.trainer import TalkerDPOTrainer

from ._measure import Row, compare, say
from .geometry import mid_talker

STOP = 8294


@dataclass(frozen=True)
class Sizes:
    """Of one training. Lengths are drawn evenly from (shortest, longest)."""

    pairs: int = 64
    epochs: int = 3
    batch: int = 8
    layers: int = 3
    prefix: tuple[int, int] = (40, 100)
    codes: tuple[int, int] = (100, 200)

    def __str__(self) -> str:
        return (f"{self.pairs} pairs x {self.epochs}, batches of {self.batch}, {self.layers} layers, prefix "
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


def rows(name: str, args: argparse.Namespace, default: Sizes, quick: Sizes, against: str, **trl: Any) -> list[Row]:
    """The benchmark's row.

    Args:
        default, quick: sizes without and with ``--quick``; each is replaced by what the command line says.
        against: what the case says of the baseline.
        trl: fields of ``trl.DPOConfig``.
    """
    chosen = {f.name: getattr(args, f.name) for f in fields(Sizes) if getattr(args, f.name) is not None}
    sizes = replace(quick if args.quick else default, **{k: _hashable(v) for k, v in chosen.items()})
    ours, theirs = trainings(sizes, **trl)
    case = f"{sizes}; {against}"
    row = compare(name, case, ours, theirs, lambda a, b: float((a - b).abs().max()), repeats=args.trainings)
    trained = sizes.pairs * sizes.epochs
    say(f"{name}: {trained / row.ours_s:.2f} pairs/s against {trained / row.theirs_s:.2f}")
    return [row]


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def trainings(sizes: Sizes, **trl: Any) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """(ours, theirs): each trains a fresh adapter and returns the loss of every step."""
    from ._trl_shim import Recording, TRLTrainer

    class Ours(Recording, TalkerDPOTrainer):
        losses: list[Tensor]

    conditionings, pairs = random_pairs(sizes)
    found = {c.prompt_id: c for c in conditionings}
    lora = LoraSettings()  # type: ignore[call-arg]
    talkers = [mid_talker(layers=sizes.layers) for _ in range(2)]
    shared: dict[str, Any] = {
        "learning_rate": 1e-4, "num_train_epochs": sizes.epochs, "per_device_train_batch_size": sizes.batch,
        "train_sampling_strategy": "sequential", "bf16": False, "use_cpu": True, "seed": 0, "report_to": "none",
        "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip

    def ours() -> Tensor:
        model = attach_lora(talkers[0], lora, base_model="benchmark", seed=0)
        with tempfile.TemporaryDirectory() as folder:
            references, _ = reference_logps(model, pairs, found, folder)
            examples = [PairExample(p, found[p.prompt_id], *r) for p, r in zip(pairs, references, strict=True)]
            args = TalkerDPOConfig(output_dir=folder, **shared)
            trainer = Ours(model, args, loss={"type": "dpo", "beta": 0.1}, train_examples=examples)
            trainer.losses = []
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        model.unload()
        talkers[0].requires_grad_(False)
        return torch.stack(trainer.losses)

    config = LoraConfig(r=lora.r, lora_alpha=int(lora.lora_alpha), target_modules=lora.target_modules)
    ids = [{"prompt_ids": [conditionings.index(found[p.prompt_id])], "chosen_ids": p.chosen,
            "rejected_ids": p.rejected} for p in pairs]  # fmt: skip

    def theirs() -> Tensor:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            trainer = TRLTrainer(talkers[1], conditionings, ids, config, output_dir=folder, beta=0.1,
                                 gradient_checkpointing=False, **shared, **trl)  # fmt: skip
            trainer.train()
        trainer.accelerator.unwrap_model(trainer.model).unload()
        talkers[1].requires_grad_(False)
        return torch.stack(trainer.losses)

    return ours, theirs


def random_pairs(sizes: Sizes, width: int = 768) -> tuple[list[Conditioning], list[Pair]]:
    """A prompt for each pair, lengths drawn evenly; ``width`` is the Thinker's in the mid-size geometry."""
    generator = torch.Generator().manual_seed(0)

    def draw(ends: tuple[int, int]) -> int:
        return int(torch.randint(ends[0], ends[1] + 1, (1,), generator=generator))

    def codes() -> list[int]:
        return [*torch.randint(0, NUM_CODES, (draw(sizes.codes) - 1,), generator=generator).tolist(), STOP]

    conditionings, pairs = [], []
    for i in range(sizes.pairs):
        prefix, stream = (torch.randn(n, width, generator=generator) for n in (draw(sizes.prefix), 30))
        conditionings.append(Conditioning(prompt_id=f"p{i}", prefix=prefix, reply_stream=stream, speaker="a"))
        chosen, rejected = codes(), codes()
        seconds = [(len(side) - 1) / CODE_RATE_HZ for side in (chosen, rejected)]
        pair_id = pair_id_of(f"p{i}", chosen, rejected)
        pairs.append(Pair(f"p{i}", pair_id, "", "a", f"p{i}-0", f"p{i}-1", chosen, rejected, 1.0, 0.0, 1.0, *seconds))
    return conditionings, pairs
