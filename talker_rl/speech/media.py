"""Chat messages as a Thinker's tokens, with the sound, images and videos that stand in them: families share it.

Tokens and tensors are those of transformers' processors, made from their parts (chat template, tokenizer,
``WhisperFeatureExtractor``, ``Qwen2VLImageProcessorPil``): a whole processor needs torchvision. Each part of a message
is one placeholder token in the rendered template, and becomes as many as its tower gives vectors: as the family says of
sound, and of t x h x w patches of an image or a video t h w / merge_size^2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from talker_rl.base.errors import CheckpointError, ConfigError, PromptError, told
from talker_rl.records.messages import Message, check_messages, resolve_media
from talker_rl.speech.sound_files import processor, read_sound, reading, sound_inputs

MAX_SECONDS_PER_GRID = 3600.0
"""Positions count 1/25 s as integers: what a file says by mistake (1e30) would overflow them."""


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


@dataclass(frozen=True)
class Media:
    """How a family takes what stands in messages."""

    folder: Path
    """The checkpoint, with its preprocessor_config.json."""
    config: Any
    """Of the Thinker."""
    tokens: Mapping[str, int]
    """Kind -> placeholder."""
    steps: Callable[[int], int]
    """Mel frames of a sound -> vectors that its tower gives."""
    padded: bool
    """Whether silence follows a sound (:func:`talker_rl.speech.sound_files.read_sound`)."""
    whole: str
    """transformers' class of the whole processor, for video files."""
    fps: float
    """Frames per second that this processor takes of a video: of a hand-made one that does not say."""


def encode(media: Media, tokenizer: Any, messages: list[Message], where: str) -> Dialogue:
    """Tokens and tensors of the messages, up to where the reply begins.

    Raises:
        PromptError: messages that are none, a file that cannot be read or is not finite, a placeholder token written
            as text.
    """
    messages = resolve_media(check_messages(messages, where), Path.cwd(), where)
    if not messages:
        raise PromptError("There is no message before the reply", where=where,
                          fix="give messages, or set model.system_prompt")
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # jinja's, and what a template raises on purpose
        raise PromptError(f"the checkpoint's chat template refuses the messages: {told(error)}", where=where,
                          fix="change the messages or model.system_prompt, or restore the template") from error
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    parts = [p for m in messages if not isinstance(m["content"], str) for p in m["content"] if p["type"] != "text"]
    out = Dialogue(ids=[])
    counts: dict[int, list[int]] = {}
    for kind, token in media.tokens.items():
        files = [Path(part[kind]) for part in parts if part["type"] == kind]
        if ids.count(token) != len(files):
            raise PromptError(f"{ids.count(token)} {kind} placeholders for {len(files)} {kind} parts", where=where,
                              fix="remove the placeholder's token from the text")
        counts[token] = _READERS[kind](media, files, out, where) if files else []
    begins = media.config.audio_start_token_id
    if out.media and ids.count(begins) != len(out.audio):  # get_rope_index takes each for a sound
        raise PromptError("The token that begins a sound stands in a text", where=where, fix="remove it from the text")
    for token in ids:
        out.ids += [token] * counts[token].pop(0) if token in counts else [token]
    return out


def _read_audio(media: Media, files: list[Path], out: Dialogue, where: str) -> list[int]:
    found = [read_sound(media.folder, file, where, padded=media.padded) for file in files]
    out.audio += found
    return [media.steps(mel.shape[1]) for mel in found]


def _read_images(media: Media, files: list[Path], out: Dialogue, where: str) -> list[int]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ConfigError("Images need Pillow, which is not installed here", where=where,
                          fix="pip install 'talker-rl[images]'") from error
    images = processor("image", media.folder)
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
    return _tokens(media, out.media["image_grid_thw"])


def _read_videos(media: Media, files: list[Path], out: Dialogue, where: str) -> list[int]:
    videos = []
    for file in files:
        read = _read_tensors if file.suffix.lower() == ".safetensors" else _read_film
        videos.append(_checked_video(media, read(media, file, where), f"{where}: {file}"))
    for name in ("pixel_values_videos", "video_grid_thw", "video_second_per_grid"):
        out.media[name] = torch.cat([video[name] for video in videos])
    return _tokens(media, out.media["video_grid_thw"])


