"""Training of the speech side of the micro world: codec, vocoder, DiT.

    python -m talker_rl.micro.train_audio codec|vocoder|dit|speaker|finetune --out build/micro

Each part writes its own file and, once both exist, ``token2wav.safetensors`` (the state of
Qwen2_5OmniToken2WavModel) with ``token2wav_config.json``; snapshots appear while training goes on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2_5OmniToken2WavConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniToken2WavBigVGANModel,
    Qwen2_5OmniToken2WavDiTModel,
    Qwen2_5OmniToken2WavModel,
)

from talker_rl.base.progress import bar, note
from talker_rl.micro.codec import CODES, Codec, code_features, fit_kmeans
from talker_rl.micro.corpus import Rendered, make_requests, render_all
from talker_rl.micro.dit import (
    REF_FRAMES,
    crops,
    dit_config,
    fit_dit,
    fit_speaker_encoder,
    new_dit,
    sample_mel,
    speaker_vector,
    voice_crops,
)
from talker_rl.micro.fast_snake import accelerate
from talker_rl.micro.files import save_json, save_tensors, save_torch
from talker_rl.micro.mel import log_mel
from talker_rl.micro.vocoder import fit_vocoder, segments, vocoder_config

CODEC_SENTENCES = 600
VOCODER_SENTENCES = 600
DIT_SENTENCES = 1000
SPEAKER_STEPS = 250
SNAPSHOT_STEPS = 200
HELD_OUT = 16
OTHER_VOICES = ("m1", "m3", "m4", "m7", "f2", "f3", "f4", "f5")


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
    """k-means over the mel frames of both speakers -> ``out/codec.safetensors``. Returns the quantization error."""
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
    data: tuple[list[Tensor], list[Tensor]] | None = None,
) -> dict[str, float]:
    """Spectral training on random crops -> ``out/vocoder.safetensors``. ``resume`` starts from that file.

    ``data``: waveforms and mels to train on instead of freshly rendered ones.
    """
    out = Path(out)
    torch.manual_seed(seed)
    model = Qwen2_5OmniToken2WavBigVGANModel._from_config(vocoder_config())
    if resume:
        model.load_state_dict(load_file(str(out / "vocoder.safetensors")))
    if not accelerate(model):
        note("no C compiler: the vocoder trains several times slower")
    audios, mels = data or audio_and_mels(render_corpus(sentences, seed * 1000 + 2))
    generator = torch.Generator().manual_seed(seed)
    shown = bar(total=steps, desc="vocoder", mininterval=5.0)

    def on_step(step: int, loss: float) -> None:
        shown.update()
        shown.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if step % SNAPSHOT_STEPS == 0 or step == steps:
            save_tensors(model.state_dict(), out / "vocoder.safetensors")
            write_token2wav(out)

    batches = segments(audios, mels, batch, frames, generator, mel_noise=0.0 if data else 0.15)
    loss = fit_vocoder(model, batches, steps, learning_rate, on_step=on_step)
    return {"loss": loss}


def finetune_vocoder(
    out: str | Path, seed: int = 0, steps: int = 600, sentences: int = 300, learning_rate: float = 4e-4
) -> dict[str, float]:
    """Go on with the vocoder on mels as the DiT makes them from codes, against the recordings they stand for."""
    out = Path(out)
    torch.manual_seed(seed)
    codec, token2wav = Codec.load(out / "codec.safetensors"), load_token2wav(out)
    voices = torch.load(out / "spk_dict.pt", weights_only=True)
    rendered = render_corpus(sentences, seed * 1000 + 4)
    audios, mels = audio_and_mels(rendered)
    decoded = []
    for i, r in enumerate(bar(rendered, desc="DiT mels", mininterval=5.0)):
        codes, voice = codec.encode_mel(mels[i])[None], voices[r.speaker]
        points = 2 + i % 2
        decoded.append(
            sample_mel(token2wav.code2wav_dit_model, codes, voice["cond"], voice["ref_mel"], seed + i, points)[0]
        )
    return train_vocoder(out, seed, steps, learning_rate=learning_rate, resume=True, data=(audios, decoded))


def train_dit(
    out: str | Path,
    seed: int = 0,
    steps: int = 3000,
    sentences: int = DIT_SENTENCES,
    batch: int = 12,
    learning_rate: float = 2e-3,
    resume: bool = False,
) -> dict[str, float]:
    """Flow matching on crops -> ``out/dit.safetensors``, ``out/spk_dict.pt``. Returns mel L1 by steps and guidance.

    ``resume`` starts from the weights in ``out`` and keeps the speaker parameters there.
    """
    out = Path(out)
    torch.manual_seed(seed)
    codec = Codec.load(out / "codec.safetensors")
    rendered = render_corpus(sentences, seed * 1000 + 3)
    _, mels = audio_and_mels(rendered)
    codes = [codec.encode_mel(m) for m in mels]
    speakers = [r.speaker for r in rendered]
    if resume:
        voices = torch.load(out / "spk_dict.pt", weights_only=True)
    else:
        voices = speaker_parameters(mels, speakers)
        save_torch(voices, out / "spk_dict.pt")
    conds = {name: voice["cond"][0] for name, voice in voices.items()}

    generator = torch.Generator().manual_seed(seed + int(resume))
    model = new_dit(torch.cat(mels).mean(0))
    if resume:
        model.load_state_dict(load_file(str(out / "dit.safetensors")))
    train = slice(HELD_OUT, None)
    batches = crops(mels[train], codes[train], speakers[train], conds, batch, generator)
    shown = bar(total=steps, desc="DiT", mininterval=5.0)

    def on_step(step: int, loss: float, average: Qwen2_5OmniToken2WavDiTModel) -> None:
        shown.update()
        shown.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if step % SNAPSHOT_STEPS == 0 or step == steps:
            save_tensors(average.state_dict(), out / "dit.safetensors")
            write_token2wav(out)

    average = fit_dit(model, batches, steps, generator, learning_rate, on_step=on_step)
    held_out = list(zip(mels[:HELD_OUT], codes[:HELD_OUT], speakers[:HELD_OUT], strict=True))
    cosines = train_speaker_encoder(out, seed, min(SPEAKER_STEPS, steps))
    return mel_errors(average, held_out, voices) | cosines


def train_speaker_encoder(out: str | Path, seed: int = 0, steps: int = SPEAKER_STEPS) -> dict[str, float]:
    """Teach the DiT's own ECAPA ten voices, last part of ``train_dit``. Returns held-out mean cosines."""
    out = Path(out)
    torch.manual_seed(seed)
    model = new_dit(torch.zeros(80)).eval()
    model.load_state_dict(load_file(str(out / "dit.safetensors")))
    voices = torch.load(out / "spk_dict.pt", weights_only=True)
    mels, names = other_voices(seed * 1000 + 5)
    own = render_corpus(120, seed * 1000 + 6)
    own_mels, own_names = audio_and_mels(own)[1], [r.speaker for r in own]
    generator = torch.Generator().manual_seed(seed)
    batches = voice_crops(mels + own_mels[HELD_OUT:], names + own_names[HELD_OUT:], 16, generator)
    fit_speaker_encoder(model, batches, torch.cat([v["ref_mel"] for v in voices.values()]), steps)
    save_tensors(model.state_dict(), out / "dit.safetensors")
    write_token2wav(out)
    encoder = model.input_embed.spk_encoder
    cosine: dict[str, list[float]] = {"same_speaker": [], "other_speaker": []}
    with torch.no_grad():
        for mel, speaker in zip(own_mels[:HELD_OUT], own_names[:HELD_OUT], strict=True):
            for name, voice in voices.items():
                pair = encoder(mel[None]), encoder(voice["ref_mel"])
                similarity = float(torch.nn.functional.cosine_similarity(*pair)[0])
                cosine["same_speaker" if name == speaker else "other_speaker"].append(similarity)
    return {f"cosine_{name}": float(np.mean(values)) for name, values in cosine.items()}


