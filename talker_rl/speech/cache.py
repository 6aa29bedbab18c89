"""Conditioning on disk: safetensors shards, keyed by content, each finished by an atomic rename.

A shard holds ``<prompt_id>.<name>`` for each tensor of a prompt's conditioning; its header's metadata says which
content key each prompt was computed from, and of which family it is. A shard is verified where it is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from talker_rl.base.disk import replacing
from talker_rl.base.errors import DataError
from talker_rl.base.figures import count
from talker_rl.base.ids import stable_hash
from talker_rl.base.seals import seal, verified
from talker_rl.records.codec import FIRST
from talker_rl.speech.files import map_tensors
from talker_rl.speech.protocol import Conditioning
from talker_rl.speech.registry import family_named

_META = "talker_rl.conditioning"
_FIX = "run the conditioning stage again (talker-rl condition): only this shard is computed again"


class ConditioningCache:
    """Conditioning of one folder.

    Args:
        folder: where the shards are; made if need be.
        strict: True: a shard that cannot be read raises DataError here, one with other content where it is loaded.
            False: either is listed in ``damaged`` and its prompts count as missing, so that they are computed again.
    """

    def __init__(self, folder: Path | str, *, strict: bool = False) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.damaged: list[Path] = []
        self._entries: dict[str, dict[str, Any]] = {}
        # a prompt that was computed again lies in two shards: the newest one counts
        for shard in sorted(self.folder.glob("*.safetensors"), key=lambda p: (p.stat().st_mtime_ns, p.name)):
            try:
                if not strict:
                    verified(shard, fix=_FIX)
                self._entries.update(_read_entries(shard))
            except DataError:
                if strict:
                    raise
                self.damaged.append(shard)

    def __contains__(self, prompt_id: str) -> bool:
        return prompt_id in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, prompt_ids: Sequence[str] | None = None) -> dict[str, Any]:
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
        out: dict[str, Any] = {}
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
        shard = write_shard(self.folder, items)
        self.adopt(shard)
        return shard

    def adopt(self, shard: Path) -> None:
        """Take in what :func:`write_shard` wrote into the folder, wherever it did."""
        seal(self.folder, [shard.name])
        self._entries.update(_read_entries(shard))

    @property
    def size(self) -> int:
        """Bytes of the shards on disk."""
        return sum(shard.stat().st_size for shard in {entry["shard"] for entry in self._entries.values()})

    def keys(self, prompt_ids: Sequence[str]) -> dict[str, str]:
        """The key that each prompt was computed from, of those that are stored."""
        return {i: self._entries[i]["key"] for i in prompt_ids if i in self._entries}

    def drop_damaged(self) -> None:
        """Remove shards that cannot be read; their prompts are computed again."""
        for shard in self.damaged:
            shard.unlink(missing_ok=True)
        self.damaged = []


def write_shard(folder: Path, items: Sequence[tuple[Conditioning, str]]) -> Path:
    """Write (conditioning, key) into a file of a cache's folder, which appears whole or not at all; the cache does not
    know of it yet.

    Raises:
        StageError: the disk is full.
    """
    from safetensors.torch import save_file

    entries: dict[str, dict[str, Any]] = {
        c.prompt_id: {"key": key, "speaker": c.speaker, "reply_text": c.reply_text, "codec": c.codec}
        for c, key in items
    }
    tensors = {f"{c.prompt_id}.{name}": x.contiguous() for c, _ in items for name, x in c.tensors().items()}
    name = stable_hash("shard", sorted((i, e["key"]) for i, e in entries.items()))[:16]
    shard = folder / f"{name}.safetensors"
    with replacing(shard) as temporary:
        save_file(tensors, str(temporary), metadata={_META: json.dumps(entries, ensure_ascii=False)})
    return shard


def _read_entries(shard: Path) -> dict[str, dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(shard), framework="pt") as reader:  # checks that the file is as long as its header says
            entries: dict[str, dict[str, Any]] = json.loads((reader.metadata() or {})[_META])
            names: dict[str, list[str]] = {}
            for key in reader.keys():
                prompt_id, _, name = key.rpartition(".")
                names.setdefault(prompt_id, []).append(name)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DataError(
            f"a conditioning shard cannot be read ({error}); it may be truncated", where=str(shard), fix=_FIX
        ) from error
    return {prompt_id: {**entry, "shard": shard, "tensors": names.get(prompt_id, [])}
            for prompt_id, entry in entries.items()}


def _read_shard(shard: Path, entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    verified(shard, fix=_FIX)
    try:
        tensors = map_tensors(shard, [f"{i}.{name}" for i, e in entries.items() for name in e["tensors"]])
        return {
            prompt_id: family_named(entry.get("codec") or FIRST).conditioning(
                prompt_id, entry["speaker"], entry["reply_text"],
                {name: tensors[f"{prompt_id}.{name}"] for name in entry["tensors"]})
            for prompt_id, entry in entries.items()
        }
    except (ValueError, OSError, KeyError) as error:
        raise DataError(f"a conditioning shard cannot be read ({error})", where=str(shard), fix=_FIX) from error
