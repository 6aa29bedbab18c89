"""The micro world's speech codec: k-means over pairs of mel frames, 50 codes per second.

Only its encoder is needed to make training data for the Talker; codes are decoded by token2wav.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from talker_rl.base.errors import CheckpointError
from talker_rl.micro.files import save_tensors
from talker_rl.micro.mel import FRAMES_PER_CODE, MEL_DIM, log_mel

CODES = 512
_FLOOR = -9.0
"""Log amplitudes below this are equally silent; the dither's mel lies around it."""


def code_features(mel: Tensor) -> Tensor:
    """(T, 80) log mel, T even -> (T / 2, 160): the two frames of each code side by side."""
    return mel.clamp(min=_FLOOR).reshape(-1, FRAMES_PER_CODE * MEL_DIM)


class Codec:
    """Nearest-centroid codes. ``centroids`` (K, 160)."""

    def __init__(self, centroids: Tensor) -> None:
        self.centroids = centroids.float()

    def encode(self, audio: np.ndarray | Tensor) -> list[int]:
        """Codes (0 .. K - 1) of 24 kHz audio; a remainder shorter than 20 ms is dropped."""
        audio = torch.as_tensor(audio, dtype=torch.float32)
        mel = log_mel(audio[: len(audio) // 480 * 480])
        return torch.cdist(code_features(mel), self.centroids).argmin(1).tolist()

    def encode_mel(self, mel: Tensor) -> Tensor:
        """(T, 80) -> (T / 2,) codes."""
        return torch.cdist(code_features(mel), self.centroids).argmin(1)

    def save(self, path: str | Path) -> None:
        save_tensors({"centroids": self.centroids}, path)

    @classmethod
    def load(cls, path: str | Path) -> Codec:
        if not Path(path).is_file():
            raise CheckpointError("no codec", where=str(path), fix="run: talker-rl micro build")
        return cls(load_file(str(path))["centroids"])


def fit_kmeans(features: Tensor, k: int, seed: int, iterations: int = 40) -> tuple[Tensor, float]:
    """Lloyd's algorithm from a k-means++ start on a subsample. features (N, D) -> centroids (k, D), mean squared error.

    A cluster that runs empty is moved to the worst-served points.
    """
    generator = torch.Generator().manual_seed(seed)
    sample = features[torch.randperm(len(features), generator=generator)[:20_000]]
    chosen = [sample[int(torch.randint(len(sample), (1,), generator=generator))]]
    distance = ((sample - chosen[0]) ** 2).sum(1)
    for _ in range(k - 1):
        pick = sample[int(torch.multinomial(distance.clamp(min=0), 1, generator=generator))]
        chosen.append(pick)
        distance = torch.minimum(distance, ((sample - pick) ** 2).sum(1))
    centroids = torch.stack(chosen)
    error = float("inf")
    for _ in range(iterations):
        nearest, squared = _assign(features, centroids)
        counts = torch.bincount(nearest, minlength=k)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, features)
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centroids)
        empty = (counts == 0).nonzero()[:, 0]
        if len(empty):
            centroids[empty] = features[squared.topk(len(empty)).indices]
        previous, error = error, float(squared.mean())
        if previous - error < 1e-5 * error:
            break
    return centroids, error


def _assign(features: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest centroid and squared distance of every row, in chunks."""
    nearest, squared = [], []
    norms = (centroids**2).sum(1)
    for chunk in features.split(65_536):
        d = norms - 2 * chunk @ centroids.T
        value, index = d.min(1)
        nearest.append(index)
        squared.append((value + (chunk**2).sum(1)).clamp(min=0))
    return torch.cat(nearest), torch.cat(squared)
