"""Recordings to codes. By several users' tests Qwen3-Omni's codes are those of Mimi (``kyutai/mimi``), the first
sixteen books; that was never checked here on its real weights: ``talker-rl encode --check`` does. A small model may
have an encoder of its own: books of residual centroids over mel frames, in a safetensors file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from talker_rl.base.errors import CheckpointError, told
from talker_rl.records.codec import Codec
from talker_rl.speech.config import ModelConfig
from talker_rl.speech.family import Encoder
from talker_rl.speech.locate import pick_device, resolve_model_path
from talker_rl.speech.mel import HOP, log_mel

MIMI = "kyutai/mimi"
FLOOR = -9.0
"""Log amplitudes below this are equally silent to residual books."""


class Residual:
    """Nearest centroids, book by book, each of what the ones before have left.

    Args:
        centroids: (books, codes, mel frames x 80).
    """

    def __init__(self, centroids: torch.Tensor) -> None:
        self.centroids = centroids.float()

    def encode(self, sounds: Sequence[np.ndarray]) -> list[list[int]]:
        samples = self.centroids.shape[2] // 80 * HOP
        return [self.encode_mel(log_mel(torch.from_numpy(sound[: len(sound) // samples * samples]))).flatten().tolist()
                for sound in sounds]

    def encode_mel(self, mel: torch.Tensor) -> torch.Tensor:
        """(M, 80) natural-log mel -> (frames, books)."""
        left, out = self.features(mel), []
        for book in self.centroids:
            squared = (book**2).sum(1) - 2 * left @ book.T  # but for what is the same of all
            out.append(squared.argmin(1))
            left = left - book[out[-1]]
        return torch.stack(out, dim=1)

    def features(self, mel: torch.Tensor) -> torch.Tensor:
        """(M, 80) -> (frames, width of a centroid)."""
        return mel.clamp(min=FLOOR).reshape(-1, self.centroids.shape[2])


class Mimi:
    """The first books of transformers' MimiModel."""

    def __init__(self, model: Any, books: int) -> None:
        self.model, self.books = model, books

    @torch.no_grad()
    def encode(self, sounds: Sequence[np.ndarray]) -> list[list[int]]:
        device, samples = next(self.model.parameters()).device, 1920
        out = []
        for sound in sounds:
            whole = torch.from_numpy(sound[: len(sound) // samples * samples]).to(device)
            codes_GT = self.model.encode(whole[None, None], num_quantizers=self.books).audio_codes[0]
            out.append(codes_GT[:, : len(whole) // samples].T.flatten().tolist())
        return out


def load_encoder(settings: ModelConfig, codec: Codec, path: str | None) -> Encoder:
    """An encoder: a safetensors file of residual books, a folder or hub name of a Mimi; None: Mimi's hub name.

    Raises:
        CheckpointError: there is none, or its books are not the codec's.
    """
    file = Path(path or MIMI).expanduser()
    if file.suffix == ".safetensors":
        from talker_rl.speech.files import read_tensors

        if not file.is_file():
            raise CheckpointError("there is no such file of books", where=str(file), fix="check the path")
        centroids = read_tensors([file]).get("centroids")
        shape = None if centroids is None else tuple(centroids.shape)
        if centroids is None or centroids.ndim != 3 or shape[:2] != (codec.groups, codec.sizes[0]):  # type: ignore[index]
            raise CheckpointError(f"this file holds no {codec.groups} books of {codec.sizes[0]} codes ({shape})",
                                  where=str(file), fix="give the model's own encoder")
        return Residual(centroids)
    return _mimi(settings, codec, path or MIMI)


def _mimi(settings: ModelConfig, codec: Codec, path: str) -> Mimi:
    from transformers import MimiModel

    folder = resolve_model_path(path, ["*.json", "*.safetensors"])
    try:
        model = MimiModel.from_pretrained(folder, use_safetensors=True)
    except Exception as error:
        raise CheckpointError(f"this is no Mimi that can be loaded: {told(error)}", where=str(folder),
                              fix=f"give {MIMI}, or its folder") from error
    config = model.config
    if config.num_quantizers < codec.groups or config.codebook_size != codec.sizes[0]:
        raise CheckpointError(f"this Mimi has {config.num_quantizers} books of {config.codebook_size} codes, the model "
                              f"speaks {codec.groups} of {codec.sizes[0]}", where=str(folder), fix=f"give {MIMI}")
    if config.sampling_rate != codec.sample_rate or config.frame_rate != codec.rate:
        raise CheckpointError(f"this Mimi has {config.frame_rate:g} frames per second of {config.sampling_rate} Hz",
                              where=str(folder), fix=f"give {MIMI}")
    return Mimi(model.to(pick_device(settings.device)).eval().requires_grad_(False), codec.groups)
