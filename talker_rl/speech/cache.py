"""Conditioning on disk: safetensors shards, keyed by content, each finished by an atomic rename.

A shard holds ``<prompt_id>.prefix``, ``<prompt_id>.reply_stream`` and, where the prefix holds images or video,
``<prompt_id>.position_ids``; its header's metadata says which content key each prompt was computed from. The headers
are the truth; ``index.json`` repeats them for other tools.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from talker_rl.base.errors import DataError, PromptError, StageError, TalkerRLError, is_disk_full
from talker_rl.base.figures import count
from talker_rl.base.ids import stable_hash
from talker_rl.records.prompt import Prompt
from talker_rl.speech.config import ConditioningConfig
from talker_rl.speech.files import map_tensors
from talker_rl.speech.qwen2_5_omni.checkpoint import Omni
from talker_rl.speech.qwen2_5_omni.conditioning import Conditioning, compute_conditioning, conditioning_key

_META = "talker_rl.conditioning"


class ConditioningCache:
    """Conditioning of one folder.

    Args:
        folder: where the shards are; made if need be.
        strict: True: a damaged shard raises DataError. False: it is listed in ``damaged`` and its prompts count as
            missing, so that they are computed again.
    """

    def __init__(self, folder: Path | str, *, strict: bool = False) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.damaged: list[Path] = []
        self._entries: dict[str, dict[str, Any]] = {}
        # a prompt that was computed again lies in two shards: the newest one counts
        for shard in sorted(self.folder.glob("*.safetensors"), key=lambda p: (p.stat().st_mtime_ns, p.name)):
            try:
                self._entries.update(_read_entries(shard))
            except DataError:
                if strict:
                    raise
                self.damaged.append(shard)

    def __contains__(self, prompt_id: str) -> bool:
        return prompt_id in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def has(self, prompt_id: str, key: str) -> bool:
        """Whether this prompt is stored, computed from exactly this content."""
        return self._entries.get(prompt_id, {}).get("key") == key

    def load(self, prompt_ids: Sequence[str] | None = None) -> dict[str, Conditioning]:
        """Conditioning by prompt id; all of it without ``prompt_ids``. Tensors stay on disk until they are used.

        Raises:
            DataError: a prompt that is not stored, or a shard that can no longer be read.
        """
        wanted = list(self._entries) if prompt_ids is None else list(dict.fromkeys(prompt_ids))
        missing = [p for p in wanted if p not in self._entries]
        if missing:
            raise DataError(
                f"{count(len(missing), 'prompt has', 'prompts have')} no conditioning, the first is {missing[0]}",
                where=str(self.folder),
                fix="run the conditioning stage again",
            )
        out: dict[str, Conditioning] = {}
        by_shard: dict[Path, list[str]] = {}
        for prompt_id in wanted:
            by_shard.setdefault(self._entries[prompt_id]["shard"], []).append(prompt_id)
        for shard, ids in by_shard.items():
            out.update(_read_shard(shard, {i: self._entries[i] for i in ids}))
        return {p: out[p] for p in wanted}

    def put(self, items: Sequence[tuple[Conditioning, str]]) -> Path:
        """Write one shard of (conditioning, key); the file appears whole or not at all.

        Raises:
            StageError: the disk is full.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        entries: dict[str, dict[str, Any]] = {
            c.prompt_id: {"key": key, "speaker": c.speaker, "reply_text": c.reply_text}
            | ({"position_ids": True} if c.position_ids is not None else {})
            for c, key in items
        }
        tensors = {}
        for c, _ in items:
            tensors[f"{c.prompt_id}.prefix"] = c.prefix.contiguous()
            tensors[f"{c.prompt_id}.reply_stream"] = c.reply_stream.contiguous()
            if c.position_ids is not None:
                tensors[f"{c.prompt_id}.position_ids"] = c.position_ids.contiguous()
        name = stable_hash("shard", sorted((i, e["key"]) for i, e in entries.items()))[:16]
        shard = self.folder / f"{name}.safetensors"
        temporary = shard.with_suffix(f".tmp{os.getpid()}")
        try:
            save_file(tensors, str(temporary), metadata={_META: json.dumps(entries, ensure_ascii=False)})
            os.replace(temporary, shard)
        except (OSError, SafetensorError) as error:  # safetensors has its own for what the system refuses
            temporary.unlink(missing_ok=True)
            if is_disk_full(error):
                raise StageError("the disk is full", where=str(shard), fix="free some space and run again") from error
            raise
        self._entries.update({i: {**e, "shard": shard} for i, e in entries.items()})
        self._write_index()
        return shard

    @property
    def size(self) -> int:
        """Bytes of the shards on disk."""
        return sum(shard.stat().st_size for shard in {entry["shard"] for entry in self._entries.values()})

    def drop_damaged(self) -> None:
        """Remove shards that cannot be read; their prompts are computed again."""
        for shard in self.damaged:
            shard.unlink(missing_ok=True)
        self.damaged = []

    def _write_index(self) -> None:
        index = {i: {**e, "shard": e["shard"].name} for i, e in sorted(self._entries.items())}
        temporary = self.folder / f"index.json.tmp{os.getpid()}"
        temporary.write_text(json.dumps(index, ensure_ascii=False, indent=1))
        os.replace(temporary, self.folder / "index.json")


