"""The three values of a new speaker: ``ref_mel`` from a recording, ``cond`` from what there is, ``bos_token`` from the
text vocabulary's free rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from talker_rl.base.errors import CheckpointError, ConfigError, DataError
from talker_rl.speech.files import open_tensors, read_tensors, shards_of
from talker_rl.speech.mel import DB_PER_NAT, FLOOR, HOP, N_MELS, SAMPLE_RATE, log_mel, speech_frames
from talker_rl.speech.speaker_mix import mix_of

Entry = dict[str, Any]
"""``bos_token`` (int), ``cond`` (1, 192), ``ref_mel`` (1, frames, 80); float32."""

LEAST_SECONDS, ENOUGH_SECONDS = 0.5, 3.0
"""A reference shorter than the first is refused, one shorter than the second is told; the published last 3 to 4."""
LARGEST_GAIN_DB = 30.0


@dataclass(frozen=True)
class Reference:
    """A recording as the DiT's speaker encoder takes it."""

    mel: torch.Tensor
    """(1, frames, 80), natural-log amplitude."""
    gain_db: float = 0.0
    """What it was amplified by, to lie at the level of the checkpoint's own references."""

    @property
    def seconds(self) -> float:
        return self.mel.shape[1] * HOP / SAMPLE_RATE


def speech_level(mel_FM: torch.Tensor) -> float:
    """Mean of the log amplitudes over speech frames and bins, nats."""
    return float(mel_FM[speech_frames(mel_FM)].mean())


