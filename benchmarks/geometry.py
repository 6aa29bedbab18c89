"""The models that speed is measured on: real block structure, real ids; random weights; width or depth reduced.

What is reduced is said in each name. Weights are random but scaled so that activations stay of order one.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import torch


def real_config(name: str = "qwen2.5-omni-7b") -> dict[str, Any]:
    """The checkpoint's own config.json."""
    text = resources.files("talker_rl.omni").joinpath("geometry", f"{name}.json").read_text()
    data: dict[str, Any] = json.loads(text)
    return data


def mid_talker(seed: int = 0, *, layers: int = 6) -> Any:
    """The 7B Talker's structure (grouped queries, gated feed-forward, 8448 ids) at 512 of 896 wide; float32, frozen."""
    from transformers import Qwen2_5OmniTalkerForConditionalGeneration
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniTalkerConfig

    config = Qwen2_5OmniTalkerConfig(
        vocab_size=8448, embedding_size=768, hidden_size=512, intermediate_size=1536, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=2, head_dim=64, max_window_layers=layers,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        talker = Qwen2_5OmniTalkerForConditionalGeneration(config).float().eval()
    return talker.requires_grad_(False)


def real_width_token2wav(seed: int = 0, *, layers: int = 2) -> Any:
    """DiT and vocoder of the 7B checkpoint at their real widths; ``layers`` of the 22: the first looks a block back,
    the last one ahead. Float32, frozen."""
    from transformers import Qwen2_5OmniToken2WavModel
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniToken2WavConfig

    real = real_config()["token2wav_config"]
    dit = {"num_hidden_layers": layers, "look_backward_layers": [0], "look_ahead_layers": [layers - 1]}
    names = {"dim": "hidden_size", "heads": "num_attention_heads"}
    kept = ("head_dim", "ff_mult", "emb_dim", "mel_dim", "repeats", "num_embeds", "enc_dim", "enc_emb_dim",
            "enc_channels", "enc_kernel_sizes", "enc_dilations", "enc_attention_channels", "enc_res2net_scale",
            "enc_se_channels", *names)  # fmt: skip
    dit |= {names.get(key, key): real["dit_config"][key] for key in kept if key in real["dit_config"]}
    kept = ("mel_dim", "upsample_initial_channel", "upsample_rates", "upsample_kernel_sizes", "resblock_kernel_sizes",
            "resblock_dilation_sizes")  # fmt: skip
    vocoder = {key: real["bigvgan_config"][key] for key in kept}
    config = Qwen2_5OmniToken2WavConfig(dit_config=dit, bigvgan_config=vocoder)
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = Qwen2_5OmniToken2WavModel(config).float().eval()
        for value in model.code2wav_dit_model.parameters():
            if value.ndim == 2:
                value.normal_(0, value.shape[1] ** -0.5)  # the library's own initialisation leaves the flow near zero
        for value in model.code2wav_bigvgan_model.parameters():
            if value.ndim == 3:
                value.normal_(0, (value.shape[1] * value.shape[2]) ** -0.5)
    return model.requires_grad_(False)


def random_speaker(seed: int = 0) -> dict[str, Any]:
    """A voice as spk_dict.pt has them."""
    generator = torch.Generator().manual_seed(seed)
    ref_mel = torch.randn(1, 300, 80, generator=generator) - 4
    return {"cond": torch.randn(1, 192, generator=generator), "ref_mel": ref_mel}
