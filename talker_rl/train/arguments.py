"""`TalkerArguments`: trl.DPOConfig with float32 defaults, its loss fields refused, and nothing that does nothing.

The module imports without trl: then the same fields extend transformers.TrainingArguments.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments

from talker_rl.base.errors import ConfigError
from talker_rl.train.config import LOSS_FIELDS, SAVE_STEPS, refuse_loss_fields

# TRL's trainers and configs report their use to the hub when they start; a training run tells nobody.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or else DeepSpeed, where it is installed, says that it found none

HAS_TRL = importlib.util.find_spec("trl") is not None


@dataclass
class _FieldsOfDPOConfig(TrainingArguments):
    """trl.DPOConfig's own fields, for machines without trl."""

    model_init_kwargs: dict[str, Any] | str | None = field(default=None)
    trust_remote_code: bool = field(default=False)
    router_aux_loss_coef: float | None = field(default=None)
    disable_dropout: bool = field(default=True)
    dataset_num_proc: int | None = field(default=None)
    max_length: int | None = field(default=None)
    truncation_mode: str = field(default="keep_start")
    padding_free: bool = field(default=True)
    pad_to_multiple_of: int | str | None = field(default=None)
    precompute_ref_log_probs: bool = field(default=True)
    precompute_ref_batch_size: int | None = field(default=None)
    activation_offloading: bool = field(default=False)
    sync_ref_model: bool = field(default=False)
    ref_model_mixup_alpha: float = field(default=0.6)
    ref_model_sync_steps: int = field(default=512)
    pad_token: str | None = field(default=None)


if TYPE_CHECKING:
    _Base = _FieldsOfDPOConfig
elif HAS_TRL:
    from trl import DPOConfig as _Base
else:
    _Base = _FieldsOfDPOConfig

_UNUSED: dict[str, tuple[Any, str]] = {
    "model_init_kwargs": (None, "the model is loaded by `model:`"),
    "trust_remote_code": (False, "no code is ever taken from a checkpoint"),
    "router_aux_loss_coef": (None, "the Talker is no mixture of experts"),
    "dataset_num_proc": (None, "pairs need no preprocessing"),
    "truncation_mode": ("keep_start", "only the end of a rejected sequence can be cut"),
    "padding_free": (True, "batches are always packed into one row without padding"),
    "pad_to_multiple_of": (None, "batches are packed without padding"),
    "precompute_ref_log_probs": (True, "reference log-probs are always computed before training, and cached"),
    "activation_offloading": (False, "use gradient_checkpointing to save memory"),
    "sync_ref_model": (False, "the reference is the policy as training began"),
    "pad_token": (None, "the Talker has no text tokenizer"),
    "use_liger_kernel": (False, "the kernels do not know the Talker"),
    "label_smoothing_factor": (0.0, "write label_smoothing into the `loss:` dictionary"),
    "neftune_noise_alpha": (None, "the Talker's inputs are given as embeddings"),
    "load_best_model_at_end": (False, "write `checkpoint.select: best`"),
    "auto_find_batch_size": (False, "a changed batch size would not resume exactly"),
    "remove_unused_columns": (False, "a row of pairs is no model input"),
    "push_to_hub": (False, "upload the finished folder yourself"),
}
"""Fields that would do nothing or harm here: the one value they may have, and why."""