def reference_from_wav(path: str | Path, like: Sequence[Entry], most_seconds: float = 10.0) -> Reference:
    """A reference from a recording of any rate and any number of channels.

    Channels are averaged, the sound resampled to 24 kHz, silent ends cut, what follows ``most_seconds`` left out, and
    the level moved to the mean of the references in ``like``: the encoder hears loudness as well as a voice.

    Raises:
        DataError: the file is no sound, or holds less than half a second of it.
    """
    import soundfile

    from talker_rl.base.sound import resample

    try:
        sound, rate = soundfile.read(str(Path(path).expanduser()), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise DataError(f"The reference cannot be read as sound: {error}", where=str(path),
                        fix="give a .wav, .flac, .ogg or .mp3 file") from None
    audio = resample(sound.mean(1), rate, SAMPLE_RATE)
    if not np.isfinite(audio).all():
        raise DataError("The reference holds samples that are no numbers", where=str(path), fix="write it again")
    if len(audio) < LEAST_SECONDS * SAMPLE_RATE or not np.abs(audio).max() > 1e-4:
        raise DataError(f"The reference holds {len(audio) / SAMPLE_RATE:.2f} s of sound at a peak of "
                        f"{np.abs(audio).max(initial=0.0):.5f}", where=str(path),
                        fix=f"give {ENOUGH_SECONDS:g} s or more of one voice")
    mel = log_mel(torch.from_numpy(audio))
    loud = speech_frames(mel).nonzero()[:, 0]
    mel = mel[int(loud[0]) : int(loud[-1]) + 1][: round(most_seconds * SAMPLE_RATE / HOP)]
    if len(mel) * HOP < LEAST_SECONDS * SAMPLE_RATE:
        raise DataError(f"Only {len(mel) * HOP / SAMPLE_RATE:.2f} s of the reference are speech", where=str(path),
                        fix=f"give {ENOUGH_SECONDS:g} s or more of one voice")
    gain = 0.0
    if like:
        wanted = sum(speech_level(entry["ref_mel"][0]) for entry in like) / len(like)
        gain = max(-LARGEST_GAIN_DB, min(LARGEST_GAIN_DB, (wanted - speech_level(mel)) * DB_PER_NAT))
        mel = (mel + gain / DB_PER_NAT).clamp(min=math.log(FLOOR))
    return Reference(mel[None].contiguous(), gain)


def reference_from_file(path: str | Path) -> Reference:
    """A ``ref_mel`` of one's own: the tensor of a safetensors file, (frames, 80) or (1, frames, 80), used as it is."""
    mel = one_tensor(path, "ref_mel")
    mel = mel[None] if mel.ndim == 2 else mel
    if mel.ndim != 3 or mel.shape[0] != 1 or mel.shape[2] != N_MELS or not torch.isfinite(mel).all():
        raise DataError(f"ref_mel has the shape {tuple(mel.shape)}, or is not finite", where=str(path),
                        fix=f"needed: (1, frames, {N_MELS}), natural-log amplitudes, 100 frames per second")
    if mel.shape[1] * HOP < LEAST_SECONDS * SAMPLE_RATE:
        raise DataError(f"ref_mel lasts {mel.shape[1] * HOP / SAMPLE_RATE:.2f} s", where=str(path),
                        fix=f"give {ENOUGH_SECONDS:g} s or more")
    return Reference(mel.contiguous())


def cond_from_file(path: str | Path, width: int) -> torch.Tensor:
    """A ``cond`` of one's own: the tensor of a safetensors file, (width,) or (1, width)."""
    cond = one_tensor(path, "cond").reshape(1, -1)
    if cond.shape[1] != width or not torch.isfinite(cond).all():
        raise DataError(f"cond has {cond.shape[1]} values, or some are not finite", where=str(path),
                        fix=f"this checkpoint's DiT takes {width}")
    return cond.contiguous()


def one_tensor(path: str | Path, name: str) -> torch.Tensor:
    """The tensor of that name in a safetensors file, or its only one, in float32."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError("There is no such file", where=str(path), fix=f"give a safetensors file that holds {name}")
    tensors = read_tensors([file])
    if name not in tensors and len(tensors) != 1:
        raise DataError(f"The file holds {sorted(tensors)}, and no {name}", where=str(path),
                        fix=f"name the tensor {name}, or store it alone")
    return tensors.get(name, next(iter(tensors.values()))).float()


def mixed_cond(speakers: dict[str, Entry], parts: Sequence[str]) -> torch.Tensor:
    """The weighted mean of speakers' ``cond``, (1, width).

    Args:
        parts: ``NAME`` or ``NAME:WEIGHT``; weights are divided by their sum.
    """
    shares = [weight * speakers[name]["cond"] for name, weight in mix_of(speakers, parts).items()]
    return torch.stack(shares).sum(0)


@dataclass(frozen=True)
class BosChoice:
    """A text id for a new speaker, and what its row of the Thinker's embedding looks like."""

    token: int
    norm: float
    """Of its row, over the median norm of the present speakers' rows."""
    nearest: float
    """Largest cosine to the row of a present speaker."""

    @property
    def faint(self) -> bool:
        """Whether the Talker can hardly see it: an untrained row of next to no length, or one like another's."""
        return self.norm < LEAST_NORM or self.nearest > LARGEST_COSINE


LEAST_NORM, LARGEST_COSINE = 0.5, 0.9


def choose_bos(folder: Path, config: Any, known_tokens: int, taken: Sequence[int], wanted: int | None) -> BosChoice:
    """The text id that announces the new speaker.

    Without ``wanted``: the first row of the Thinker's embedding behind all others in use (the tokenizer's tokens, the
    ids that the configs name, the present speakers') that is long enough and unlike a present speaker's for the Talker
    to tell it; where none is, the best of them. Text can never hold such an id.

    Args:
        folder, config: the checkpoint and its Qwen2_5OmniConfig.
        known_tokens: ids below it are the tokenizer's.
        taken: the present speakers' ids.
        wanted: an id of the user's choice, in place of a free one.

    Raises:
        ConfigError: ``wanted`` is another speaker's, names something in the configs, or has no row; or no row is free.
    """
    rows = embedding_rows(folder)
    special = named_ids(config)
    if wanted is not None:
        reason = ("is another speaker's" if wanted in taken else "has another use in config.json" if wanted in special
                  else f"has no row: there are {len(rows)}" if not 0 <= wanted < len(rows) else None)
        if reason:
            raise ConfigError(f"The text id {wanted} {reason}", where="--bos-token", fix="leave it out: one is chosen")
        return _look(rows, wanted, taken)
    used = {*taken, *special}
    last = max(i for i in used if i < len(rows))
    free = [i for i in (*range(last + 1, len(rows)), *range(known_tokens, last)) if i not in used]
    if not free:
        raise ConfigError("No row of the Thinker's embedding is free", where=str(folder),
                          fix="give one with --bos-token, e.g. an added token that your texts never hold")
    looks = [_look(rows, i, taken) for i in free]
    return next((look for look in looks if not look.faint), max(looks, key=lambda look: look.norm - look.nearest))


def _look(rows: torch.Tensor, token: int, taken: Sequence[int]) -> BosChoice:
    row, others = rows[token], rows[list(taken)]
    norm = float(row.norm() / others.norm(dim=1).median().clamp(min=1e-12))
    return BosChoice(token, norm, float(torch.nn.functional.cosine_similarity(row[None], others).max()))


def named_ids(config: Any) -> set[int]:
    """Text ids that the Thinker's and Talker's configs name (ends, pads, media placeholders)."""
    found: set[int] = set()
    for part in (config.thinker_config, config.thinker_config.text_config, config.talker_config):
        for key, value in part.to_dict().items():
            if key.endswith(("_token_id", "_token_index")) and "codec" not in key:
                found |= {v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)}
    return found


def embedding_rows(folder: Path) -> torch.Tensor:
    """The Thinker's token embedding (rows, width) in float32; nothing else is read."""
    for shard, names in shards_of(folder, "thinker.").items():
        with open_tensors({shard: names}, "thinker.") as found:
            for name, stored in found.items():
                if name.endswith("embed_tokens.weight"):
                    return stored[:].float()
    raise CheckpointError("no Thinker's embedding (thinker.*.embed_tokens.weight) is stored", where=str(folder),
                          fix="complete the folder")
