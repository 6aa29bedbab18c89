"""The micro world's tokenizer: byte-level BPE in Qwen2Tokenizer's file layout, with hand-made merges.

Every word of the lexicon is one token, with and without a leading space, so that the Talker sees one text token a
word. The 22 added tokens are those of Qwen2.5-Omni; the tts and speaker ids follow them and, as in the published
checkpoint, are rows of the Thinker's embedding that the tokenizer does not know.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talker_rl.micro.lexicon import CHINESE, ENGLISH

SPEECH_SYSTEM_PROMPT = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and "
    "visual inputs, as well as generating text and speech."
)
"""The system prompt that the publisher requires for audio output."""
DEFAULT_SYSTEM_PROMPT = "You are a helpful assistant."
"""What the chat template inserts when no system message is given."""

SPECIAL_TOKENS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|AUDIO|> <|audio_bos|> <|audio_eos|> <|box_end|> <|quad_start|> "
    "<|quad_end|> <|vision_bos|> <|vision_eos|> <|vision_pad|> <|IMAGE|> <|VIDEO|>"
).split()
PLAIN_ADDED_TOKENS = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>"
).split()

CHAT_TEMPLATE = (
    "{% set audio_count = namespace(value=0) %}{% set image_count = namespace(value=0) %}"
    "{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif content['type'] == 'audio' or 'audio' in content or 'audio_url' in content %}"
    "{% set audio_count.value = audio_count.value + 1 %}"
    "{% if add_audio_id %}Audio {{ audio_count.value }}: {% endif %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template of Qwen2.5-Omni, character for character."""

MARKS = ",.;:!?，。；：、！？"
_PROMPT_WORDS = re.findall(
    r"\w+", f"{SPEECH_SYSTEM_PROMPT} {DEFAULT_SYSTEM_PROMPT} system user assistant Read aloud the following sentence"
)


@dataclass(frozen=True)
class TextIds:
    """Ids on the text side: rows of the Thinker's embedding."""

    vocab_size: int
    """Rows of the embedding, a multiple of 64."""
    added: dict[str, int]
    """The added tokens of the tokenizer."""
    user: int
    tts_pad: int
    tts_start: int
    tts_end: int
    speakers: dict[str, int]
    """Speaker name -> its text-bos id."""


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each of the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in plain}
    table.update({b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in table)})
    return table


def _segment(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """BPE: merge the pair of lowest rank until none is left."""
    symbols = list(symbols)
    while len(symbols) > 1:
        pairs = zip(symbols, symbols[1:], strict=False)
        rank, at = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairs))
        if rank == len(ranks):
            break
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return symbols


def make_merges() -> list[tuple[str, str]]:
    """Merges that make one token of each word.

    A later merge has a lower priority, so it never splits an earlier word.
    """
    table = byte_alphabet()
    pieces: list[str] = []
    for word in (*MARKS, *ENGLISH, *CHINESE, *_PROMPT_WORDS):
        pieces += [word, " " + word]
    ranks: dict[tuple[str, str], int] = {}
    for piece in pieces:
        while len(symbols := _segment([table[b] for b in piece.encode()], ranks)) > 1:
            # A leading space is joined last, so that both forms share their letters' merges.
            at = 1 if symbols[0] == table[32] and len(symbols) > 2 else 0
            ranks[symbols[at], symbols[at + 1]] = len(ranks)
    return list(ranks)


def text_ids() -> TextIds:
    """All ids of the text side, from the lexicon alone."""
    base = 256 + len(make_merges())
    added = {token: base + i for i, token in enumerate((*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS))}
    tts = base + len(added)
    vocab = make_vocab()
    last = tts + 5
    return TextIds(
        vocab_size=-(-last // 64) * 64,
        added=added,
        user=vocab["user"],
        tts_pad=tts,
        tts_start=tts + 1,
        tts_end=tts + 2,
        speakers={"Ethan": tts + 3, "Chelsie": tts + 4},
    )


def make_vocab() -> dict[str, int]:
    """Symbol -> id, without the added tokens."""
    symbols = [*byte_alphabet().values(), *(a + b for a, b in make_merges())]
    vocab = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    assert len(vocab) == len(symbols), "two merges make the same symbol"
    return vocab


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(out: Path) -> None:
    """Write ``tokenizer.json``, ``vocab.json``, ``merges.txt`` and the json files around them to the folder ``out``."""
    from tokenizers import AddedToken
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    out.mkdir(parents=True, exist_ok=True)
    merges, vocab, ids = make_merges(), make_vocab(), text_ids()
    _dump(out / "vocab.json", vocab)
    (out / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    # The constructor adds <|endoftext|> first, which is also its place in the published order.
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS], special_tokens=True)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in PLAIN_ADDED_TOKENS])
    tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))
    _dump(out / "added_tokens.json", dict(sorted(ids.added.items())))
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    _dump(
        out / "special_tokens_map.json",
        {
            "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
            "eos_token": {"content": "<|im_end|>", **special},
            "pad_token": {"content": "<|endoftext|>", **special},
        },
    )
    _dump(
        out / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(i): {"content": token, **special, "special": token in SPECIAL_TOKENS}
                for token, i in ids.added.items()
            },
            "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
            "audio_bos_token": "<|audio_bos|>",
            "audio_eos_token": "<|audio_eos|>",
            "audio_token": "<|AUDIO|>",
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "extra_special_tokens": {
                "audio_bos_token": "<|audio_bos|>",
                "audio_eos_token": "<|audio_eos|>",
                "audio_token": "<|AUDIO|>",
                "image_token": "<|IMAGE|>",
                "video_token": "<|VIDEO|>",
                "vision_bos_token": "<|vision_bos|>",
                "vision_eos_token": "<|vision_eos|>",
            },
            "image_token": "<|IMAGE|>",
            "model_max_length": 32768,
            "pad_token": "<|endoftext|>",
            "processor_class": "Qwen2_5OmniProcessor",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
            "video_token": "<|VIDEO|>",
            "vision_bos_token": "<|vision_bos|>",
            "vision_eos_token": "<|vision_eos|>",
        },
    )
    _dump(out / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
