"""The text tokenizer of a checkpoint and its chat template, both tried before they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from talker_rl.base.errors import CheckpointError, told
from talker_rl.speech.files import read_json, require_file

OBJECTS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
"""JSON files that a tokenizer is loaded from, where they are there; each holds an object."""
PROBE = [{"role": "system", "content": "Speak."}, {"role": "user", "content": "river garden"}]
"""A chat as prompts have it."""


def load_tokenizer(folder: Path) -> Any:
    """The text tokenizer with its chat template (kept in chat_template.json by the published checkpoints).

    Raises:
        CheckpointError: a file is missing or cannot be used, or the template cannot write a small chat; it is named.
    """
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        require_file(folder, "vocab.json", "the tokenizer (tokenizer.json, or vocab.json and merges.txt)")
        require_file(folder, "merges.txt", "the tokenizer's merges")
    for name in OBJECTS:
        if (folder / name).is_file():
            read_json(folder / name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise many types, the latter even plain Exception
        raise CheckpointError(
            f"{_culprit(folder)} cannot be used: {told(error)}", where=str(folder), fix="restore the tokenizer's files"
        ) from error
    written = folder / "chat_template.jinja"
    file = written if written.is_file() else folder / "tokenizer_config.json"
    if not tokenizer.chat_template:
        file = require_file(folder, "chat_template.json", "the chat template")
        tokenizer.chat_template = read_json(file).get("chat_template")
    _try_template(tokenizer, file)
    return tokenizer


def _culprit(folder: Path) -> str:
    """Name of the file that a tokenizer which does not load fails on, as far as can be told."""
    from tokenizers import Tokenizer

    if not (folder / "tokenizer.json").is_file():
        return "vocab.json, merges.txt or tokenizer_config.json"
    try:
        Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:
        return "tokenizer.json"
    return "tokenizer_config.json"


def _try_template(tokenizer: Any, file: Path) -> None:
    fix = "restore the original file"
    template = tokenizer.chat_template
    if not isinstance(template, str) or not template.strip():
        said = "is empty" if isinstance(template, str) else f"is of type {type(template).__name__}, not a string"
        raise CheckpointError(f"{file.name}: the chat template {said}", where=str(file), fix=fix)
    try:
        text = tokenizer.apply_chat_template(PROBE, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # whatever jinja and the template's own code raise
        raise CheckpointError(
            f"{file.name}: the chat template cannot be used: {type(error).__name__}: {told(error)}",
            where=str(file),
            fix=fix,
        ) from error
    if PROBE[-1]["content"] not in text:
        raise CheckpointError(f"{file.name}: the chat template leaves out what the user says", where=str(file), fix=fix)
