"""Training of the speech side of the micro world: codec, vocoder, DiT.

    python -m talker_rl.micro.train_audio codec|vocoder|dit --out build/micro

Each part writes its own file and, once both exist, ``token2wav.safetensors`` (the state of
Qwen2_5OmniToken2WavModel) with ``token2wav_config.json``; snapshots appear while training goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniToken2WavBigVGANModel

from talker_rl.micro.codec import CODES, Codec, code_features, fit_kmeans
from talker_rl.micro.corpus import Rendered, make_requests, render_all
from talker_rl.micro.fast_snake import accelerate
from talker_rl.micro.files import save_tensors
from talker_rl.micro.mel import log_mel
from talker_rl.micro.vocoder import fit_vocoder, segments, vocoder_config

CODEC_SENTENCES = 600
VOCODER_SENTENCES = 600
SNAPSHOT_STEPS = 200


def render_corpus(n: int, seed: int) -> list[Rendered]:
    """``n`` random sentences by the micro world's speakers."""
    return render_all(make_requests(n, seed))


def audio_and_mels(rendered: list[Rendered]) -> tuple[list[Tensor], list[Tensor]]:
    """Waveforms (L,) and their mels (L / 240, 80)."""
    audios = [torch.from_numpy(r.audio) for r in rendered]
    return audios, [log_mel(a) for a in audios]


def train_codec(
    out: str | Path, seed: int = 0, sentences: int = CODEC_SENTENCES, codes: int = CODES
) -> dict[str, float]:
    """k-means over the mel frames of both speakers -> ``out/codec.safetensors``. Returns the quantisation error."""
    _, mels = audio_and_mels(render_corpus(sentences, seed * 1000 + 1))
    features = torch.cat([code_features(m) for m in mels])
    centroids, error = fit_kmeans(features, codes, seed)
    Codec(centroids).save(Path(out) / "codec.safetensors")
    return {"rms_error": (error / features.shape[1]) ** 0.5, "frames": float(len(features))}


def train_vocoder(
    out: str | Path,
    seed: int = 0,
    steps: int = 2500,
    sentences: int = VOCODER_SENTENCES,
    batch: int = 8,
    frames: int = 48,
    learning_rate: float = 1e-3,
    resume: bool = False,
) -> dict[str, float]:
    """Spectral training on random crops -> ``out/vocoder.safetensors``. ``resume`` starts from that file."""
    out = Path(out)
    torch.manual_seed(seed)
    model = Qwen2_5OmniToken2WavBigVGANModel._from_config(vocoder_config())
    if resume:
        model.load_state_dict(load_file(str(out / "vocoder.safetensors")))
    if not accelerate(model):
        tqdm.write("no C compiler: the vocoder trains several times slower")
    audios, mels = audio_and_mels(render_corpus(sentences, seed * 1000 + 2))
    generator = torch.Generator().manual_seed(seed)
    bar = tqdm(total=steps, desc="vocoder", mininterval=5.0)

    def on_step(step: int, loss: float) -> None:
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if step % SNAPSHOT_STEPS == 0 or step == steps:
            save_tensors(model.state_dict(), out / "vocoder.safetensors")

    batches = segments(audios, mels, batch, frames, generator, mel_noise=0.15)
    loss = fit_vocoder(model, batches, steps, learning_rate, on_step=on_step)
    return {"loss": loss}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["codec", "vocoder"])
    parser.add_argument("--out", default="build/micro")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    extra = {} if args.steps is None else {"steps": args.steps}
    if args.part == "codec":
        print(train_codec(args.out, args.seed))
    else:
        print(train_vocoder(args.out, args.seed, resume=args.resume, **extra))


if __name__ == "__main__":
    main()
