"""Configuration and files of the micro checkpoint, in the layout of Qwen/Qwen2.5-Omni-7B.

Trained parts are read from the build folder (``thinker.safetensors``, ``talker_base.safetensors``, ...); a part that
is not there yet keeps its seeded initial weights, so that a loadable folder exists from the first minute.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talker_rl.micro.files import save_tensors
from talker_rl.micro.lexicon import WORDS
from talker_rl.micro.tokenizer import text_ids, write_tokenizer
from talker_rl.speech.qwen2_5_omni.published import stored_name

if TYPE_CHECKING:
    import torch
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

BUILD_DIR = Path("build/micro")
WIDTH = 128
"""Thinker width, which is the Talker's ``embedding_size``."""
TALKER_HEAD_DIM = 48
"""4 heads of 48: as in the published Talker, the query width (192) is not the hidden size."""


def _rope(section: list[int]) -> dict[str, Any]:
    """The published section [16, 24, 24] scaled to a smaller head; sums to half of it."""
    return {"mrope_section": section, "rope_type": "default", "type": "default"}


FALLBACK_TOKEN2WAV: dict[str, Any] = {
    "dit_config": {
        "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 32, "ff_mult": 2,
        "emb_dim": 64, "enc_dim": 32, "enc_emb_dim": 192, "enc_channels": [32, 32, 32, 32, 96],
        "enc_attention_channels": 16, "enc_se_channels": 16, "look_ahead_layers": [1], "look_backward_layers": [0, 2],
        "block_size": 24, "num_embeds": 8193, "repeats": 2, "mel_dim": 80, "dropout": 0.0,
    },
    "bigvgan_config": {
        "mel_dim": 80, "upsample_initial_channel": 128, "upsample_rates": [5, 4, 4, 3],
        "upsample_kernel_sizes": [11, 8, 8, 7], "resblock_kernel_sizes": [3, 7, 11],
        "resblock_dilation_sizes": [[1, 3, 5]] * 3,
    },
}  # fmt: skip
"""Sizes until the vocoder's and DiT's own ``token2wav_config.json`` is there."""


def thinker_config() -> dict[str, Any]:
    """The Thinker's part of ``config.json``: published keys, small sizes, ids of :func:`text_ids`."""
    ids = text_ids()
    added = ids.added
    return {
        "architectures": ["Qwen2OmniNaViTThinkerForConditionalGeneration"],
        "model_type": "qwen2_5_omni_thinker",
        "audio_config": {
            "model_type": "qwen2_5_omni_audio_encoder", "d_model": 32, "encoder_layers": 1, "num_hidden_layers": 1,
            "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "num_mel_bins": 128, "n_window": 100,
            "max_source_positions": 1500, "output_dim": WIDTH, "activation_function": "gelu", "dropout": 0.0,
        },
        "vision_config": {
            "model_type": "qwen2_5_omni_vision_encoder", "depth": 1, "hidden_size": 32, "embed_dim": 32,
            "intermediate_size": 64, "num_heads": 2, "in_channels": 3, "in_chans": 3, "patch_size": 14,
            "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2, "window_size": 112,
            "tokens_per_second": 25, "fullatt_block_indexes": [0], "out_hidden_size": WIDTH, "hidden_act": "silu",
        },
        "text_config": {
            "model_type": "qwen2_5_omni_text", "hidden_act": "silu", "hidden_size": WIDTH, "intermediate_size": 384,
            "vocab_size": ids.vocab_size, "num_attention_heads": 4, "num_hidden_layers": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 2048, "max_window_layers": 4, "rms_norm_eps": 1e-6,
            "rope_scaling": _rope([4, 6, 6]), "rope_theta": 10000.0, "use_cache": True,
            "use_sliding_window": False, "sliding_window": 2048,
            "attention_dropout": 0.0, "tie_word_embeddings": False, "init_std": 0.02,
            "bos_token_id": added["<|im_start|>"], "eos_token_id": added["<|im_end|>"],
            "pad_token_id": added["<|endoftext|>"],
        },
        "audio_token_index": added["<|AUDIO|>"], "audio_start_token_id": added["<|audio_bos|>"],
        "audio_end_token_id": added["<|audio_eos|>"], "image_token_index": added["<|IMAGE|>"],
        "video_token_index": added["<|VIDEO|>"], "vision_start_token_id": added["<|vision_bos|>"],
        "vision_end_token_id": added["<|vision_eos|>"], "vision_token_id": added["<|vision_pad|>"],
        "user_token_id": ids.user, "bos_token_id": added["<|im_start|>"], "eos_token_id": added["<|im_end|>"],
        "pad_token_id": added["<|endoftext|>"], "ignore_index": -100, "init_std": 0.02,
        "position_id_per_seconds": 25, "seconds_per_chunk": 2, "torch_dtype": "bfloat16",
    }  # fmt: skip


