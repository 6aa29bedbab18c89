"""A random, tiny Qwen3-Omni for tests: transformers' classes, the published codec ids, everything else small."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch

WIDTH = 32
TEXT_WIDTH = 24
MARK_IDS = dict(im_start=10, system=11, user=12, assistant=13, newline=14, im_end=15, pad=16, bos=17, eos=18)
MEDIA_IDS = {"<|audio_end|>": 194, "<|audio_pad|>": 195, "<|audio_start|>": 199, "<|vision_start|>": 198,
             "<|image_pad|>": 196, "<|video_pad|>": 197, "<|vision_end|>": 193}
SPEAKERS = {"ann": 2301, "bob": 2302}
GROUPS, CODES, VOCABULARY, STOP = 16, 2048, 3072, 2150


def qwen3_config(*, layers: int = 2, experts: int = 8, top_k: int = 3) -> Any:
    """A whole Qwen3OmniMoeConfig: the classes' own defaults are not the published values, and lack fields."""
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeConfig

    attention = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    mrope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1], "interleaved": True}
    rope = {"rope_type": "default", "rope_theta": 1e6}
    media = dict(audio_token_id=195, image_token_id=196, video_token_id=197, audio_start_token_id=199,
                 vision_start_token_id=198)
    talker_text = dict(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=layers,
        moe_intermediate_size=16, shared_expert_intermediate_size=24, num_experts=experts, num_experts_per_tok=top_k,
        norm_topk_prob=True, max_position_embeddings=4096, rope_parameters=mrope, **attention,
    )  # fmt: skip
    predictor = dict(vocab_size=CODES, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
                     num_code_groups=GROUPS, max_position_embeddings=64, rope_parameters=rope, **attention)
    talker = dict(
        text_config=talker_text, code_predictor_config=predictor, num_code_groups=GROUPS,
        thinker_hidden_size=TEXT_WIDTH, codec_pad_id=2148, codec_bos_id=2149, codec_eos_token_id=STOP,
        codec_nothink_id=2155, codec_think_bos_id=2156, codec_think_eos_id=2157, accept_hidden_layer=1,
        spatial_merge_size=2, speaker_id=SPEAKERS, **media,
    )  # fmt: skip
    thinker_text = dict(
        vocab_size=200, hidden_size=TEXT_WIDTH, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
        num_experts=4, num_experts_per_tok=2, max_position_embeddings=512, rope_parameters=mrope, **attention,
    )  # fmt: skip
    thinker = dict(
        text_config=thinker_text, user_token_id=MARK_IDS["user"], **media,
        audio_config=dict(num_mel_bins=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, d_model=16,
                          output_dim=TEXT_WIDTH, downsample_hidden_size=8),
        vision_config=dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=TEXT_WIDTH,
                           patch_size=4, deepstack_visual_indexes=[0]),
    )  # fmt: skip
    sound = dict(codebook_size=CODES, hidden_size=32, num_attention_heads=4, num_key_value_heads=4,
                 intermediate_size=48, num_hidden_layers=1, num_quantizers=GROUPS, decoder_dim=32,
                 rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    m = MARK_IDS
    return Qwen3OmniMoeConfig(
        thinker_config=thinker, talker_config=talker, code2wav_config=sound, im_start_token_id=m["im_start"],
        im_end_token_id=m["im_end"], system_token_id=m["system"], user_token_id=m["user"],
        assistant_token_id=m["assistant"], tts_pad_token_id=m["pad"], tts_bos_token_id=m["bos"],
        tts_eos_token_id=m["eos"],
    )  # fmt: skip


def _random(model: Any, seed: int, spread: float, stop: float) -> Any:
    """Weights of a model that is sure enough of itself to be sampled: transformers leaves the Talker's experts
    uninitialized memory and its routers zero."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, value in model.named_parameters():
            if value.ndim >= 2:
                value.normal_(0, 0.3)
            elif name.endswith("bias"):
                value.zero_()
        talker = getattr(model, "talker", model)
        for head in (talker.codec_head, *talker.code_predictor.lm_head):
            head.weight.normal_(0, spread / WIDTH**0.5)
        talker.codec_head.weight[STOP] *= stop
        if hasattr(model, "code2wav"):
            _audible(model.code2wav)
            model.thinker.lm_head.weight[195:] = 0  # its answers hold no tokens that stand for media
    return model.eval().requires_grad_(False)


def _audible(code2wav: Any) -> None:
    """Unit gain a layer, layer scales of one, and a last one that does not clip."""
    for name, value in code2wav.named_parameters():
        if value.ndim >= 2:
            value.normal_(0, (value[0].numel() if value.ndim == 2 else value.shape[1] * value.shape[2]) ** -0.5)
        elif name.endswith(("scale", "gamma")):
            value.fill_(1.0)
        elif name.endswith(("bias", "alpha", "beta")):
            value.zero_()
    code2wav.code_embedding.weight.normal_()
    code2wav.decoder[-1].conv.weight.mul_(0.004)


def tiny_talker(seed: int = 0, *, spread: float = 3.0, stop: float = 2.0, **shape: int) -> Any:
    """The Talker with its code predictor alone."""
    return copy.deepcopy(_tiny_talker(seed, spread, stop, **shape))


@lru_cache(maxsize=8)
def _tiny_talker(seed: int, spread: float, stop: float, **shape: int) -> Any:
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeTalkerForConditionalGeneration

    return _random(Qwen3OmniMoeTalkerForConditionalGeneration(qwen3_config(**shape).talker_config), seed, spread, stop)


def tiny_qwen3(seed: int = 0, *, spread: float = 3.0, stop: float = 2.0) -> Any:
    """The whole model, for upstream's own ``generate``."""
    return copy.deepcopy(_tiny_qwen3(seed, spread, stop))


@lru_cache(maxsize=4)
def _tiny_qwen3(seed: int, spread: float, stop: float) -> Any:
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeForConditionalGeneration

    return _random(Qwen3OmniMoeForConditionalGeneration(qwen3_config()), seed, spread, stop)


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'audio' %}<|audio_start|><|audio_pad|><|audio_end|>"
    "{% elif part['type'] in ('image', 'video') %}<|vision_start|><|{{ part['type'] }}_pad|><|vision_end|>{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> Any:
    """Word-level, with the tokens that the config names at its ids."""
    from omni_factory import WORDS
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    named = {"im_start": "<|im_start|>", "system": "system", "user": "user", "assistant": "assistant", "newline": "\n",
             "im_end": "<|im_end|>", "pad": "<tts_pad>", "bos": "<tts_bos>", "eos": "<tts_eos>"}
    ids = {"<|endoftext|>": 0, "<unk>": 1, **MEDIA_IDS, **{text: MARK_IDS[name] for name, text in named.items()}}
    for i, word in enumerate([",", ".", *WORDS]):
        ids[word] = 20 + i
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), *(pre_tokenizers.Split(mark, "isolated") for mark in ("\n", ",", "."))])
    out = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<|endoftext|>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", *MEDIA_IDS],
    )  # fmt: skip
    out.chat_template = CHAT_TEMPLATE
    return out


def write_checkpoint(folder: Any, model: Any | None = None) -> Any:
    """The layout of the published checkpoint, in several shards, each expert by itself."""
    (model or tiny_qwen3()).save_pretrained(folder, max_shard_size="1MB")
    tokenizer().save_pretrained(folder)
    return folder


def random_conditionings(lengths: list[tuple[int, int]], seed: int = 0) -> list[Any]:
    """One Conditioning for every (tokens of the user's turns, tokens of the reply)."""
    from talker_rl.speech.qwen3_omni.conditioning import Conditioning

    generator = torch.Generator().manual_seed(seed)
    marks = torch.randn(6, TEXT_WIDTH, generator=generator)
    return [
        Conditioning(prompt_id=f"p{i}", marks=marks, user=torch.randn(u, TEXT_WIDTH, generator=generator),
                     reply=torch.randn(r, TEXT_WIDTH, generator=generator), speaker="ann", speaker_id=2301)
        for i, (u, r) in enumerate(lengths)
    ]
