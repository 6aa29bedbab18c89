"""Engines: what holds a training's weights, gradients and optimizer state over its processes.

DeepSpeed is used as transformers drives it. What is written out here is what goes wrong without a word: on a CPU
transformers makes plain DDP of it, ZeRO-3 saves empty adapters where nothing gathers them, and its bfloat16 casts the
adapter that is trained.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talker_rl.base.errors import ConfigError, TrainingError
from talker_rl.train.engine_config import ZERO, EngineConfig

_WHERE = "train.engine.name"


def deepspeed_settings(engine: EngineConfig, args: Mapping[str, Any]) -> dict[str, Any] | None:
    """DeepSpeed's configuration for a training: of the engine, or as ``args.deepspeed`` gives it; None without it.

    Raises:
        ConfigError: both are given, it cannot be read, or it would lose or change what is trained.
    """
    given = args.get("deepspeed")
    if engine.name not in ZERO:
        return None if given is None else _checked(_read(given), args)
    if given is not None:
        raise ConfigError(f"engine {engine.name} and args.deepspeed both say what DeepSpeed does", where=_WHERE,
                          fix="leave one of them out")
    zero: dict[str, Any] = {"stage": int(engine.name[-1])}
    if engine.name == "zero3":
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return _checked({
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": False},  # the base has its own dtype, the adapter stays in float32
        "zero_allow_untested_optimizer": True,
    }, args)


def _read(given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    try:
        found: dict[str, Any] = json.loads(Path(str(given)).expanduser().read_text())
        return found
    except (OSError, ValueError) as error:
        raise ConfigError(f"DeepSpeed's configuration cannot be read: {error}", where="train.args.deepspeed",
                          fix="give its JSON file, or say train.engine: {name: zero2}") from None


def _checked(settings: dict[str, Any], args: Mapping[str, Any]) -> dict[str, Any]:
    zero = settings.get("zero_optimization", {})
    if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise ConfigError("ZeRO-3 would save nothing: its weights lie in parts, and nobody gathers them",
                          where="train.args.deepspeed.zero_optimization",
                          fix="set stage3_gather_16bit_weights_on_model_save: true")
    for kind in ("bf16", "fp16"):
        if settings.get(kind, {}).get("enabled") not in (None, False):
            raise ConfigError(f"DeepSpeed's {kind} casts everything, the adapter that is trained too",
                              where=f"train.args.deepspeed.{kind}.enabled",
                              fix=f"set {kind}: {{enabled: false}}, and model.dtype: bfloat16 for the base")
    if args.get("bf16") or args.get("fp16"):
        raise ConfigError("autocast (args.bf16) does not go together with DeepSpeed", where="train.args.bf16",
                          fix="leave it out, and set model.dtype: bfloat16: the adapter stays in float32")
    for name, on in (("args.use_cpu", args.get("use_cpu")), ("$ACCELERATE_USE_CPU", _is_on("ACCELERATE_USE_CPU"))):
        if on:
            raise ConfigError(f"{name} makes plain DDP of DeepSpeed, without a word", where=_WHERE,
                              fix="leave it out: without a GPU the CPU is used")
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError("DeepSpeed is not installed", where=_WHERE, fix="pip install 'talker-rl[deepspeed]'")
    return settings


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on", "y", "t")


def overrides(settings: dict[str, Any] | None, on_cpu: bool) -> dict[str, Any]:
    """Fields of the training arguments that make transformers run this engine; call it in every process.

    Args:
        settings: of :func:`deepspeed_settings`.
    """
    if settings is None:
        return {"use_cpu": True} if on_cpu else {}
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
    found: dict[str, Any] = {"deepspeed": settings}
    if on_cpu:
        _join_on_cpu()
        found["accelerator_config"] = {"use_configured_state": True}
    return found


def _join_on_cpu() -> None:
    """Processes on CPUs under DeepSpeed: accelerate would give each of them a world of its own."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    for name, alone in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"),
                        ("MASTER_PORT", "0")):
        os.environ.setdefault(name, alone)
    import deepspeed.ops
    from accelerate.state import PartialState

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or else it compiles its own exchange
    PartialState(backend="gloo")


def require(args: Any, settings: dict[str, Any] | None, world: int) -> None:
    """Whether the engine is what was asked for.

    Args:
        args: transformers' training arguments.
        world: processes that were asked for.

    Raises:
        TrainingError: it is another one, or the processes do not see each other.
    """
    kind = str(args.distributed_state.distributed_type).rpartition(".")[2]
    if settings is not None and kind != "DEEPSPEED":
        raise TrainingError(f"the training would run as {kind.lower()} and not with DeepSpeed", where=_WHERE,
                            fix="unset ACCELERATE_USE_CPU and args.use_cpu")
    if args.world_size != world:
        raise TrainingError(f"{world} processes were started, and this one sees {args.world_size}", where=_WHERE,
                            fix="start them with torchrun, or with talker-rl train")


def zero_stage(args: Any) -> int:
    """DeepSpeed's ZeRO stage of training arguments; 0 without it."""
    return int((args.hf_deepspeed_config.config["zero_optimization"]["stage"]) if args.deepspeed else 0)


def check_resume(checkpoint: Path, args: Any) -> None:
    """Whether a checkpoint's optimizer state is one that this engine can go on with.

    Raises:
        ConfigError: it was written by another engine, or by DeepSpeed in other processes.
    """
    parts = sorted(checkpoint.glob("global_step*/*zero_pp_rank_*optim_states.pt"))
    fix = "go on as it was begun, or train again from the start (--force-stage)"
    if bool(args.deepspeed) != bool(parts):
        was, now = ("DeepSpeed", "without it") if parts else ("no DeepSpeed", "with it")
        raise ConfigError(f"the checkpoint was written with {was}, and training would go on {now}",
                          where=str(checkpoint), fix=fix)
    if parts and len(parts) != args.world_size:
        raise ConfigError(f"the checkpoint lies in {len(parts)} parts, one for each process, and there are now "
                          f"{args.world_size}", where=str(checkpoint), fix=fix)
