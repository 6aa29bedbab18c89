"""Chat messages before a reply: texts, and parts of sound, images and video that lie in files.

A message is ``{"role", "content"}``; content is a text, or a list of parts:

    {"type": "text",  "text": "What do you hear?"}
    {"type": "audio", "audio": "clip.wav"}           any file that soundfile reads
    {"type": "image", "image": "photo.png"}          any file that Pillow reads
    {"type": "video", "video": "film.mp4"}              with torchvision; or the processor's tensors as .safetensors

Paths are relative to the prompt file. What is read is noted by its SHA-256, and ids and cache keys depend on that, not
on the path: the same files elsewhere are the same prompts, a changed file is another one.
"""

from __future__ import annotations

import os.path
from pathlib import Path
from typing import Any

from talker_rl.base.errors import PromptError
from talker_rl.base.file_hash import cached_hash
from talker_rl.records.checks import why_not_stored

MEDIA = ("audio", "image", "video")
ROLES = ("system", "user", "assistant")
_KEYS = {"text": {"type", "text"}, **{kind: {"type", kind, "sha256"} for kind in MEDIA}}

Message = dict[str, Any]


def check_messages(messages: Any, where: str) -> list[Message]:
    """The messages, with parts that are all text joined to one text; no file is opened.

    Raises:
        PromptError: something else than messages, an unknown part, an address instead of a file.
    """
    if not isinstance(messages, list) or not all(isinstance(m, dict) and set(m) == {"role", "content"}
                                                 for m in messages):
        raise PromptError("`messages` is not a list of {role, content}", where=where, fix="leave it out, or write one")
    return [_checked(message, where) for message in messages]


def _checked(message: Message, where: str) -> Message:
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise PromptError(f"Unknown role {role!r} in `messages`", where=where, fix=f"one of {', '.join(ROLES)}")
    if isinstance(content, str):
        return {"role": role, "content": _encodable(content, where)}
    if not isinstance(content, list) or not content:
        raise PromptError("A message's content is neither a text nor a list of parts", where=where,
                          fix='write a text, or parts such as {"type": "audio", "audio": "clip.wav"}')
    content = [{k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else part for part in content]
    for part in content:  # (a table's struct holds null for the keys of other kinds)
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in _KEYS or kind not in part or set(part) - _KEYS[kind]:
            raise PromptError(f"Not a part of a message: {str(part)[:80]}", where=where,
                              fix='parts are {"type": "text", "text": ...} and audio, image, video alike, with a file')
        if not isinstance(part[kind], str) or kind in MEDIA and "://" in part[kind]:
            held = "text" if kind == "text" else "path of a file"
            raise PromptError(f"The {kind} part holds no {held}: {str(part[kind])[:80]}", where=where,
                              fix="give a text, or a file on this machine: nothing is downloaded")
        _encodable(part[kind], where)
    if all(part["type"] == "text" for part in content):  # what the template makes of them
        return {"role": role, "content": "".join(part["text"] for part in content)}
    return {"role": role, "content": content}


def _encodable(text: str, where: str) -> str:
    """The text; a PromptError where it holds half a surrogate pair, which JSON can write and no tokenizer reads."""
    if why := why_not_stored(text):
        raise PromptError(f"Not a text: {why}", where=where, fix="write the whole character")
    return text


def resolve_media(messages: list[Message], base: Path, where: str) -> list[Message]:
    """The messages with whole paths and the SHA-256 of every file.

    Raises:
        PromptError: a file that is not there or cannot be read, or is not the one that was noted.
    """
    out = []
    for message in messages:
        if isinstance(message["content"], str):
            out.append(message)
            continue
        parts = []
        for part in message["content"]:
            kind = part["type"]
            if kind != "text":
                file = base / os.path.expanduser(part[kind])  # (Path's own raises for ~nobody)
                if not os.path.isfile(file):  # (likewise for names that are too long)
                    raise PromptError(f"There is no such {kind} file", where=f"{where}: {file}",
                                      fix="paths are relative to the prompt file")
                try:
                    found = cached_hash(file)
                except OSError as error:
                    raise PromptError(f"Cannot read the {kind} file: {error.strerror or error}",
                                      where=f"{where}: {file}", fix="give a file that can be read") from error
                if part.get("sha256", found) != found:
                    raise PromptError(f"The {kind} file changed after the prompts were read", where=f"{where}: {file}",
                                      fix="restore it, or read the prompts again: --force-stage prompts")
                part = {"type": kind, kind: str(file.resolve()), "sha256": found}
            parts.append(part)
        out.append({"role": message["role"], "content": parts})
    return out


def identity(messages: Any) -> Any:
    """What ids and cache keys depend on: paths of files whose content is noted are left out."""
    if isinstance(messages, list):
        return [identity(item) for item in messages]
    if not isinstance(messages, dict):
        return messages
    if "sha256" in messages:
        return {"type": messages.get("type"), "sha256": messages["sha256"]}
    return {key: identity(value) if key == "content" else value for key, value in messages.items()}


def without_folders(messages: list[Message]) -> list[Message]:
    """The messages as they can be shared: files by their names, beside their SHA-256."""
    def named(part: dict[str, Any]) -> dict[str, Any]:
        kind = part["type"]
        return part if kind == "text" else {**part, kind: Path(part[kind]).name}

    return [m if isinstance(m["content"], str) else {**m, "content": [named(part) for part in m["content"]]}
            for m in messages]


def files_are_noted(messages: list[Message]) -> bool:
    """Whether every file's SHA-256 is in its part."""
    parts = [part for m in messages if not isinstance(m["content"], str) for part in m["content"]]
    return all("sha256" in part for part in parts if part["type"] != "text")
