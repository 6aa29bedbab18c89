"""The model that is trained: an adapter on the Talker, or a copy of its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from talker_rl.base.errors import ConfigError
from talker_rl.speech.lora import attach_lora, load_lora
from talker_rl.train.config import TrainConfig

if TYPE_CHECKING:
    from talker_rl.speech.qwen2_5_omni.checkpoint import Omni


@contextmanager
def policy(
    omni: Omni, cfg: TrainConfig, seed: int, start_adapter: str | Path | None = None,
    reference: str | Path | None = None,
) -> Iterator[Any]:
    """The policy to train. On leaving, `omni.talker` is what it was: bare, frozen, with the base's weights.

    Args:
        omni: the loaded model; needs its Talker.
        cfg: with `lora`, a `peft.PeftModel` around `omni.talker` is given; without, a trainable copy of it.
        seed: of the adapter's initialization.
        start_adapter: folder of the adapter that training begins with; its rank and modules are kept.
        reference: folder of the adapter that is the reference, a frozen copy of it; None: the base is.

    Raises:
        ConfigError: a start adapter for full weights, or full weights in less than float32.
        CheckpointError: the start adapter is incomplete or of another geometry.
    """
    talker = omni.need("talker")
    if reference is not None and start_adapter is None:
        raise ConfigError("an adapter is the reference, and training begins without one", where=str(reference),
                          fix="begin with an adapter (model.adapter)")  # fmt: skip
    if cfg.lora is None:
        if start_adapter is not None:
            raise ConfigError(
                "a start adapter and full weights do not go together",
                where="train.lora: null",
                fix="set lora, or merge the adapter into the Talker and name the result in model.talker",
            )
        if next(talker.parameters()).dtype != torch.float32:
            raise ConfigError(
                f"full weights in {next(talker.parameters()).dtype} lose small updates",
                where="model.dtype",
                fix="load the model in float32 (and set train.args.bf16: true for speed), or train LoRA",
            )
        model = copy.deepcopy(talker).requires_grad_(True)
        yield model
        return
    use_cache = talker.config.use_cache if hasattr(talker.config, "use_cache") else None
    recompute = {m: m.gradient_checkpointing for m in talker.modules() if hasattr(m, "gradient_checkpointing")}
    if start_adapter is not None:
        model = load_lora(talker, start_adapter, trainable=True, reference=reference)
    else:
        model = attach_lora(talker, cfg.lora, base_model=str(omni.settings.path), seed=seed)
    try:
        yield model
    finally:
        model.unload()
        talker.eval().requires_grad_(False)
        for module, flag in recompute.items():
            module.gradient_checkpointing = flag
        if use_cache is not None:
            talker.config.use_cache = use_cache