def _read_tensors(media: Media, file: Path, where: str) -> dict[str, torch.Tensor]:
    """A video that a processor made before, perhaps elsewhere."""
    from safetensors.torch import load_file

    with reading("video", file, where):
        return load_file(str(file))


def _read_film(media: Media, file: Path, where: str) -> dict[str, torch.Tensor]:
    """A video file through the whole processor, without its sound."""
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        raise PromptError("Video files need torchvision, which is not installed here", where=f"{where}: {file}",
                          fix="install the torchvision that fits your torch; or give the processor's tensors "
                          "(pixel_values_videos, video_grid_thw) as a .safetensors file")
    import transformers

    whole = getattr(transformers, media.whole).from_pretrained(str(media.folder), local_files_only=True)
    with reading("video", file, where):
        got = whole(text=whole.video_token, videos=[str(file)], return_tensors="pt")
        return {n: torch.as_tensor(got[n]) for n in ("pixel_values_videos", "video_grid_thw", "video_second_per_grid")}


def _checked_video(media: Media, found: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """One video as the vision tower takes it: pixel_values_videos (t*h*w, values), video_grid_thw (1, 3) and
    video_second_per_grid (1,), which may be missing.

    Raises:
        PromptError: tensors of another shape or kind, or numbers that cannot be those of a video.
    """
    vision = media.config.vision_config
    merge = vision.spatial_merge_size
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    fault = _video_fault(found, values, merge)
    if fault:
        raise PromptError(f"The tensors are not those of one video: {fault}", where=where,
                          fix=f"needed: pixel_values_videos (t*h*w, {values}), floats; video_grid_thw (1, 3) of t, h, "
                          f"w, integers, h and w multiples of {merge}; if any, video_second_per_grid (1,), > 0")
    seconds = found.get("video_second_per_grid", torch.tensor([vision.temporal_patch_size / media.fps]))
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


def _tokens(media: Media, grid_thw: torch.Tensor) -> list[int]:
    merge = media.config.vision_config.spatial_merge_size
    return (grid_thw.prod(-1) // merge**2).tolist()


def thinker_inputs(contexts: Sequence[Dialogue], device: torch.device | str) -> dict[str, torch.Tensor]:
    """All sound, images and videos of a batch under the names of the Thinker's arguments; empty for text."""
    out = {
        name: torch.cat([c.media[name] for c in contexts if name in c.media]).to(device)
        for name in dict.fromkeys(name for c in contexts for name in c.media)
    }
    return out | sound_inputs([mel for c in contexts for mel in c.audio], device)


def positions(
    thinker: Any, ids: Sequence[int], context: Dialogue, talker_config: Any, shared: Sequence[str], where: str
) -> torch.Tensor:
    """The Thinker's own positions (3, L) of tokens: time, height, width. 0, 1, 2, ... for text and sound; the tokens of
    an image or a frame share a time and differ in height and width, and what follows goes on from the largest so far.

    Args:
        ids: all of the context's, or those of its parts that hold its media.
        talker_config: the Talker's, whose own would be the same.
        shared: what positions depend on and both configure.

    Raises:
        CheckpointError: Thinker and Talker are configured differently.
    """
    if not context.media:
        return torch.arange(len(ids)).expand(3, -1)
    config = thinker.config
    pairs = [(name, getattr(config, name), getattr(talker_config, name)) for name in shared]
    pairs.append(("spatial_merge_size", config.vision_config.spatial_merge_size, talker_config.spatial_merge_size))
    for name, first, second in pairs:
        if first != second:
            raise CheckpointError(f"{name} is {first} in thinker_config and {second} in talker_config", where=where,
                                  fix="restore the original file")
    row = torch.tensor([list(ids)])
    found, _ = thinker.get_rope_index(
        row, context.media.get("image_grid_thw"), context.media.get("video_grid_thw"), torch.ones_like(row), False,
        torch.tensor([mel.shape[1] for mel in context.audio]), context.media.get("video_second_per_grid"),
    )
    placed: torch.Tensor = found[:, 0]
    return placed
