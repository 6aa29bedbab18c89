"""What is wrong with a checkpoint folder, found without reading its weights: ``talker-rl doctor --model DIR``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from talker_rl.base.findings import Finding, guarded
from talker_rl.speech.config import ModelConfig

_TOKENS = {"im_start_token_id": "<|im_start|>", "im_end_token_id": "<|im_end|>"}
"""Key of the config -> the token that must have that id."""


def check_model(folder: Path) -> Iterator[Finding]:
    """Everything that can be said of the folder."""
    for check in (_config, _weights, _tokens):
        yield from guarded(check, folder)


def check_loading(settings: ModelConfig, *, load: bool) -> Iterator[Finding]:
    """Whether the weights can be loaded: by loading them, or by what can be seen without."""
    from talker_rl.speech.qwen3_omni.checkpoint import load_qwen3

    if load:
        load_qwen3(settings, ("table", "talker", "code2wav"))
        yield "ok", "the embedding table, the Talker and code2wav load"


def _config(folder: Path) -> Iterator[Finding]:
    from talker_rl.speech.qwen3_omni.checkpoint import speaker_rows
    from talker_rl.speech.qwen3_omni.config_json import read_config

    config = read_config(folder)
    talker = config.talker_config
    yield "ok", (f"config.json: Talker of {talker.text_config.num_hidden_layers} layers with "
                 f"{talker.text_config.num_experts} experts, {talker.num_code_groups} codebooks of "
                 f"{talker.code_predictor_config.vocab_size} codes, speakers {', '.join(sorted(speaker_rows(config)))}")


def _weights(folder: Path) -> Iterator[Finding]:
    from talker_rl.speech.files import read_headers, shards_of
    from talker_rl.speech.qwen3_omni.checkpoint import PARTS

    for part, prefix in PARTS.items():
        shards = shards_of(folder, prefix)
        held = [name for file in shards for name in read_headers(file) if name.startswith(prefix)]
        if held:
            yield "ok", f"{part}: {len(held)} tensors in {len(shards)} files"
        elif part != "thinker":
            yield "fail", f"no tensor named {prefix}* is stored; restore the checkpoint"


def _tokens(folder: Path) -> Iterator[Finding]:
    from talker_rl.speech.qwen3_omni.config_json import read_config
    from talker_rl.speech.text_tokenizer import load_tokenizer

    config, tokenizer = read_config(folder), load_tokenizer(folder)
    wrong = {token: (tokenizer.convert_tokens_to_ids(token), getattr(config, key)) for key, token in _TOKENS.items()
             if tokenizer.convert_tokens_to_ids(token) != getattr(config, key)}
    for token, (has, wanted) in wrong.items():
        yield "fail", f"the tokenizer gives {token} the id {has}, config.json {wanted}; restore the files"
    if not wrong:
        yield "ok", "tokenizer and config.json agree on the marks of turns"