def other_voices(seed: int, sentences: int = 25) -> tuple[list[Tensor], list[str]]:
    """Mels of voices that are nobody's here, and their names: what the speaker encoder is told to keep apart."""
    requests = []
    for i, name in enumerate(OTHER_VOICES):
        for request in make_requests(sentences, seed + i, speakers=("Ethan",)):
            requests.append(replace(request, speaker=name, en_voice=f"en-us+{name}", zh_voice=f"cmn+{name}"))
    rendered = render_all(requests)
    return audio_and_mels(rendered)[1], [r.speaker for r in rendered]


def mel_errors(
    model: Qwen2_5OmniToken2WavDiTModel, items: list[tuple[Tensor, Tensor, str]], voices: dict[str, dict[str, Any]]
) -> dict[str, float]:
    """Mean |mel - mel| of decoded codes against the recording, for several numbers of time points and guidances."""
    errors: dict[str, float] = {}
    for num_steps, guidance in ((2, 0.0), (3, 0.0), (4, 0.0), (10, 0.0), (3, 0.5), (10, 0.5)):
        each = [
            (sample_mel(model, c[None], voices[s]["cond"], voices[s]["ref_mel"], i, num_steps, guidance)[0] - m)
            for i, (m, c, s) in enumerate(items)
        ]
        errors[f"mel_l1_{num_steps}_points_guidance_{guidance}"] = float(torch.cat(each).abs().mean())
    return errors


