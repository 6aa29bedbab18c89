"""Residual k-means over eight mel frames: the codes of the small Qwen3-Omni, and its encoder.

``python -m talker_rl.micro.qwen3.codes`` renders the sentences that sound is learned from and fits the books.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from talker_rl.base.errors import CheckpointError
from talker_rl.micro.codec import _assign
from talker_rl.micro.files import save_json, save_tensors
from talker_rl.micro.qwen3.config import BOOKS, BUILD_DIR, CODES, FRAME
from talker_rl.speech.mel import HOP, log_mel
from talker_rl.speech.qwen3_omni.encoder import FLOOR, Residual

SENTENCES, HELD_OUT = 900, 20
_ITERATIONS = 12


class Books(Residual):
    """``centroids`` (books, codes, 640): each book takes what the ones before have left."""

    def encode_one(self, audio: np.ndarray | Tensor) -> list[int]:
        """Flat codes, frame by frame, of 24 kHz audio."""
        return self.encode([np.asarray(audio, dtype=np.float32)])[0]

    def save(self, path: Path) -> None:
        """As the family's encoder reads it."""
        save_tensors({"centroids": self.centroids.half()}, path)

    @classmethod
    def load(cls, path: Path) -> Books:
        """What :meth:`save` wrote."""
        if not path.is_file():
            raise CheckpointError("no books", where=str(path), fix="run: talker-rl micro build --family qwen3_omni")
        return cls(load_file(str(path))["centroids"])


def features(mel: Tensor) -> Tensor:
    """(T, 80) -> (T / 8, 640): the mel frames of each code frame side by side."""
    return mel.clamp(min=FLOOR).reshape(-1, FRAME // HOP * mel.shape[1])


def fit(mels: list[Tensor], seed: int = 0) -> tuple[Books, list[float]]:
    """Books from log mels, and the mean absolute error that each leaves (nats).

    Lloyd's from random points: k-means++ in 640 dimensions costs more than it gains.
    """
    left = torch.cat([features(mel) for mel in mels])
    books, errors = [], []
    for number in range(BOOKS):
        generator = torch.Generator().manual_seed(seed + number)
        book = left[torch.randperm(len(left), generator=generator)[:CODES]].clone()
        for _ in range(_ITERATIONS):
            nearest, squared = _assign(left, book)
            counts = torch.bincount(nearest, minlength=CODES)
            sums = torch.zeros_like(book).index_add_(0, nearest, left)
            book = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], book)
            empty = (counts == 0).nonzero()[:, 0]
            if len(empty):
                book[empty] = left[squared.topk(len(empty)).indices]
        nearest, _ = _assign(left, book)
        left = left - book[nearest]
        books.append(book)
        errors.append(round(float(left.abs().mean()), 4))
        print(f"book {number + 1}/{BOOKS}: {errors[-1]:.3f} nats left", flush=True)
    return Books(torch.stack(books).half()), errors  # as they are stored


def sounds(count: int = SENTENCES, seed: int = 1) -> list[Tensor]:
    """Clean readings on the 80 ms grid, each a whole number of frames."""
    from talker_rl.micro.corpus import make_requests, render_all

    rendered = render_all(make_requests(count, seed), grid=FRAME)
    return [torch.from_numpy(r.audio) for r in rendered]


def load_sounds(build: Path) -> list[Tensor]:
    """What :func:`main` rendered."""
    held = load_file(str(build / "sounds.safetensors"))
    return [part.float() / 32767 for part in held["audio"].split(held["samples"].tolist())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=BUILD_DIR)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sentences", type=int, default=SENTENCES)
    args = parser.parse_args()
    found = sounds(args.sentences)
    whole = (torch.cat(found).clamp(-1, 1) * 32767).round().to(torch.int16)
    save_tensors({"audio": whole, "samples": torch.tensor([len(s) for s in found])}, args.build / "sounds.safetensors")
    mels = [log_mel(sound) for sound in load_sounds(args.build)]
    books, errors = fit(mels[:-HELD_OUT], args.seed)
    held_out = []
    for mel in mels[-HELD_OUT:]:
        codes = books.encode_mel(mel)
        spoken = sum(book[codes[:, k]] for k, book in enumerate(books.centroids))
        held_out.append(float((spoken - features(mel)).abs().mean()))
    books.save(args.build / "books.safetensors")
    save_json({"errors": errors, "held_out": round(sum(held_out) / len(held_out), 4)}, args.build / "books.json")


if __name__ == "__main__":
    main()
