"""Sound inside a page."""

from __future__ import annotations

import base64
import io

import numpy as np
import soundfile as sf

FORMATS = {
    "opus": ("OGG", "OPUS", "audio/ogg"),
    "flac": ("FLAC", "PCM_16", "audio/flac"),
    "mp3": ("MP3", "MPEG_LAYER_III", "audio/mpeg"),
    "wav": ("WAV", "PCM_16", "audio/wav"),
}


def data_uri(audio: np.ndarray, sample_rate: int = 24_000, audio_format: str = "opus") -> str:
    """``data:audio/...;base64,...`` of a mono signal.

    Args:
        audio: (samples,) float32 in [-1, 1].
        sample_rate: Hz.
        audio_format: a key of ``FORMATS``.
    """
    container, subtype, mime = FORMATS[audio_format]
    buffer = io.BytesIO()
    sf.write(buffer, np.clip(audio, -1, 1), sample_rate, format=container, subtype=subtype)
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"
