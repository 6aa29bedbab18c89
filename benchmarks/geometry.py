"""The models that speed is measured on: real block structure, real ids; random weights; width or depth reduced.

What is reduced is said in each name. Weights are random but scaled so that activations stay of order one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch


def real_config(name: str = "qwen2.5-omni-7b") -> dict[str, Any]:
    """The checkpoint's own config.json."""
    text = resources.files("talker_rl.speech.qwen2_5_omni").joinpath("geometry", f"{name}.json").read_text()
    data: dict[str, Any] = json.loads(text)
    return data


GEOMETRIES = {
    "mid": "the Talker at 512 of 896 wide with 6 of 24 layers in float32, token2wav at its width with 1 or 2 layers",
    "real": "Qwen2.5-Omni-7B: the Talker whole in bfloat16, token2wav whole in float32",
    "tiny": "the real one's structure some dozen wide: what it measures says nothing, but every step is taken",
}
MID_LAYERS = {"talker": 6, "token2wav": 2}


@dataclass(frozen=True)
class Models:
    """What is measured, and on which device."""

    device: torch.device
    geometry: str
    """One of GEOMETRIES."""

    @classmethod
    def of(cls, args: argparse.Namespace) -> Models:
        """By the command line."""
        return cls(torch.device(args.device), args.geometry)

    @property
    def mid(self) -> bool:
        """Whether depth is reduced, so that whole decodes are projected from a few layers."""
        return self.geometry == "mid"

    @property
    def judged(self) -> bool:
        """Whether figures are those that goals are set for."""
        return self.geometry == "real" and self.device.type == "cuda"

    @property
    def dtype(self) -> str:
        """Of the Talker and of conditionings."""
        return "bfloat16" if self.geometry == "real" else "float32"

    def talker(self, layers: int | None = None) -> Any:
        """Random, frozen; ``layers``: None for all that the geometry has."""
        if self.mid:
            return mid_talker(layers=layers or MID_LAYERS["talker"]).to(self.device)
        from transformers import Qwen2_5OmniTalkerForConditionalGeneration as Talker

        config = self._config().talker_config
        if layers:
            config.num_hidden_layers, config.layer_types = layers, config.layer_types[:layers]
        with torch.random.fork_rng(), self.device:
            torch.manual_seed(0)
            talker = Talker._from_config(config, dtype=getattr(torch, self.dtype), attn_implementation="sdpa").eval()
        return talker.requires_grad_(False)

    def token2wav(self, layers: int | None = None) -> Any:
        """DiT and vocoder, random, frozen, float32; ``layers`` as of `talker`, of which the last one looks ahead."""
        if self.mid:
            return real_width_token2wav(layers=layers or MID_LAYERS["token2wav"]).to(self.device)
        config = self._config().token2wav_config
        dit = config.dit_config
        if layers:
            dit.num_hidden_layers, dit.look_backward_layers, dit.look_ahead_layers = layers, [0], [layers - 1]
        return _token2wav(config, 0, self.device)

    def noise(self, codes: Sequence[Sequence[int]], mel_dim: int) -> list[torch.Tensor]:
        """The flow's start of utterance i from seed i, on the device."""
        from talker_rl.speech.qwen2_5_omni.token2wav import utterance_noise

        return [utterance_noise(i, 2 * len(c), mel_dim).to(self.device) for i, c in enumerate(codes)]

    def speaker(self) -> dict[str, Any]:
        """A random voice on the device."""
        return {name: value.to(self.device) for name, value in random_speaker().items()}

    def _config(self) -> Any:
        from transformers import Qwen2_5OmniConfig

        from talker_rl.speech.qwen2_5_omni.checkpoint import quiet_transformers

        data = real_config()
        if self.geometry == "tiny":
            for part, smaller in TINY.items():
                holder, _, inner = part.partition(".")
                target = data[holder][inner] if inner else data[holder]
                target.update(smaller)
        with quiet_transformers():
            return Qwen2_5OmniConfig.from_dict(data)


TINY: dict[str, dict[str, Any]] = {
    "talker_config": {
        "embedding_size": 48, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2,
        "max_window_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
        "rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]},
    },
    "token2wav_config.dit_config": {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "head_dim": 16, "emb_dim": 16,
        "look_ahead_layers": [1], "look_backward_layers": [0, 2], "enc_dim": 16, "enc_channels": [16, 16, 16, 16, 48],
        "enc_attention_channels": 8, "enc_se_channels": 8,
    },
    "token2wav_config.bigvgan_config": {
        "upsample_initial_channel": 64, "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3, 5]],
    },
}  # fmt: skip
"""What `tiny` has in place of the real numbers."""


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
    return _token2wav(config, seed, torch.device("cpu"))


def _token2wav(config: Any, seed: int, device: torch.device) -> Any:
    from transformers import Qwen2_5OmniToken2WavModel

    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(), torch.no_grad(), device:
        torch.manual_seed(seed)
        model = Qwen2_5OmniToken2WavModel(config).float().eval()
        for value in model.code2wav_dit_model.parameters():
            if value.ndim == 2:
                value.normal_(0, value.shape[1] ** -0.5)  # the library's own initialization leaves the flow near zero
        for value in model.code2wav_bigvgan_model.parameters():
            if value.ndim == 3:
                value.normal_(0, (value.shape[1] * value.shape[2]) ** -0.5)
    return model.requires_grad_(False)


def random_speaker(seed: int = 0) -> dict[str, Any]:
    """A voice as spk_dict.pt has them."""
    generator = torch.Generator().manual_seed(seed)
    ref_mel = torch.randn(1, 300, 80, generator=generator) - 4
    return {"cond": torch.randn(1, 192, generator=generator), "ref_mel": ref_mel}
