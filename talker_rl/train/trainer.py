"""`TalkerDPOTrainer`: transformers.Trainer for preference pairs of codec tokens, or completions (loss sft).

It departs from TRL's DPOTrainer where the Talker and the losses ask for it: log-probs come from
`token_logps` (dual-track input, codec head), the loss is any of `talker_rl.losses` on per-token
log-probs, the reference is precomputed per token, and a checkpoint is whole or absent, so that a resumed run equals
one that was never interrupted. Names of arguments and metrics are TRL's.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from talker_rl.base.errors import TrainingError, is_disk_full
from talker_rl.base.ids import derive_seed
from talker_rl.losses import LossOutput, PairBatch, build_loss
from talker_rl.losses.build import Loss
from talker_rl.speech.lora import POLICY, save_lora
from talker_rl.speech.qwen2_5_omni.logps import token_logps
from talker_rl.train import checkpoints
from talker_rl.train.arguments import TalkerDPOConfig
from talker_rl.train.collate import PairDataset, PairExample, PreferenceBatch, collate_pairs
from talker_rl.train.metrics import Window, batch_sums


class TalkerDPOTrainer(Trainer):
    """Preference training of a Talker.

    Args:
        model: the Talker (full weights) or a `peft.PeftModel` around it.
        args: training arguments.
        loss: the `loss:` dictionary, or a built loss.
        train_examples: pairs with conditionings and reference log-probs.
        eval_examples: held-out pairs, likewise.
        callbacks: as transformers takes them.

    Raises:
        TrainingError: while training, when the loss is not finite (names the step and the pairs).
    """

    # The loss is a mean over the pairs of a micro-batch: the Trainer divides it by the accumulation steps.
    loss_is_scaled_for_ga = False
    model_accepts_loss_kwargs = False

    def __init__(
        self,
        model: nn.Module,
        args: TalkerDPOConfig,
        *,
        loss: Mapping[str, Any] | Loss,
        train_examples: Sequence[PairExample],
        eval_examples: Sequence[PairExample] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.preference_loss = loss if isinstance(loss, Loss) else build_loss(loss)
        self.beta = float(getattr(self.preference_loss.config, "beta", 1.0))
        self._windows = {"train": Window(), "eval": Window()}
        self._num_tokens = 0
        self._staging: Path | None = None
        if args.disable_dropout:
            _disable_dropout(model)
        super().__init__(
            model=model,
            args=args,
            data_collator=collate_pairs,
            train_dataset=PairDataset(train_examples),
            eval_dataset=PairDataset(eval_examples) if eval_examples else None,
            callbacks=callbacks,
        )
        self.model_accepts_loss_kwargs = False  # transformers derives it again from the model's signature

    # ---- Loss ----

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """One forward over chosen and rejected together, then the loss; what is logged is added to the window."""
        batch: PreferenceBatch = inputs["preference"].to(self.args.device)
        mode = "train" if model.training else "eval"
        logps_BT = token_logps(model, batch.talker)
        out = self.preference_loss(self._pair_batch(batch, logps_BT, mode))
        self._check_finite(out, batch, mode)
        self._windows[mode].add(batch_sums(batch, logps_BT, out, self.beta))
        if mode == "train":
            self._num_tokens += int(batch.talker.completion_mask_BT.sum())
        return (out.loss, {"per_pair": out.per_pair, "margin": out.margin}) if return_outputs else out.loss

    def _pair_batch(self, batch: PreferenceBatch, logps_BT: Tensor, mode: str) -> PairBatch:
        n = len(batch)
        mask = batch.talker.completion_mask_BT
        # Draws depend on the step and the pairs, not on a stream: a resumed run makes the same ones.
        when: tuple[Any, ...] = (self.args.seed, self.state.global_step) if mode == "train" else ("eval",)
        generator = torch.Generator().manual_seed(derive_seed("loss", *when, batch.pair_ids))
        # Completions have no rejected rows: N of no tokens stand for them.
        logps, refs, masks = (
            x[n:] if batch.paired else x.new_zeros(n, 0) for x in (logps_BT, batch.ref_logps, mask)
        )
        return PairBatch(
            policy_chosen_logps=logps_BT[:n],
            policy_rejected_logps=logps,
            ref_chosen_logps=batch.ref_logps[:n],
            ref_rejected_logps=refs,
            chosen_mask=mask[:n],
            rejected_mask=masks,
            generator=generator,
        )

    def _check_finite(self, out: LossOutput, batch: PreferenceBatch, mode: str) -> None:
        if bool(torch.isfinite(out.loss)):
            return
        bad = [i for i, value in zip(batch.pair_ids, out.per_pair.tolist(), strict=True) if not math.isfinite(value)]
        raise TrainingError(
            f"the loss is {float(out.loss.detach())}",
            where=f"{mode}, after step {self.state.global_step}, pairs {', '.join(bad or batch.pair_ids)}",
            fix="lower the learning rate, clip gradients (max_grad_norm), or train in float32; the checkpoints before "
            "this step are kept",
        )

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """The loss of held-out pairs; metrics go through the window, so no outputs are gathered."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    # ---- Logging ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the window's metrics under TRL's names, with the prefix `eval_` in an evaluation."""
        mode = "eval" if any(name.startswith("eval_") for name in logs) else "train"
        window = self._windows[mode]
        if window.sums and (mode == "eval" or "loss" in logs):
            window.reduce(self.accelerator)
            prefix = "eval_" if mode == "eval" else ""
            # This replaces the Trainer's own `loss`, which forgets the part of a window before a resume.
            logs.update({prefix + name: value for name, value in window.means().items()})
            if mode == "train":
                logs["num_tokens"] = float(self._num_tokens)
            self._windows[mode] = Window()
        super().log(logs, start_time)

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
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            window = {"sums": self._windows["train"].sums, "num_tokens": self._num_tokens}
            (staging / name / "window.json").write_text(json.dumps(window))
            checkpoints.seal(staging / name)
            shutil.rmtree(output_dir / name, ignore_errors=True)
            os.replace(staging / name, output_dir / name)
            staging.rmdir()
            keep = {self.state.best_global_step} if self.state.best_global_step else set()
            checkpoints.rotate(output_dir, self.args.save_total_limit, keep)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The adapter in PEFT's layout, or the Talker's weights; no pickled arguments."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "peft_config"):
            save_lora(model, folder)
        else:
            model.save_pretrained(folder, state_dict=state_dict, max_shard_size="100GB")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        target: Any = self.accelerator.unwrap_model(self.model)
        folder = Path(resume_from_checkpoint)
        if hasattr(target, "peft_config"):
            weights = load_file(folder / "adapter_model.safetensors")
            result = set_peft_model_state_dict(target, weights, adapter_name=POLICY)
            unexpected = result.unexpected_keys
        else:
            unexpected = target.load_state_dict(load_file(folder / "model.safetensors"), strict=False).unexpected_keys
        if unexpected:
            raise TrainingError(
                f"the checkpoint holds weights that the model has not: {unexpected[0]}",
                where=str(folder),
                fix="resume with the settings that the checkpoint was written with",
            )
        window_file = folder / "window.json"
        if window_file.is_file():
            window = json.loads(window_file.read_text())
            self._windows["train"].sums = window["sums"]
            self._num_tokens = window["num_tokens"]


def _disable_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Qwen's attention reads its rate from an attribute.
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