def _read_entries(shard: Path) -> dict[str, dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(shard), framework="pt") as reader:  # checks that the file is as long as its header says
            entries = json.loads((reader.metadata() or {})[_META])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DataError(
            f"a conditioning shard cannot be read ({error}); it may be truncated",
            where=str(shard),
            fix="delete this file and run the conditioning stage again",
        ) from error
    return {prompt_id: {**entry, "shard": shard} for prompt_id, entry in entries.items()}


def _read_shard(shard: Path, entries: dict[str, dict[str, Any]]) -> dict[str, Conditioning]:
    try:
        tensors = map_tensors(shard, [f"{i}.{part}" for i, e in entries.items() for part in _parts(e)])
    except (ValueError, OSError, KeyError) as error:
        raise DataError(
            f"a conditioning shard cannot be read ({error})",
            where=str(shard),
            fix="delete this file and run the conditioning stage again",
        ) from error
    return {
        prompt_id: Conditioning(
            prompt_id=prompt_id,
            prefix=tensors[f"{prompt_id}.prefix"],
            reply_stream=tensors[f"{prompt_id}.reply_stream"],
            speaker=entry["speaker"],
            reply_text=entry["reply_text"],
            position_ids=tensors.get(f"{prompt_id}.position_ids"),
        )
        for prompt_id, entry in entries.items()
    }


def _parts(entry: dict[str, Any]) -> tuple[str, ...]:
    return ("prefix", "reply_stream", *(["position_ids"] if entry.get("position_ids") else []))


def ensure_conditioning(
    omni: Omni,
    prompts: Sequence[Prompt],
    cfg: ConditioningConfig,
    folder: Path | str,
    *,
    shard_size: int = 128,
    errors: dict[str, TalkerRLError] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Conditioning]:
    """Conditioning of the prompts by prompt id: what the folder has for this content, and the rest computed and stored.

    Prompts that cannot be used are noted in ``errors`` where it is given, otherwise the first one raises.
    """
    cache = ConditioningCache(folder)
    cache.drop_damaged()
    keys = {p.prompt_id: conditioning_key(omni, p, cfg) for p in prompts}
    if len(keys) != len(prompts):
        raise PromptError("two prompts have the same prompt_id", where=str(folder), fix="remove one, or its prompt_id")
    todo = [p for p in prompts if not cache.has(p.prompt_id, keys[p.prompt_id])]
    for start in range(0, len(todo), shard_size):
        fresh = compute_conditioning(omni, todo[start : start + shard_size], cfg, errors=errors)
        if fresh:
            cache.put([(c, keys[c.prompt_id]) for c in fresh])
        if progress:
            progress(min(start + shard_size, len(todo)), len(todo))
    failed = errors or {}
    return cache.load([p.prompt_id for p in prompts if p.prompt_id not in failed])