@dataclass
class TalkerArguments(_Base):
    """Training arguments by transformers' and TRL's own names.

    What differs from trl.DPOConfig: float32 and no gradient checkpointing by default; the CPU is used when there is no
    GPU; `max_length` counts codes (the stop included) and defaults to no limit: a longer rejected is cut, a pair
    with a longer chosen is left out, both are counted; the loss fields are refused (`loss:` names the loss).

    Raises:
        ConfigError: a loss field is set, or a field that this trainer does not implement.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})
    bf16: bool | None = field(default=False, metadata={"help": "bfloat16 autocast; float32 by default."})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute activations to save memory; off by default."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every so many update steps."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Always False."})
    save_steps: float = field(default=SAVE_STEPS, metadata={"help": "A checkpoint every so many update steps."})
    report_to: None | str | list[str] = field(default="none", metadata={"help": "Trackers, none by default."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A NaN loss stops training instead."})
    max_length: int | None = field(default=None, metadata={"help": "Longest completion in codes, the stop included."})
    padding_free: bool = field(default=True, metadata={"help": "Always True."})
    pad_to_multiple_of: int | str | None = field(default=None, metadata={"help": "Not used."})
    precompute_ref_log_probs: bool = field(default=True, metadata={"help": "Always True."})

    # Named to tell "set" from "left alone": None means that nobody wrote it.
    loss_type: Any = field(default=None, metadata={"help": "Refused: write `loss:`."})
    loss_weights: Any = field(default=None, metadata={"help": "Refused: write `loss:`."})
    beta: Any = field(default=None, metadata={"help": "Refused: write `loss:`."})
    label_smoothing: Any = field(default=None, metadata={"help": "Refused: write `loss:`."})
    ld_alpha: Any = field(default=None, metadata={"help": "Refused: write `loss:`."})
    f_divergence_type: Any = field(default=None, metadata={"help": "Refused: write `loss:`."})
    f_alpha_divergence_coef: Any = field(default=None, metadata={"help": "Refused: write `loss:`."})
    use_weighting: Any = field(default=None, metadata={"help": "Refused: write `loss:`."})
    discopop_tau: Any = field(default=None, metadata={"help": "Refused: write `loss:`."})

    def __post_init__(self) -> None:
        refuse_loss_fields({name: getattr(self, name) for name in LOSS_FIELDS})
        for name, (only, why) in _UNUSED.items():
            if hasattr(self, name) and getattr(self, name) != only:
                raise ConfigError(
                    f"{name} is not implemented by this trainer: {why}",
                    where=f"train.args.{name}={getattr(self, name)!r}",
                    fix=f"remove it (its value here is {only!r})",
                )
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise ConfigError(
                f"train_sampling_strategy {self.train_sampling_strategy!r} would group pairs by length to save padding",
                where="train.args.train_sampling_strategy",
                fix="leave it random: batches are packed and have no padding",
            )
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError("max_length is below 1", where="train.args.max_length", fix="give codes, or null")
        if not torch.cuda.is_available() and not self.deepspeed:  # of which use_cpu would make plain DDP
            self.use_cpu = True  # or else accelerate may find another accelerator than the one omni loaded to
        if getattr(self, "data_seed", None) is None:
            self.data_seed: int | None = self.seed  # or else accelerate shuffles by 42 whatever the seed
        if getattr(self, "ddp_find_unused_parameters", None) is None:
            self.ddp_find_unused_parameters: bool | None = False  # each trained parameter takes part in every step
        for name in ("checkpointing", "checkpointing_kwargs"):
            if getattr(self, f"activation_{name}", "") is None:  # what transformers >= 5.23 wants gradient_* called
                setattr(self, f"activation_{name}", getattr(self, f"gradient_{name}"))
        super().__post_init__()
        self._n_gpu = min(self.n_gpu, 1)  # or else a process that sees several wraps the model in DataParallel


def check_spread(args: TalkerArguments, processes: int) -> None:
    """Whether a training has something to do for each of its processes.

    Raises:
        ConfigError: its batches have fewer records than there are processes.
    """
    if args.per_device_train_batch_size < processes:
        raise ConfigError(
            f"batches of {args.per_device_train_batch_size} cannot be shared by {processes} processes",
            where="train.args.per_device_train_batch_size",
            fix=f"raise it to {processes} or more (and lower gradient_accumulation_steps), or use fewer devices: it is "
            "the batch of all of them together",
        )


def argument_names() -> list[str]:
    """Every field that `args:` may hold (the output folder is the run's business)."""
    return [f.name for f in dataclasses.fields(TalkerArguments) if f.init and f.name != "output_dir"]


def build_arguments(values: Mapping[str, Any], output_dir: str | Path, **overrides: Any) -> TalkerArguments:
    """`TalkerArguments` from the `args:` dictionary of a config.

    Raises:
        ConfigError: an unknown name (the nearest right one is suggested), a refused field or a bad value.
    """
    names = argument_names()
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, [n for n in names if n not in LOSS_FIELDS], n=1)
            raise ConfigError(
                f"unknown training argument {name!r}",
                where=f"train.args.{name}",
                fix=f"did you mean {near[0]!r}?" if near else "see TalkerArguments for the names",
            )
    try:
        return TalkerArguments(output_dir=str(output_dir), **{**values, **overrides})
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"the training arguments do not fit: {error}", where="train.args", fix="see above") from error
