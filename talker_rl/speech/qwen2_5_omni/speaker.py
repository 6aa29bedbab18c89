"""Speaker similarity by the checkpoint's own ECAPA, the encoder that gives the DiT its voice."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from talker_rl.speech.mel import log_mel


@torch.no_grad()
def speaker_embedding(token2wav: Any, mel_FM: torch.Tensor) -> torch.Tensor:
    """Embedding (D,) of a natural-log mel (frames, 80)."""
    encoder = token2wav.code2wav_dit_model.input_embed.spk_encoder
    device = encoder.fc.weight.device
    return encoder(mel_FM.float().unsqueeze(0).to(device)).reshape(-1).cpu()


@torch.no_grad()
def speaker_similarity(token2wav: Any, audio: np.ndarray | torch.Tensor, speaker: dict[str, Any]) -> float:
    """Cosine in [-1, 1] between the audio's voice and the speaker's reference.

    Args:
        token2wav: transformers' Qwen2_5OmniToken2WavModel.
        audio: float samples at 24 kHz (one-dimensional), or a mel (frames, 80).
        speaker: entry with ``ref_mel`` (1, frames, 80).
    """
    signal = torch.as_tensor(audio)
    mel = signal if signal.ndim == 2 else log_mel(signal)
    a, b = speaker_embedding(token2wav, mel), speaker_embedding(token2wav, speaker["ref_mel"][0])
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))
