"""Sizes and ids of the small Qwen3-Omni."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from talker_rl.micro.tokenizer import text_ids, write_tokenizer
from talker_rl.speech.qwen3_omni.codec import BOS, PAD, STOP, of_size

if TYPE_CHECKING:
    from transformers import Qwen3OmniMoeConfig

BUILD_DIR = Path("build/micro-qwen3")
BOOKS, CODES = 8, 256
CODEC = of_size(BOOKS, CODES)
FRAME = 1920
"""Samples of a frame: 80 ms at 24 kHz."""
TRIMMED = 555
"""Samples that code2wav's sound is shorter by: its rates are the published ones."""
WIDTH, TEXT_WIDTH = 128, 96
SPEAKERS = {"chelsie": CODES + 253, "ethan": CODES + 254}
"""At the published distance behind the codes."""
TALKER_LAYERS = 4


def _rope(sections: list[int]) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections, "interleaved": True}


def talker_config() -> dict[str, Any]:
    """The Talker's part of ``config.json``."""
    ids = text_ids().added
    attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    plain = {"rope_type": "default", "rope_theta": 1e4}
    return {
        "text_config": {
            "vocab_size": CODES + 1024, "hidden_size": WIDTH, "intermediate_size": 256,
            "num_hidden_layers": TALKER_LAYERS, "moe_intermediate_size": 96, "shared_expert_intermediate_size": 192,
            "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True, "max_position_embeddings": 2048,
            "rope_parameters": _rope([6, 5, 5]), **attention,
        },
        "code_predictor_config": {
            "vocab_size": CODES, "hidden_size": WIDTH, "intermediate_size": 256, "num_hidden_layers": 2,
            "num_code_groups": BOOKS, "max_position_embeddings": 64, "rope_parameters": plain, **attention,
        },
        "num_code_groups": BOOKS, "thinker_hidden_size": TEXT_WIDTH, "accept_hidden_layer": 1, "spatial_merge_size": 2,
        "codec_pad_id": CODES + PAD, "codec_bos_id": CODES + BOS, "codec_eos_token_id": CODES + STOP,
        "codec_nothink_id": CODES + 107, "codec_think_bos_id": CODES + 108, "codec_think_eos_id": CODES + 109,
        "speaker_id": SPEAKERS, "audio_token_id": ids["<|AUDIO|>"], "image_token_id": ids["<|IMAGE|>"],
        "video_token_id": ids["<|VIDEO|>"], "audio_start_token_id": ids["<|audio_bos|>"],
        "vision_start_token_id": ids["<|vision_bos|>"],
    }  # fmt: skip


def thinker_config() -> dict[str, Any]:
    """The Thinker's part of ``config.json``."""
    ids = text_ids()
    return {
        "text_config": {
            "vocab_size": ids.vocab_size, "hidden_size": TEXT_WIDTH, "intermediate_size": 192,
            "moe_intermediate_size": 96, "num_hidden_layers": 3, "num_experts": 2, "num_experts_per_tok": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "max_position_embeddings": 2048,
            "rope_parameters": _rope([4, 4, 4]), "norm_topk_prob": True,
        },
        "audio_config": {"num_mel_bins": 128, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
                         "d_model": 16, "output_dim": TEXT_WIDTH, "downsample_hidden_size": 8},
        "vision_config": {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
                          "out_hidden_size": TEXT_WIDTH, "patch_size": 14, "deepstack_visual_indexes": [0]},
        "user_token_id": ids.user, "audio_token_id": ids.added["<|AUDIO|>"], "image_token_id": ids.added["<|IMAGE|>"],
        "video_token_id": ids.added["<|VIDEO|>"], "audio_start_token_id": ids.added["<|audio_bos|>"],
        "vision_start_token_id": ids.added["<|vision_bos|>"],
    }  # fmt: skip


def code2wav_config() -> dict[str, Any]:
    """code2wav's part of ``config.json``: the published rates, so 1920 samples a frame."""
    return {
        "codebook_size": CODES, "num_quantizers": BOOKS, "hidden_size": 192, "num_attention_heads": 4,
        "num_key_value_heads": 4, "intermediate_size": 384, "num_hidden_layers": 2, "decoder_dim": 192,
        "sliding_window": 72, "upsample_rates": [8, 5, 4, 3], "upsampling_ratios": [2, 2],
        "layer_scale_initial_scale": 0.1, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }  # fmt: skip


def whole_config(build: Path = BUILD_DIR) -> Qwen3OmniMoeConfig:
    """The configuration object of the whole model."""
    from transformers import Qwen3OmniMoeConfig

    from talker_rl.micro.thinker import load_tokenizer

    ids = text_ids()
    vocabulary = load_tokenizer(build).get_vocab()
    return Qwen3OmniMoeConfig(
        thinker_config=thinker_config(), talker_config=talker_config(), code2wav_config=code2wav_config(),
        im_start_token_id=ids.added["<|im_start|>"], im_end_token_id=ids.added["<|im_end|>"],
        system_token_id=vocabulary["system"], user_token_id=ids.user, assistant_token_id=vocabulary["assistant"],
        tts_pad_token_id=ids.tts_pad, tts_bos_token_id=ids.tts_start, tts_eos_token_id=ids.tts_end,
    )  # fmt: skip


__all__ = ["BOOKS", "BUILD_DIR", "CODEC", "CODES", "FRAME", "SPEAKERS", "TEXT_WIDTH", "TRIMMED", "WIDTH",
           "code2wav_config", "talker_config", "thinker_config", "whole_config", "write_tokenizer"]
