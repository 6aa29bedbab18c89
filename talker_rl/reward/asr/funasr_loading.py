"""Opening a FunASR folder offline, kept from its side effects.

What FunASR does by itself and this module prevents: takes a missing path for a hub name; runs code that a model's yaml
names; adds dither, so that scores are random; loads a checkpoint that lacks weights with a printed warning; reseeds the
global random generators; sets the process's thread count; moves to the CPU where the device is missing.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from talker_rl.base.errors import CheckpointError, ConfigError
from talker_rl.reward.asr.base import SAMPLE_RATE, torch_threads

_STAMP_SECONDS = 0.020
"""FunASR takes an upsampled frame for 20 ms whatever the frontend's stride (`ts_prediction_lfr6_standard`)."""


@dataclass(frozen=True)
class Opened:
    """A FunASR model, ready to be asked."""

    auto: Any
    """`funasr.AutoModel`; the network is ``auto.model``, its settings ``auto.kwargs``."""
    kind: str
    """Class of the network: BiCifParaformer, SeacoParaformer, SenseVoiceSmall, MonotonicAligner, ..."""
    frontend: Any
    """A copy without dither."""
    tokenizer: Any
    time_scale: float
    """What FunASR's times must be multiplied by to be seconds of this frontend."""


def open_model(folder: Path, device: str, threads: int) -> Opened:
    """Load a folder with config.yaml (or configuration.json), model.pt and its token list.

    Raises:
        CheckpointError: it cannot be opened, lacks weights, or wants another sample rate.
        ConfigError: the device is not there, or funasr is not installed.
    """
    _check_device(device)
    auto = _load(folder, device, threads)
    frontend = copy.deepcopy(auto.kwargs["frontend"])
    frontend.dither = 0.0  # 1.0 by default: scores would be random
    if frontend.fs != SAMPLE_RATE:
        raise CheckpointError(f"the model wants {frontend.fs} Hz, it is fed {SAMPLE_RATE} Hz", where=str(folder),
                              fix="use a model for 16 kHz")
    upsample = getattr(getattr(auto.model, "predictor", None), "upsample_times", 3)
    stamp = frontend.lfr_n * frontend.frame_shift / 1000 / upsample
    return Opened(auto, type(auto.model).__name__, frontend, auto.kwargs["tokenizer"], stamp / _STAMP_SECONDS)


def _load(folder: Path, device: str, threads: int) -> Any:
    import torch

    try:
        with _contained(), torch_threads(threads):
            from funasr import AutoModel

            auto = AutoModel(
                model=str(folder),
                model_path=str(folder),
                init_param=str(folder / "model.pt"),
                device=device,
                ncpu=threads,
                frontend_conf={"dither": 0.0},
                trust_remote_code=False,
                disable_update=True,
                disable_pbar=True,
                log_level="ERROR",
            )
    except ImportError as error:
        raise ConfigError(
            f"FunASR cannot be imported: {error}",
            where="reward.recognizer.type",
            fix="install the funasr extra (it wants kaldi-native-fbank too)",
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"FunASR cannot open this folder: {type(error).__name__}: {error}",
            where=str(folder),
            fix="copy the whole folder again; it must hold a FunASR model with a frontend and a token list",
        ) from error
    state = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
    check_weights(state, auto.model.state_dict(), folder / "model.pt")
    return auto


def check_weights(state: dict[str, Any], wanted: dict[str, Any], where: Path) -> None:
    """Every weight of the model must be in the checkpoint, in its shape: FunASR itself only prints a warning.

    Raises:
        CheckpointError: naming the weights.
    """
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state.get(key), dict):
            state = state[key]
    state = {k.removeprefix("module."): v for k, v in state.items()}
    missing = [k for k in wanted if k not in state]
    misfit = [k for k in wanted if k in state and tuple(state[k].shape) != tuple(wanted[k].shape)]
    for kind, keys in (("lacks", missing), ("has in another shape", misfit)):
        if keys:
            raise CheckpointError(
                f"the recognizer's checkpoint {kind} {len(keys)} of {len(wanted)} weights: {', '.join(keys[:5])}",
                where=str(where),
                fix="use the model.pt that belongs to this config.yaml",
            )


def _check_device(device: str) -> None:
    """FunASR quietly moves to the CPU where the device is missing; that would change every score's speed and floats."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} is not available", where="reward.recognizer.device", fix="use cpu")


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Undo FunASR's global effects while it loads: random seeds, root logger, prints."""
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.disable(disabled)
