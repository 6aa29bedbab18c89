"""Contexts of a Qwen2.5-Omni: what its Thinker reads of messages, and what of that its Talker gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from talker_rl.records.messages import Message
from talker_rl.speech.media import Dialogue, Media, positions, thinker_inputs
from talker_rl.speech.media import encode as media_encode

if TYPE_CHECKING:
    from talker_rl.speech.qwen2_5_omni.checkpoint import Omni

_SHARED = (
    "audio_token_index", "image_token_index", "video_token_index", "audio_start_token_id", "vision_start_token_id",
    "position_id_per_seconds", "seconds_per_chunk",
)  # fmt: skip
"""What positions depend on and both Thinker and Talker configure."""


def encode(omni: Omni, messages: list[Message], where: str) -> Dialogue:
    """Tokens and tensors of the messages (:func:`talker_rl.speech.media.encode`)."""
    config = omni.config.thinker_config
    tokens = {kind: getattr(config, f"{kind}_token_index") for kind in ("audio", "image", "video")}
    media = Media(omni.path, config, tokens, _steps, padded=True, whole="Qwen2_5OmniProcessor", fps=2.0)
    return media_encode(media, omni.need("tokenizer"), messages, where)


def _steps(frames: int) -> int:
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def position_ids(omni: Omni, context: Dialogue) -> torch.Tensor:
    """Positions (3, L) of the context's tokens: time, height, width.

    Raises:
        CheckpointError: Thinker and Talker are configured differently, so theirs would differ.
    """
    if not context.media:
        return torch.arange(len(context.ids)).expand(3, -1)
    return positions(omni.need("thinker"), context.ids, context, omni.config.talker_config, _SHARED,
                     str(omni.path / "config.json"))


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
        read = read.masked_scatter(places, vectors.to(read.device, read.dtype))
        kept = kept.masked_fill(places, 0.0)
    return read, kept


def _flat(vectors: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    return vectors if torch.is_tensor(vectors) else torch.cat(list(vectors))
