"""Files that stand in messages, as a Thinker's towers take them: families share it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from talker_rl.base.errors import CheckpointError, PromptError, TalkerRLError, told
from talker_rl.speech.files import require_file

MIN_AUDIO_SECONDS = 0.1
MAX_SAMPLE_RATE = 768_000
"""The highest that is recorded. The resampler's filter has 20 taps a hertz of a rate that shares no factor with 16 kHz:
what a damaged header says (2 GHz) would need hundreds of gigabytes."""


@lru_cache(maxsize=8)
def processor(name: str, folder: Path) -> Any:
    """A part of the processor, ``image`` or ``audio``, as the checkpoint's preprocessor_config.json configures it.

    Raises:
        CheckpointError: the file is not there, or cannot be used.
    """
    from transformers import Qwen2VLImageProcessorPil, WhisperFeatureExtractor

    require_file(folder, "preprocessor_config.json", "the processor of sound and images")
    cls = {"image": Qwen2VLImageProcessorPil, "audio": WhisperFeatureExtractor}[name]
    try:
        return cls.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"preprocessor_config.json cannot be used: {error}", where=str(folder),
                              fix="restore the original file") from error


@contextmanager
def reading(kind: str, file: Path, where: str) -> Iterator[None]:
    """Whatever a decoder raises, as a PromptError that names the file.

    All exceptions: for damaged files the decoders raise SyntaxError (Pillow's PNG), TypeError (soundfile's RAW),
    MemoryError (what a header asks for) and others besides their own, and one file must not stop all prompts.
    """
    try:
        yield
    except TalkerRLError:
        raise
    except Exception as error:
        raise PromptError(f"The {kind} cannot be read: {told(error)}", where=f"{where}: {file}",
                          fix="give another file") from error


def read_sound(folder: Path, file: Path, where: str, *, padded: bool) -> torch.Tensor:
    """(mel bins, frames) of a sound, as the checkpoint's processor makes it of that one alone.

    Args:
        padded: whether silence follows it, which the frames at its end hear.

    Raises:
        PromptError: the file cannot be read, is too short or long, or is not finite.
        CheckpointError: the checkpoint has no processor.
    """
    import soundfile

    from talker_rl.base.sound import resample

    extractor, here = processor("audio", folder), f"{where}: {file}"
    with reading("sound", file, where), soundfile.SoundFile(file) as reader:
        rate = reader.samplerate
        if rate > MAX_SAMPLE_RATE:
            raise PromptError(f"The sound's sample rate is {rate} Hz", where=here,
                              fix=f"resample it; at most {MAX_SAMPLE_RATE} Hz")
        seconds = reader.frames / rate
        # one sample more than is taken: hours of sound are refused without being read
        samples = reader.read(extractor.n_samples * rate // extractor.sampling_rate + 1, "float32", always_2d=True)
    if not torch.from_numpy(samples).isfinite().all():
        raise PromptError("The sound holds samples that are NaN or infinite", where=here,
                          fix="write it again, with samples from -1 to 1")
    sound = resample(samples.mean(axis=1), rate, extractor.sampling_rate)
    if not MIN_AUDIO_SECONDS * extractor.sampling_rate <= len(sound) <= extractor.n_samples:
        raise PromptError(
            f"The sound lasts {seconds:.2f} s", where=here,
            fix=f"give {MIN_AUDIO_SECONDS} to {extractor.n_samples / extractor.sampling_rate:g} s",
        )  # fmt: skip
    # A Qwen2.5-Omni's pads to the longest sound there can be (300 s), and frames at the edge hear the padding: one
    # window of it is enough, in whole hops so that frames begin where they would.
    longer = -(-(len(sound) + extractor.n_fft) // extractor.hop_length) * extractor.hop_length
    options = {"padding": "max_length", "max_length": min(longer, extractor.n_samples)} if padded else {
        "padding": True, "truncation": False}
    got = extractor(sound, sampling_rate=extractor.sampling_rate, return_attention_mask=True, return_tensors="pt",
                    **options)
    mel: torch.Tensor = got["input_features"][0][:, got["attention_mask"][0].bool()].clone()
    if not mel.isfinite().all():  # finite samples of 1e25, squared
        raise PromptError("The sound is too loud for its spectrum to be finite", where=here,
                          fix="write it again, with samples from -1 to 1")
    return mel


def sound_inputs(sounds: list[torch.Tensor], device: torch.device | str) -> dict[str, torch.Tensor]:
    """Sounds (mel bins, frames) under the names of a Thinker's arguments; empty without any."""
    if not sounds:
        return {}
    frames = max(mel.shape[1] for mel in sounds)
    features = torch.stack([torch.nn.functional.pad(mel, (0, frames - mel.shape[1])) for mel in sounds])
    lengths = torch.tensor([mel.shape[1] for mel in sounds])
    return {"input_features": features.to(device),
            "feature_attention_mask": (torch.arange(frames) < lengths[:, None]).long().to(device)}
