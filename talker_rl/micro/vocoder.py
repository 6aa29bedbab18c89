"""The micro vocoder: transformers' BigVGAN class, small, trained by spectral losses on synthesized speech."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import Qwen2_5OmniBigVGANConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniToken2WavBigVGANModel

from talker_rl.base.errors import TrainingError
from talker_rl.micro.mel import HOP, MEL_DIM, log_mel

_STFT_SIZES = (256, 512, 1024, 2048)


def vocoder_config() -> Qwen2_5OmniBigVGANConfig:
    """0.26 M parameters; 4 x 3 x 4 x 5 = 240 samples per frame."""
    return Qwen2_5OmniBigVGANConfig(
        mel_dim=MEL_DIM,
        upsample_initial_channel=128,
        upsample_rates=[4, 3, 4, 5],
        upsample_kernel_sizes=[8, 7, 8, 9],  # kernel - stride even: each stage is exactly stride times longer
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3, 5]],
    )


def vocode(model: Qwen2_5OmniToken2WavBigVGANModel, mel: Tensor) -> Tensor:
    """(B, T, 80) natural-log mel -> (B, 240 T) waveform before the clamp, with gradients.

    The module's own forward ends in clamp, squeeze and cpu; this is the same computation without those.
    """
    x = model.conv_pre(model.process_mel_spectrogram(mel.transpose(1, 2)))
    blocks = model.num_residual_blocks
    for i in range(model.num_upsample_layers):
        x = model.ups[i][0](x)
        x = torch.stack([model.resblocks[i * blocks + j](x) for j in range(blocks)]).mean(0)
    return model.conv_post(model.activation_post(x))[:, 0]


def spectral_loss(fake: Tensor, real: Tensor) -> Tensor:
    """Log-magnitude L1 plus spectral convergence at four resolutions, plus mel L1. (B, L), (B, L) -> scalar."""
    loss = 2.0 * (log_mel(fake) - log_mel(real)).abs().mean()
    for size in _STFT_SIZES:
        window = torch.hann_window(size)
        a, b = (
            torch.stft(x, size, hop_length=size // 4, window=window, center=True, return_complex=True)
            for x in (fake, real)
        )
        a_mag = (a.real**2 + a.imag**2 + 1e-8).sqrt()
        b_mag = (b.real**2 + b.imag**2 + 1e-8).sqrt()
        floor = 1e-3 * size**0.5  # about the dither's level: what lies below it is not worth matching
        log_term = ((a_mag + floor).log() - (b_mag + floor).log()).abs().mean()
        convergence = (a_mag - b_mag).norm() / b_mag.norm().clamp(min=1e-4)
        loss = loss + (log_term + 0.5 * convergence) / len(_STFT_SIZES)
    return loss


def segments(
    audios: list[Tensor], mels: list[Tensor], batch: int, frames: int, generator: torch.Generator, mel_noise: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless random crops: mel (B, F, 80) with a little noise (a DiT's mels are not exact), audio (B, 240 F)."""
    usable = [i for i, m in enumerate(mels) if len(m) > frames]
    while True:
        mel_rows, audio_rows = [], []
        for _ in range(batch):
            i = usable[int(torch.randint(len(usable), (1,), generator=generator))]
            start = int(torch.randint(len(mels[i]) - frames, (1,), generator=generator))
            scale = mel_noise * float(torch.rand(1, generator=generator))
            mel = mels[i][start : start + frames]
            mel_rows.append(mel + scale * torch.randn(mel.shape, generator=generator))
            audio_rows.append(audios[i][start * HOP : (start + frames) * HOP])
        yield torch.stack(mel_rows), torch.stack(audio_rows)


def warmup_cosine(optimizer: torch.optim.Optimizer, warmup: int, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then a cosine from the optimizer's rate down to 2 % of it at ``steps``."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def fit_vocoder(
    model: Qwen2_5OmniToken2WavBigVGANModel,
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    learning_rate: float = 1e-3,
    warmup: int = 100,
    on_step: Callable[[int, float], None] | None = None,
) -> float:
    """AdamW, warm-up and cosine, clipped gradients. Returns the last smoothed loss.

    Raises TrainingError when the loss is not finite.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.8, 0.99), weight_decay=0.01)

    schedule = warmup_cosine(optimizer, warmup, steps)
    smooth = math.nan
    for step in range(steps):
        mel, audio = next(batches)
        loss = spectral_loss(vocode(model, mel), audio)
        if not torch.isfinite(loss):
            raise TrainingError("the vocoder's loss is not finite", where=f"step {step}", fix="lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        smooth = loss.item() if math.isnan(smooth) else 0.95 * smooth + 0.05 * loss.item()
        if on_step:
            on_step(step + 1, smooth)
    return smooth
