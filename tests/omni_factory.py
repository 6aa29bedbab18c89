"""A random, tiny Qwen2.5-Omni for tests: real classes, real layout, made in memory or written to a folder."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

EMBED = 48
WORDS = "stop go left right red blue green one two three four five six".split()
SPEAKERS = {"Ann": 100, "Bob": 101}


def omni_config() -> Any:
    """A Qwen2_5OmniConfig of about half a million parameters; codec ids are the real ones."""
    from transformers import Qwen2_5OmniConfig

    text = dict(
        vocab_size=128, hidden_size=EMBED, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False, max_window_layers=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]},
    )  # fmt: skip
    media = dict(audio_token_index=110, image_token_index=111, video_token_index=112, audio_start_token_id=113,
                 audio_end_token_id=114, vision_start_token_id=115, vision_end_token_id=116)  # fmt: skip
    thinker = dict(
        text_config=text,
        audio_config=dict(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, num_mel_bins=16,
                          n_window=4, output_dim=EMBED, max_source_positions=32),
        vision_config=dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=EMBED,
                           fullatt_block_indexes=[0]),
        pad_token_id=1, bos_token_id=2, eos_token_id=3, user_token_id=4, vision_token_id=117, **media,
    )  # fmt: skip
    talker = dict(
        vocab_size=8448, embedding_size=EMBED, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_window_layers=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        tts_text_start_token_id=120, tts_text_end_token_id=121, tts_text_pad_token_id=122, **media,
    )  # fmt: skip
    dit = dict(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, head_dim=16, ff_mult=2, emb_dim=16, block_size=8,
        look_ahead_layers=[1], look_backward_layers=[0, 2], mel_dim=80, enc_dim=16, enc_emb_dim=192,
        enc_channels=[16, 16, 16, 16, 48], enc_attention_channels=8, enc_se_channels=8, num_embeds=8193,
    )  # fmt: skip
    bigvgan = dict(
        mel_dim=80, upsample_initial_channel=32, upsample_rates=[5, 4, 4, 3], upsample_kernel_sizes=[11, 8, 8, 7],
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3, 5]],
    )  # fmt: skip
    return Qwen2_5OmniConfig(
        thinker_config=thinker, talker_config=talker, token2wav_config=dict(dit_config=dit, bigvgan_config=bigvgan)
    )


def tiny_omni(seed: int = 0, spread: float = 3.0) -> Any:
    """A random model whose Talker is sure enough of itself to be sampled (``spread`` scales its head)."""
    return copy.deepcopy(_tiny_omni(seed, spread))


@lru_cache(maxsize=8)
def _tiny_omni(seed: int, spread: float) -> Any:
    from transformers import Qwen2_5OmniForConditionalGeneration

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2_5OmniForConditionalGeneration(omni_config()).eval()
        with torch.no_grad():
            for name, value in model.named_parameters():
                if name.startswith(("thinker.", "talker.")) and value.ndim == 2:
                    value.normal_(0, 0.2)
            model.talker.codec_head.weight.normal_(0, spread / 32**0.5)
            model.talker.codec_head.weight[8294] *= 1.5  # some sequences stop
            model.talker.codec_head.weight[8194:8292] *= 0.1  # and few of them at an invalid code
            model.talker.codec_head.weight[8297:] *= 0.1
            speakable = [3, *range(9, 9 + len(WORDS))]  # the Thinker answers in words, and ends
            silent = [i for i in range(128) if i not in speakable]
            model.thinker.lm_head.weight[silent] = 0
            end = torch.randn(EMBED, generator=torch.Generator().manual_seed(52)) * 0.3  # at several lengths
            model.thinker.lm_head.weight[3] = end
            make_audible(model.token2wav)
        model.speaker_map = speakers()
    model.requires_grad_(False)
    return model


def make_audible(token2wav: Any) -> None:
    """Random weights of a token2wav whose flow moves and whose vocoder is heard."""
    for value in token2wav.code2wav_dit_model.parameters():
        if value.ndim == 2:
            value.normal_(0, 0.15)  # the library's own initialization leaves the flow near zero
    for value in token2wav.code2wav_bigvgan_model.parameters():
        if value.ndim == 3:  # a vocoder that is heard: unit gain a layer
            value.normal_(0, (value.shape[1] * value.shape[2]) ** -0.5)
    token2wav.code2wav_bigvgan_model.conv_post.weight.mul_(0.1)  # and does not clip


def speakers() -> dict[str, dict[str, Any]]:
    generator = torch.Generator().manual_seed(5)
    return {
        name: {
            "bos_token": token,
            "cond": torch.randn(1, 192, generator=generator),
            "ref_mel": torch.randn(1, 60, 80, generator=generator) - 4,
        }
        for name, token in SPEAKERS.items()
    }


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def tokenizer() -> Any:
    """Word-level, with the chat template's tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "user", "system", "assistant", ",", ".", *WORDS]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(",", "isolated"), pre_tokenizers.Split(".", "isolated")]
    )
    out = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<|endoftext|>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    out.chat_template = CHAT_TEMPLATE
    return out


def write_checkpoint(folder: Path, model: Any | None = None) -> Path:
    """The layout of a real checkpoint: config, safetensors (two shards), spk_dict.pt, tokenizer."""
    model = model or tiny_omni()
    model.save_pretrained(folder, max_shard_size="2MB")
    torch.save(speakers(), folder / "spk_dict.pt")
    tokenizer().save_pretrained(folder)
    return folder


def random_conditionings(lengths: list[tuple[int, int]], seed: int = 0) -> list[Any]:
    """One Conditioning for every (prefix length, reply stream length)."""
    from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning

    generator = torch.Generator().manual_seed(seed)
    return [
        Conditioning(
            prompt_id=f"p{i}",
            prefix=torch.randn(p, EMBED, generator=generator),
            reply_stream=torch.randn(r, EMBED, generator=generator),
            speaker="Ann",
        )
        for i, (p, r) in enumerate(lengths)
    ]