def talker_config() -> dict[str, Any]:
    """The Talker's part of ``config.json``: the published codec ids, the query width wider than the hidden size."""
    ids = text_ids()
    added = ids.added
    return {
        "architectures": ["Qwen2OmniTalkerForConditionalGeneration"],
        "model_type": "qwen2_5_omni_talker", "attention_dropout": 0.0, "embedding_size": WIDTH, "hidden_size": WIDTH,
        "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": TALKER_HEAD_DIM, "hidden_act": "silu", "init_std": 0.02, "initializer_range": 0.02,
        "max_position_embeddings": 2048, "max_window_layers": 4, "rms_norm_eps": 1e-6, "rope_scaling": _rope([6, 9, 9]),
        "rope_theta": 10000.0, "sliding_window": 2048, "use_sliding_window": False, "use_cache": True,
        "vocab_size": 8448, "tts_codec_start_token_id": 8293, "tts_codec_end_token_id": 8294,
        "tts_codec_pad_token_id": 8292, "tts_codec_mask_token_id": 8296, "tts_text_start_token_id": ids.tts_start,
        "tts_text_end_token_id": ids.tts_end, "tts_text_pad_token_id": ids.tts_pad,
        "audio_token_index": added["<|AUDIO|>"], "audio_start_token_id": added["<|audio_bos|>"],
        "audio_end_token_id": added["<|audio_eos|>"], "image_token_index": added["<|IMAGE|>"],
        "video_token_index": added["<|VIDEO|>"], "vision_start_token_id": added["<|vision_bos|>"],
        "vision_end_token_id": added["<|vision_eos|>"], "position_id_per_seconds": 25, "seconds_per_chunk": 2,
        "spatial_merge_size": 2, "torch_dtype": "bfloat16",
    }  # fmt: skip


def omni_config(build: Path = BUILD_DIR) -> dict[str, Any]:
    """``config.json`` as a dictionary, with the token2wav sizes of the build folder when they are known."""
    path = build / "token2wav_config.json"
    token2wav = json.loads(path.read_text()) if path.exists() else FALLBACK_TOKEN2WAV
    dit = {"model_type": "qwen2_5_omni_dit", "torch_dtype": "float32", **token2wav["dit_config"]}
    bigvgan = {"model_type": "qwen2_5_omni_bigvgan", "torch_dtype": "float32", **token2wav["bigvgan_config"]}
    return {
        "architectures": ["Qwen2_5OmniModel"],
        "model_type": "qwen2_5_omni",
        "enable_audio_output": True,
        "enable_talker": True,
        "thinker_config": thinker_config(),
        "talker_config": talker_config(),
        "token2wav_config": {"model_type": "qwen2_5_omni_token2wav", "dit_config": dit, "bigvgan_config": bigvgan},
        "torch_dtype": "bfloat16",
    }


def build_config(build: Path = BUILD_DIR) -> Qwen2_5OmniConfig:
    """The configuration object of the whole model."""
    from transformers import Qwen2_5OmniConfig

    return Qwen2_5OmniConfig.from_dict(omni_config(build))


