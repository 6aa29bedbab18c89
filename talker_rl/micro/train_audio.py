"""Training of the speech side of the micro world: codec, vocoder, DiT.

    python -m talker_rl.micro.train_audio codec|vocoder|dit --out build/micro
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from talker_rl.micro.codec import CODES, Codec, code_features, fit_kmeans
from talker_rl.micro.corpus import Rendered, make_requests, render_all
from talker_rl.micro.mel import log_mel

CODEC_SENTENCES = 600


def render_corpus(n: int, seed: int) -> list[Rendered]:
    """``n`` random sentences by the micro world's speakers."""
    return render_all(make_requests(n, seed))


def train_codec(out: str | Path, seed: int = 0, sentences: int = CODEC_SENTENCES, codes: int = CODES) -> dict[str, float]:
    """k-means over the mel frames of both speakers -> ``out/codec.safetensors``. Returns the quantisation error."""
    rendered = render_corpus(sentences, seed * 1000 + 1)
    features = torch.cat([code_features(log_mel(torch.from_numpy(r.audio))) for r in rendered])
    centroids, error = fit_kmeans(features, codes, seed)
    Codec(centroids).save(Path(out) / "codec.safetensors")
    return {"rms_error": (error / features.shape[1]) ** 0.5, "frames": float(len(features))}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["codec"])
    parser.add_argument("--out", default="build/micro")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(train_codec(args.out, args.seed))


if __name__ == "__main__":
    main()
