"""FunASR recognisers (Paraformer with timestamps, offline), kept from their side effects.

What FunASR does by itself and this module prevents: takes a missing path for a hub name; runs code that a model's yaml
names; adds dither, so that scores are random; loads a checkpoint that lacks weights with a printed warning; reseeds
and consumes the global random generators; sets the process's thread count at every call; loses `<unk>` from the text
but not from the times; answers once for several inputs.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...data.records import stable_hash
from ...errors import CheckpointError, ConfigError
from ..config import RecognizerConfig
from .base import (
    SAMPLE_RATE,
    UNKNOWN,
    GuardedRecognizer,
    Transcript,
    hash_files,
    model_folder,
    torch_threads,
    transcript_of,
)

_UNK_WORD = "zzunkzz"
"""Stands for `<unk>` inside FunASR: a word of letters, so that its post-processing keeps text and times together."""
_STAMP_SECONDS = 0.020
"""FunASR takes an upsampled frame for 20 ms whatever the frontend's stride (`ts_prediction_lfr6_standard`)."""


class FunASRRecognizer(GuardedRecognizer):
    """A FunASR model folder behind the `Recognizer` protocol.

    Args:
        path: folder with config.yaml (or configuration.json), model.pt and its token list; or `micro:reward|eval`.
        device: torch device.
        config: all settings; `path` and `device` above are used where it is None.

    Raises:
        CheckpointError: folder missing, file missing or unreadable, weights missing or of another shape.
        ConfigError: the device is not there, or funasr is not installed.
    """

    def __init__(self, path: str, device: str = "cpu", config: RecognizerConfig | None = None) -> None:
        super().__init__(config or RecognizerConfig(type="funasr", path=path, device=device))
        self.folder = model_folder(path, ["config.yaml", "model.pt"])
        _check_device(self.config.device)
        self._model = self._load()
        settings = self._model.kwargs
        frontend = copy.deepcopy(settings["frontend"])
        frontend.dither = 0.0  # 1.0 by default: scores would be random
        if frontend.fs != SAMPLE_RATE:
            raise CheckpointError(f"the recogniser wants {frontend.fs} Hz, it is fed {SAMPLE_RATE} Hz", where=path)
        self._runtime = {"frontend": frontend, "tokenizer": _keep_unknown(settings["tokenizer"])}
        upsample = getattr(getattr(self._model.model, "predictor", None), "upsample_times", 3)
        stamp = frontend.lfr_n * frontend.frame_shift / 1000 / upsample
        self._time_scale = stamp / _STAMP_SECONDS
        self._hash: str | None = None

    def fingerprint(self) -> str:
        """Changes with model files, settings and the version of FunASR."""
        import funasr

        if self._hash is None:
            settings = self.config.model_dump(exclude={"path", "device"})
            self._hash = stable_hash("funasr", hash_files(self.folder), settings, funasr.__version__)
        return self._hash

    def _recognize(self, audios: list[np.ndarray], lang: str) -> list[Transcript]:
        import torch

        with torch.random.fork_rng(devices=[]):  # SANM layers draw a random number even in evaluation
            results = self._model.generate(
                input=list(audios), key="item", batch_size=len(audios), fs=SAMPLE_RATE, **self._runtime
            )
        return [parse(result, self._time_scale) for result in results]

    def _load(self) -> Any:
        import torch

        try:
            with _contained(), torch_threads(self.config.threads):
                from funasr import AutoModel

                model = AutoModel(
                    model=str(self.folder),
                    model_path=str(self.folder),
                    init_param=str(self.folder / "model.pt"),
                    device=self.config.device,
                    ncpu=self.config.threads,
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
                where=str(self.folder),
                fix="copy the whole folder again; it must hold a FunASR model with a frontend and a token list",
            ) from error
        state = torch.load(self.folder / "model.pt", map_location="cpu", weights_only=True)
        check_weights(state, model.model.state_dict(), self.folder / "model.pt")
        return model


def parse(result: dict[str, Any], time_scale: float = 1.0) -> Transcript:
    """A transcript from one FunASR result, ``{"text": "river 苹 果", "timestamp": [[start_ms, end_ms], ...]}``.

    `<unk>` vanishes from FunASR's text but not from its times; `_keep_unknown` prevents that where the tokenizer lets
    it. Where text and times still differ in number, no time can be trusted and the transcript says so.
    """
    words = str(result.get("text", "")).split()
    times = result.get("timestamp")
    tokens = transcript_of([(_restore(w), (0.0, 0.0)) for w in words]).tokens
    if not words:
        return Transcript([], [])
    if times is None:
        return Transcript(tokens, [], "the model gives no times")
    if len(times) != len(words):
        return Transcript(tokens, [], f"{len(times)} times for {len(words)} words")
    # The first fire may lie before the start of the audio: FunASR shifts all of them by -30 ms.
    spans = [(max(0.0, s * time_scale / 1000), max(0.0, e * time_scale / 1000)) for s, e in times]
    return transcript_of(zip(map(_restore, words), spans, strict=True))


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
                f"the recogniser's checkpoint {kind} {len(keys)} of {len(wanted)} weights: {', '.join(keys[:5])}",
                where=str(where),
                fix="use the model.pt that belongs to this config.yaml",
            )


def _keep_unknown(tokenizer: Any) -> Any:
    """A copy of the tokenizer that writes `<unk>` as an ordinary word."""
    tokenizer = copy.deepcopy(tokenizer)
    unknown = getattr(tokenizer, "unk_id", None)
    if isinstance(getattr(tokenizer, "token_list", None), list) and isinstance(unknown, int):
        tokenizer.token_list[unknown] = _UNK_WORD
    return tokenizer


def _restore(word: str) -> str:
    return UNKNOWN if word == _UNK_WORD else word


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