def _load_part(module: torch.nn.Module, path: Path, prefix: str = "") -> bool:
    """Load ``path`` into ``module`` if it exists; every key must fit."""
    from safetensors.torch import load_file

    if not path.exists():
        return False
    tensors = load_file(path)
    if prefix and all(k.startswith(prefix) for k in tensors):
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    module.load_state_dict(tensors, strict=True)
    return True


def build_model(
    build: Path = BUILD_DIR, seed: int = 0, talker: str = "talker_base"
) -> Qwen2_5OmniForConditionalGeneration:
    """The model with every trained part of the build folder, the rest at its seeded initial weights (float32)."""
    import torch
    from transformers import Qwen2_5OmniForConditionalGeneration

    torch.manual_seed(seed)
    model = Qwen2_5OmniForConditionalGeneration(build_config(build)).float().eval()
    _load_part(model.thinker, build / "thinker.safetensors")
    _load_part(model.talker, build / f"{talker}.safetensors")
    _load_part(model.token2wav.code2wav_dit_model, build / "dit.safetensors")
    _load_part(model.token2wav.code2wav_bigvgan_model, build / "vocoder.safetensors")
    return model


def speaker_table(build: Path = BUILD_DIR) -> dict[str, dict[str, Any]]:
    """``spk_dict.pt``: speaker -> bos_token, cond (1, 192), ref_mel (1, frames, 80)."""
    import torch

    path = build / "spk_dict.pt"
    known = torch.load(path, weights_only=True) if path.exists() else {}
    generator = torch.Generator().manual_seed(0)
    table = {}
    for name, bos in text_ids().speakers.items():
        entry = known.get(name) or {
            "cond": torch.randn(1, 192, generator=generator),
            "ref_mel": torch.randn(1, 96, 80, generator=generator) - 5.0,
        }
        table[name] = {
            "bos_token": bos,
            "cond": entry["cond"].float().reshape(1, -1).contiguous(),
            "ref_mel": entry["ref_mel"].float().reshape(1, -1, 80).contiguous(),
        }
    return table


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def assemble(out: Path, build: Path = BUILD_DIR, seed: int = 0) -> Path:
    """Write the checkpoint folder ``out`` (``omni/``) from the parts in ``build``; Thinker and Talker in bf16.

    The base Talker is the checkpoint's; the clean one goes to ``talker_clean/model.safetensors`` with the names of
    the Talker module. Returns ``out``.
    """
    import torch

    out.mkdir(parents=True, exist_ok=True)
    talker = "talker_base" if (build / "talker_base.safetensors").exists() else "talker_clean"
    model = build_model(build, seed, talker)
    tensors = {}
    for name, value in model.state_dict().items():
        keep_float = name.startswith("token2wav.")
        tensors[stored_name(name)] = value.float() if keep_float else value.to(torch.bfloat16)
    save_tensors(tensors, out / "model.safetensors")
    clean = build / "talker_clean.safetensors"
    if clean.exists():
        from safetensors.torch import load_file

        weights = {k: v.to(torch.bfloat16) for k, v in load_file(clean).items()}
        save_tensors(weights, out / "talker_clean" / "model.safetensors")
    write_tokenizer(out)
    added = text_ids().added
    _dump(out / "config.json", omni_config(build))
    _dump(
        out / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": added["<|im_start|>"],
            "eos_token_id": added["<|im_end|>"],
            "pad_token_id": added["<|endoftext|>"],
        },
    )
    _dump(out / "preprocessor_config.json", PREPROCESSOR)
    torch.save(speaker_table(build), out / "spk_dict.pt")
    (out / "words.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    return out


PREPROCESSOR: dict[str, Any] = {
    "chunk_length": 300, "dither": 0.0, "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 128,
    "hop_length": 160, "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 12845056, "merge_size": 2, "min_pixels": 3136, "n_fft": 400, "n_samples": 4800000,
    "nb_max_frames": 30000, "padding_side": "left", "padding_value": 0.0, "patch_size": 14,
    "processor_class": "Qwen2_5OmniProcessor", "return_attention_mask": True, "sampling_rate": 16000,
    "temporal_patch_size": 2,
}  # fmt: skip

if __name__ == "__main__":
    print(assemble(BUILD_DIR / "omni"))
