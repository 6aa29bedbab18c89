"""Contexts: chat messages as the Thinker's tokens, with the sound, images and videos that stand in them.

Tokens and tensors are those of transformers' ``Qwen2_5OmniProcessor``, made from its parts (chat template, tokenizer,
``WhisperFeatureExtractor``, ``Qwen2VLImageProcessorPil``): the whole processor needs torchvision. Each part of a
message is one placeholder token in the rendered template, and becomes as many as its tower gives vectors:

    sound    n mel frames of 10 ms          ((n - 1) // 2 + 1 - 2) // 2 + 1
    image    t x h x w patches              t h w / merge_size^2
    video    likewise

Positions are the Thinker's own (``get_rope_index``): 0, 1, 2, ... for text and sound; the tokens of an image or a
frame share a time and differ in height and width, and what follows goes on from the largest position so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from talker_rl.base.errors import CheckpointError, ConfigError, PromptError, told
from talker_rl.records.messages import Message, check_messages, resolve_media
from talker_rl.speech.media import processor, read_sound, reading, sound_inputs

if TYPE_CHECKING:
    from talker_rl.speech.qwen2_5_omni.checkpoint import Omni

SECONDS_PER_GRID = 1.0
"""Of a hand-made video that does not say: two frames a patch at the processor's 2 frames per second."""
MAX_SECONDS_PER_GRID = 3600.0
"""Positions count 1/25 s as integers: what a file says by mistake (1e30) would overflow them."""

_SHARED = (
    "audio_token_index", "image_token_index", "video_token_index", "audio_start_token_id", "vision_start_token_id",
    "position_id_per_seconds", "seconds_per_chunk",
)  # fmt: skip
"""What positions depend on and both Thinker and Talker configure."""


@dataclass
class Dialogue:
    """Tokens of a context, and later of its reply; and what its placeholders stand for."""

    ids: list[int]
    audio: list[torch.Tensor] = field(default_factory=list)
    """(mel bins, frames) of each sound."""
    media: dict[str, torch.Tensor] = field(default_factory=dict)
    """pixel_values (patches, values) and image_grid_thw (images, 3), patches; pixel_values_videos, video_grid_thw and
    video_second_per_grid (videos,) likewise."""

    def extended(self, reply: list[int]) -> Dialogue:
        """The context with its reply."""
        return Dialogue(self.ids + reply, self.audio, self.media)


def encode(omni: Omni, messages: list[Message], where: str) -> Dialogue:
    """Tokens and tensors of the messages, up to where the reply begins.

    Raises:
        PromptError: messages that are none, a file that cannot be read or is not finite, a placeholder token written
            as text.
    """
    messages = resolve_media(check_messages(messages, where), Path.cwd(), where)
    if not messages:
        raise PromptError("There is no message before the reply", where=where,
                          fix="give messages, or set model.system_prompt")
    tokenizer, config = omni.need("tokenizer"), omni.config.thinker_config
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # jinja's, and what a template raises on purpose
        raise PromptError(f"the checkpoint's chat template refuses the messages: {told(error)}", where=where,
                          fix="change the messages or model.system_prompt, or restore the template") from error
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    parts = [p for m in messages if not isinstance(m["content"], str) for p in m["content"] if p["type"] != "text"]
    out = Dialogue(ids=[])
    counts: dict[int, list[int]] = {}
    for kind in ("audio", "image", "video"):
        files = [Path(part[kind]) for part in parts if part["type"] == kind]
        token = getattr(config, f"{kind}_token_index")
        if ids.count(token) != len(files):
            raise PromptError(f"{ids.count(token)} {kind} placeholders for {len(files)} {kind} parts", where=where,
                              fix="remove the placeholder's token from the text")
        counts[token] = _READERS[kind](omni, files, out, where) if files else []
    if out.media and ids.count(config.audio_start_token_id) != len(out.audio):  # get_rope_index takes each for a sound
        raise PromptError("The token that begins a sound stands in a text", where=where, fix="remove it from the text")
    for token in ids:
        out.ids += [token] * counts[token].pop(0) if token in counts else [token]
    return out


# -- what the parts hold -----------------------------------------------------------------------------------------


