"""Sound inside a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import soundfile as sf

FORMATS = {
    "opus": ("OGG", "OPUS", "audio/ogg"),
    "flac": ("FLAC", "PCM_16", "audio/flac"),
    "mp3": ("MP3", "MPEG_LAYER_III", "audio/mpeg"),
    "wav": ("WAV", "PCM_16", "audio/wav"),
}


def data_uri(audio: np.ndarray, sample_rate: int, audio_format: str = "opus") -> str:
    """``data:audio/...;base64,...`` of a mono signal.

    Args:
        audio: (samples,) float32 in [-1, 1].
        sample_rate: Hz.
        audio_format: a key of ``FORMATS``.
    """
    container, subtype, _ = FORMATS[audio_format]
    buffer = io.BytesIO()
    sf.write(buffer, np.clip(audio, -1, 1), sample_rate, format=container, subtype=subtype)
    return _uri(buffer.getvalue(), audio_format)


def file_uri(path: Path, audio_format: str = "opus") -> str:
    """Likewise of a sound file; its bytes as they are where they are in that format already."""
    if path.suffix == f".{audio_format}":
        return _uri(path.read_bytes(), audio_format)
    audio, sample_rate = sf.read(path, dtype="float32")
    return data_uri(audio, sample_rate, audio_format)


def _uri(blob: bytes, audio_format: str) -> str:
    return f"data:{FORMATS[audio_format][2]};base64,{base64.b64encode(blob).decode()}"
