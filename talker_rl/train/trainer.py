"""`TalkerTrainer`: transformers.Trainer for an objective over sequences of codec tokens.

It departs from TRL's DPOTrainer where speech generators and the objectives ask for it: log-probs come from the policy
(`Policy.logps`), what is made smaller is an `Objective` over per-token log-probs, examples come from a `Source` with
their reference log-probs, any number of processes give what one process would, and a checkpoint is whole or absent, so
that a resumed run equals one that was never interrupted. Names of arguments and metrics are TRL's.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from talker_rl.base.errors import ConfigError, TrainingError, is_disk_full
from talker_rl.base.ids import derive_seed
from talker_rl.base.seals import seal
from talker_rl.losses.types import LossOutput
from talker_rl.speech.protocol import Policy
from talker_rl.train import checkpoints, fsdp, processes, saved
from talker_rl.train.arguments import TalkerArguments
from talker_rl.train.collate import Batch, Collator
from talker_rl.train.metrics import Window, batch_sums
from talker_rl.train.objective import Objective
from talker_rl.train.reference import as_reference
from talker_rl.train.rows import Rows
from talker_rl.train.sources import Source


class TalkerTrainer(Trainer):
    """Training of a policy.

    In several processes each takes its share of every batch that one process would take, so
    `per_device_train_batch_size` is the batch of all processes together, as is `per_device_eval_batch_size`. Those that
    share a row (`Policy.share_rows`) take the same.

    Args:
        policy: what is trained, as `Generator.policy` gives it; on `args.device`.
        args: training arguments.
        objective: what is made smaller.
        source: what it is trained on.
        callbacks: as transformers takes them.

    Raises:
        TrainingError: while training, when the loss is not finite (names the step and the pairs).
    """

    # The loss is a mean over the groups of a micro-batch: the Trainer divides it by the accumulation steps.
    loss_is_scaled_for_ga = False
    model_accepts_loss_kwargs = False

    def __init__(
        self,
        policy: Policy,
        args: TalkerArguments,
        *,
        objective: Objective,
        source: Source,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.policy, self.objective, self._source = policy, objective, source
        self._windows = {"train": Window(), "eval": Window()}
        self._num_tokens = 0
        self._staging: Path | None = None
        self.kept: Callable[[Sequence[Mapping[str, Any]]], set[int]] = lambda history: set()
        """Steps whose checkpoints save_total_limit does not remove, by the log."""
        sharing = 1 if policy.sequence is None else policy.sequence.size
        self._cut = fsdp.is_cut(policy.module)
        self._counts = policy.sequence is None or policy.sequence.rank == 0  # one of those that share a row
        self._shapes = saved.shapes(policy.module)  # while no engine has cut the weights into parts
        if args.disable_dropout:
            _disable_dropout(policy.module)
        super().__init__(
            model=policy.module,
            args=args,
            data_collator=Collator(policy, args.world_size // sharing, args.process_index // sharing),
            train_dataset=source.train,
            eval_dataset=source.held_out,
            callbacks=callbacks,
        )
        if self._cut:
            fsdp.leave_alone(self.accelerator)
        self.model_accepts_loss_kwargs = False  # transformers derives it again from the model's signature

    # ---- Loss ----

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """One forward over all sequences together, then the objective; what is logged is added to the window."""
        batch: Batch = inputs["batch"].to(self.args.device)
        mode = "train" if model.training else "eval"
        rows = self._rows(model, batch, mode)
        out = self.objective(rows)
        self._check_finite(out, batch, mode)
        if batch.weight and self._counts:
            self._windows[mode].add(batch_sums(batch, rows, out, self.objective.beta))
            if mode == "train":
                self._num_tokens += int(rows.mask_ST.sum())
        loss = out.loss * batch.weight
        return (loss, {"per_pair": out.per_pair, "margin": out.margin}) if return_outputs else loss

    def _rows(self, model: nn.Module, batch: Batch, mode: str) -> Rows:
        if self.objective.needs_behaviour and batch.behaviour_logps_ST is None:
            raise TrainingError("the objective needs log-probs of the policy that was sampled from, and there are none",
                                where=f"{mode}, {', '.join(batch.names)}", fix="train on candidates that carry them")
        ref_logps_ST = batch.ref_logps_ST
        if ref_logps_ST is None and self.objective.needs_reference:
            ref_logps_ST = self._reference(batch)
        # Draws depend on the step and the groups, not on a stream: a resumed run makes the same ones.
        when: tuple[Any, ...] = (self.args.seed, self.state.global_step) if mode == "train" else ("eval",)
        return Rows(
            stopped_S=batch.stopped_S,
            class_ST=batch.class_ST,
            logps_ST=self.policy.logps(batch.talker, module=model),
            mask_ST=batch.talker.mask_ST,
            ref_logps_ST=ref_logps_ST,
            behaviour_logps_ST=batch.behaviour_logps_ST,
            advantage_ST=batch.advantage_ST,
            weight_ST=batch.weight_ST,
            imitate_S=batch.imitate_S,
            mean_steps=batch.mean_steps,
            fresh=batch.fresh,
            group_S=batch.group_S,
            side_S=batch.side_S,
            generator=torch.Generator().manual_seed(derive_seed("loss", *when, batch.whole)),
            share=batch.share,
        )

    def _reference(self, batch: Batch) -> Tensor:
        """What the source did not give."""
        if all(p.requires_grad for p in self.policy.module.parameters()):
            raise ConfigError("full weights have moved away from their reference, so it cannot be computed any more",
                              where="train.lora: null", fix="give reference log-probs with the examples, or train LoRA")
        with as_reference(self.policy, bool(self.args.bf16)):
            return self.policy.logps(batch.talker)

    def _check_finite(self, out: LossOutput, batch: Batch, mode: str) -> None:
        if bool(torch.isfinite(out.loss)):
            return
        bad = [i for i, value in zip(batch.names, out.per_pair.tolist(), strict=True) if not math.isfinite(value)]
        raise TrainingError(
            f"the loss is {float(out.loss.detach())}",
            where=f"{mode}, after step {self.state.global_step}, pairs {', '.join(bad or batch.names)}",
            fix="lower the learning rate, clip gradients (max_grad_norm), or train in float32; the checkpoints before "
            "this step are kept",
        )

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """The loss of held-out examples; metrics go through the window, so no outputs are gathered."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    def get_train_dataloader(self) -> Any:
        """Of a live source its own batches, one optimizer step after the other: a loader that looks ahead would have
        the next ones sampled before this step is taken."""
        batches = getattr(self._source, "batches", None)
        return super().get_train_dataloader() if batches is None else _Batches(
            lambda: batches(self.policy, self.state.global_step))

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, sampler_fn: Any = None, *args: Any, **kwargs: Any
    ) -> DataLoader:
        """Every process is given the batches of a single one, in its order; the collator takes this one's share.
        accelerate would give whole batches to each, and fill the last ones up with examples from the beginning."""
        if self.args.world_size == 1:
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, *args, **kwargs)
        indexed = not isinstance(dataset, torch.utils.data.IterableDataset)
        loader = DataLoader(dataset, batch_size, sampler=sampler_fn(dataset) if sampler_fn and indexed else None,
                            drop_last=self.args.dataloader_drop_last, collate_fn=self.data_collator,
                            num_workers=self.args.dataloader_num_workers)
        return prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0, rng_types=[],
                                   use_seedable_sampler=True, data_seed=self.args.data_seed)

    # ---- Logging ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the window's metrics under TRL's names, with the prefix `eval_` in an evaluation."""
        mode = "eval" if any(name.startswith("eval_") for name in logs) else "train"
        if mode == "eval" or "loss" in logs:
            window, num_tokens = self._everywhere(mode)
            if window.sums:
                prefix = "eval_" if mode == "eval" else ""
                # This replaces the Trainer's own `loss`, which forgets the part of a window before a resume.
                logs.update({prefix + name: value for name, value in window.means().items()})
                if mode == "train":
                    logs["num_tokens"] = float(num_tokens)
            self._windows[mode] = Window()
        super().log(logs, start_time)

    def _everywhere(self, mode: str) -> tuple[Window, int]:
        """Window and tokens of all processes; each of them must ask."""
        whole, tokens = Window(), 0
        for sums, own in processes.gather((self._windows[mode].sums, self._num_tokens)):
            whole.add({name: (total, weight) for name, (total, weight) in sums.items()})
            tokens += own
        return whole, tokens

    # ---- Checkpoints: whole or absent, no pickled objects beside torch's own states ----

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        output_dir = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        staging = output_dir / checkpoints.STAGING
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
            (staging / name).mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # each library has its own word for a full disk
            full = is_disk_full(error) or shutil.disk_usage(output_dir).free < 1 << 20
            if not full:
                raise
            raise TrainingError(
                f"the disk is full: {name} could not be written",
                where=str(output_dir),
                fix="make room (or set save_total_limit) and start again: training goes on from the last checkpoint",
            ) from error
        finally:
            self._staging = None
        sums, num_tokens = self._everywhere("train")
        if self.args.should_save:  # sums of all: whoever resumes, in however many processes, goes on with them
            window = {"sums": sums.sums, "num_tokens": num_tokens}
            (staging / name / "window.json").write_text(json.dumps(window))
            seal(staging / name)
            shutil.rmtree(output_dir / name, ignore_errors=True)
            os.replace(staging / name, output_dir / name)
            staging.rmdir()
            best = {self.state.best_global_step} if self.state.best_global_step else set()
            checkpoints.rotate(output_dir, self.args.save_total_limit, best | self.kept(self.state.log_history))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers has it; of an engine that was never begun, since nothing was left to train, the policy's own
        weights."""
        if self._cut:
            self._save(output_dir, fsdp.gathered(self.policy.module))
        elif self.is_deepspeed_enabled and self.deepspeed is None:
            self._save(output_dir)
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The policy's weights; no pickled arguments."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.policy.save(folder, state_dict)
        saved.check(folder, self._shapes)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._cut:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = fsdp.optimizer_state(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / "optimizer.pt")
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._cut:  # or else it was loaded before
            self.policy.load(resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._cut and checkpoint is not None:
            for part, load in (("optimizer", lambda state: fsdp.load_optimizer_state(self.optimizer, state)),
                               ("scheduler", self.lr_scheduler.load_state_dict)):
                load(torch.load(Path(checkpoint) / f"{part}.pt", map_location="cpu", weights_only=True))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)
        # Here and not with the weights, which an engine loads by itself; into one process, for they are sums of all.
        file = Path(checkpoint or "") / "window.json"
        if checkpoint is not None and processes.is_main() and file.is_file():
            window = json.loads(file.read_text())
            self._windows["train"].sums = window["sums"]
            self._num_tokens = window["num_tokens"]


class _Batches:
    """Batches without a number: the steps say when it is over."""

    def __init__(self, begin: Callable[[], Iterator[Any]]) -> None:
        self._begin = begin

    def __iter__(self) -> Iterator[Any]:
        return self._begin()


def _disable_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Qwen's attention reads its rate from an attribute.
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