def _read_audio(omni: Omni, files: list[Path], out: Dialogue, where: str) -> list[int]:
    found = [read_sound(omni.path, file, where, padded=True) for file in files]
    out.audio += found
    return [((mel.shape[1] - 1) // 2 + 1 - 2) // 2 + 1 for mel in found]


def _read_images(omni: Omni, files: list[Path], out: Dialogue, where: str) -> list[int]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ConfigError("Images need Pillow, which is not installed here", where=where,
                          fix="pip install 'talker-rl[images]'") from error
    images = processor("image", omni.path)
    found = []
    for file in files:
        with reading("image", file, where), Image.open(file) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")  # as transformers' load_image
        try:
            found.append(images(images=[upright], return_tensors="pt"))
        except ValueError as error:  # a side 200 times the other
            raise PromptError(f"The image cannot be used: {error}", where=f"{where}: {file}",
                              fix="give another image") from error
    out.media |= {name: torch.cat([got[name] for got in found]) for name in ("pixel_values", "image_grid_thw")}
    return _tokens(omni, out.media["image_grid_thw"])


def _read_videos(omni: Omni, files: list[Path], out: Dialogue, where: str) -> list[int]:
    videos = []
    for file in files:
        read = _read_tensors if file.suffix.lower() == ".safetensors" else _read_film
        videos.append(_checked_video(omni, read(omni, file, where), f"{where}: {file}"))
    for name in ("pixel_values_videos", "video_grid_thw", "video_second_per_grid"):
        out.media[name] = torch.cat([video[name] for video in videos])
    return _tokens(omni, out.media["video_grid_thw"])


def _read_tensors(omni: Omni, file: Path, where: str) -> dict[str, torch.Tensor]:
    """A video that a processor made before, perhaps elsewhere."""
    from safetensors.torch import load_file

    with reading("video", file, where):
        return load_file(str(file))


def _read_film(omni: Omni, file: Path, where: str) -> dict[str, torch.Tensor]:
    """A video file through the whole processor, without its sound."""
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        raise PromptError("Video files need torchvision, which is not installed here", where=f"{where}: {file}",
                          fix="install the torchvision that fits your torch; or give the processor's tensors "
                          "(pixel_values_videos, video_grid_thw) as a .safetensors file")
    from transformers import Qwen2_5OmniProcessor

    whole = Qwen2_5OmniProcessor.from_pretrained(str(omni.path), local_files_only=True)
    with reading("video", file, where):
        got = whole(text=whole.video_token, videos=[str(file)], return_tensors="pt")
        return {n: torch.as_tensor(got[n]) for n in ("pixel_values_videos", "video_grid_thw", "video_second_per_grid")}


def _checked_video(omni: Omni, found: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """One video as the vision tower takes it: pixel_values_videos (t*h*w, values), video_grid_thw (1, 3) and
    video_second_per_grid (1,), which may be missing.

    Raises:
        PromptError: tensors of another shape or kind, or numbers that cannot be those of a video.
    """
    vision = omni.config.thinker_config.vision_config
    merge = vision.spatial_merge_size
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    fault = _video_fault(found, values, merge)
    if fault:
        raise PromptError(f"The tensors are not those of one video: {fault}", where=where,
                          fix=f"needed: pixel_values_videos (t*h*w, {values}), floats; video_grid_thw (1, 3) of t, h, "
                          f"w, integers, h and w multiples of {merge}; if any, video_second_per_grid (1,), > 0")
    seconds = found.get("video_second_per_grid", torch.tensor([SECONDS_PER_GRID]))
    return {"pixel_values_videos": found["pixel_values_videos"].float(),
            "video_grid_thw": found["video_grid_thw"].long(), "video_second_per_grid": seconds.float()}


def _video_fault(found: Mapping[str, torch.Tensor], values: int, merge: int) -> str | None:
    """What is wrong with a video's tensors; None: nothing."""
    missing = [name for name in ("pixel_values_videos", "video_grid_thw") if name not in found]
    if missing:
        return f"no {' and no '.join(missing)}"
    pixels, grid = found["pixel_values_videos"], found["video_grid_thw"]
    if grid.shape != (1, 3) or grid.is_floating_point() or grid.is_complex() or grid.dtype == torch.bool:
        return f"video_grid_thw is {_shape(grid)}"
    t, h, w = (int(n) for n in grid[0])  # Python's: a product of tensors may overflow to the right one
    if min(t, h, w) < 1 or h % merge or w % merge:
        return f"video_grid_thw is {[t, h, w]}"
    if pixels.shape != (t * h * w, values) or not pixels.is_floating_point():
        return f"pixel_values_videos is {_shape(pixels)} for a grid of {[t, h, w]}"
    if not pixels.float().isfinite().all():
        return "pixel_values_videos holds NaN or infinity"
    seconds = found.get("video_second_per_grid")
    if seconds is None:
        return None
    if seconds.shape != (1,) or seconds.is_complex():
        return f"video_second_per_grid is {_shape(seconds)}"
    if not 0 < float(seconds) <= MAX_SECONDS_PER_GRID:
        return f"video_second_per_grid is {float(seconds):g}"
    return None


def _shape(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


_READERS = {"audio": _read_audio, "image": _read_images, "video": _read_videos}


def _tokens(omni: Omni, grid_thw: torch.Tensor) -> list[int]:
    merge = omni.config.thinker_config.vision_config.spatial_merge_size
    return (grid_thw.prod(-1) // merge**2).tolist()


# -- what the Thinker gets ---------------------------------------------------------------------------------------


def thinker_inputs(contexts: Sequence[Dialogue], device: torch.device | str) -> dict[str, torch.Tensor]:
    """All sound, images and videos of a batch under the names of the Thinker's arguments; empty for text."""
    out = {
        name: torch.cat([c.media[name] for c in contexts if name in c.media]).to(device)
        for name in dict.fromkeys(name for c in contexts for name in c.media)
    }
    return out | sound_inputs([mel for c in contexts for mel in c.audio], device)


def position_ids(omni: Omni, context: Dialogue) -> torch.Tensor:
    """Positions (3, L) of the context's tokens: time, height, width.

    Raises:
        CheckpointError: Thinker and Talker are configured differently, so theirs would differ.
    """
    if not context.media:
        return torch.arange(len(context.ids)).expand(3, -1)
    thinker, talker = omni.config.thinker_config, omni.config.talker_config
    pairs = [(name, getattr(thinker, name), getattr(talker, name)) for name in _SHARED]
    pairs.append(("spatial_merge_size", thinker.vision_config.spatial_merge_size, talker.spatial_merge_size))
    for name, first, second in pairs:
        if first != second:
            raise CheckpointError(f"{name} is {first} in thinker_config and {second} in talker_config",
                                  where=str(omni.path / "config.json"), fix="restore the original file")
    ids = torch.tensor([context.ids])
    positions, _ = omni.need("thinker").get_rope_index(
        ids,
        context.media.get("image_grid_thw"),
        context.media.get("video_grid_thw"),
        torch.ones_like(ids),
        False,
        torch.tensor([mel.shape[1] for mel in context.audio]),
        context.media.get("video_second_per_grid"),
    )
    return positions[:, 0]


def merge_media(
    thinker: Any, ids_BL: torch.Tensor, embeds_BLE: torch.Tensor, contexts: Sequence[Dialogue]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the Thinker reads, and which embeddings the Talker gets: placeholders are their tower's vectors for the
    one and zero for the other. Both (B, L, E); without sound and images both are the embeddings themselves.
    """
    given = thinker_inputs(contexts, embeds_BLE.device)
    read, kept = embeds_BLE, embeds_BLE
    features: dict[str, torch.Tensor] = {}
    if "input_features" in given:
        sound = thinker.get_audio_features(given["input_features"], given["feature_attention_mask"], return_dict=True)
        features["audio"] = sound.last_hidden_state
    if "pixel_values" in given:
        seen = thinker.get_image_features(given["pixel_values"], given["image_grid_thw"], return_dict=True)
        features["image"] = _flat(seen.pooler_output)
    if "pixel_values_videos" in given:
        seen = thinker.get_video_features(given["pixel_values_videos"], given["video_grid_thw"], return_dict=True)
        features["video"] = _flat(seen.pooler_output)
    for kind, vectors in features.items():
        places = (ids_BL == getattr(thinker.config, f"{kind}_token_index"))[..., None]
        read = read.masked_scatter(places, vectors.to(read.dtype))
        kept = kept.masked_fill(places, 0.0)
    return read, kept


def _flat(vectors: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    return vectors if torch.is_tensor(vectors) else torch.cat(list(vectors))