def speaker_parameters(mels: list[Tensor], speakers: list[str]) -> dict[str, dict[str, Any]]:
    """``spk_dict``: name -> bos_token (None: the checkpoint's writer knows), cond (1, 192), ref_mel (1, 300, 80)."""
    voices: dict[str, dict[str, Any]] = {}
    for name in sorted(set(speakers)):
        own = [m for m, s in zip(mels, speakers, strict=True) if s == name]
        reference = torch.cat(own[:4])[:REF_FRAMES]
        voices[name] = {"bos_token": None, "cond": speaker_vector(own)[None], "ref_mel": reference[None].clone()}
    return voices


def token2wav_config() -> Qwen2_5OmniToken2WavConfig:
    """The micro token2wav as the checkpoint's config.json holds it."""
    return Qwen2_5OmniToken2WavConfig(dit_config=dit_config().to_dict(), bigvgan_config=vocoder_config().to_dict())


def write_token2wav(out: str | Path) -> bool:
    """Join ``dit.safetensors`` and ``vocoder.safetensors`` into ``token2wav.safetensors``; False if one is missing."""
    out = Path(out)
    parts = {"code2wav_dit_model": out / "dit.safetensors", "code2wav_bigvgan_model": out / "vocoder.safetensors"}
    if not all(path.is_file() for path in parts.values()):
        return False
    state = {f"{prefix}.{k}": v for prefix, path in parts.items() for k, v in load_file(str(path)).items()}
    save_tensors(state, out / "token2wav.safetensors")
    save_json(token2wav_config().to_dict(), out / "token2wav_config.json")
    return True


def load_token2wav(out: str | Path) -> Qwen2_5OmniToken2WavModel:
    """The trained module of a work folder, in eval mode."""
    model = Qwen2_5OmniToken2WavModel._from_config(token2wav_config(), attn_implementation="sdpa")
    model.load_state_dict(load_file(str(Path(out) / "token2wav.safetensors")))
    return model.eval()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["codec", "vocoder", "dit", "speaker", "finetune"])
    parser.add_argument("--out", default="build/micro")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--resume", action="store_true", help="vocoder, dit: start from the weights in --out")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    extra: dict[str, Any] = {} if args.steps is None else {"steps": args.steps}
    if args.learning_rate is not None:
        extra["learning_rate"] = args.learning_rate
    if args.part == "codec":
        figures = train_codec(args.out, args.seed)
    elif args.part == "vocoder":
        figures = train_vocoder(args.out, args.seed, resume=args.resume, **extra)
    elif args.part == "speaker":
        figures = train_speaker_encoder(args.out, args.seed, **extra)
    elif args.part == "finetune":
        figures = finetune_vocoder(args.out, args.seed, **extra)
    else:
        figures = train_dit(args.out, args.seed, resume=args.resume, **extra)
    for name, value in figures.items():
        print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()
