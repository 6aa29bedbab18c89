"""Conditioning on disk: safetensors shards, keyed by content, each finished by an atomic rename.

A shard holds ``<prompt_id>.<name>`` for each tensor of a prompt's conditioning; its header's metadata says which
content key each prompt was computed from, and of which family it is. A shard is verified where it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from talker_rl.base.disk import replacing
from talker_rl.base.errors import DataError
from talker_rl.base.figures import count
from talker_rl.base.ids import stable_hash
from talker_rl.base.seals import LIST, seal, verified
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
        self._shard_of: dict[str, Path] = {}
        # a prompt that was computed again lies in two shards: the newest one counts
        for shard in sorted(self.folder.glob("*.safetensors"), key=lambda p: (p.stat().st_mtime_ns, p.name)):
            try:
                if not strict:
                    verified(shard, fix=_FIX)
                self._take(shard)
            except DataError:
                if strict:
                    raise
                self.damaged.append(shard)

    @classmethod
    def opened(cls, folder: Path | str) -> ConditioningCache:
        """A finished folder's, to read from: in a process that asks again and again, it is gone through once."""
        times = tuple(path.stat().st_mtime_ns for path in (Path(folder), Path(folder) / LIST) if path.exists())
        return _opened(str(folder), times)

    def _take(self, shard: Path) -> None:
        self._shard_of.update(dict.fromkeys(_read_entries(shard), shard))

    def __contains__(self, prompt_id: str) -> bool:
        return prompt_id in self._shard_of

    def __len__(self) -> int:
        return len(self._shard_of)

    def load(self, prompt_ids: Sequence[str] | None = None) -> dict[str, Any]:
        """Conditioning by prompt id; all of it without ``prompt_ids``. Tensors stay on disk until they are used.

        Raises:
            DataError: a prompt that is not stored, or a shard that can no longer be read.
        """
        found = self.mapping(prompt_ids)
        made = {prompt_id: one for shard in found.shards for prompt_id, one in found.of(shard).items()}
        return {prompt_id: made[prompt_id] for prompt_id in found}

    def mapping(self, prompt_ids: Iterable[str] | None = None) -> Conditionings:
        """Likewise, where each prompt's is made when it is looked at: for what grows with a run's prompts.

        Raises:
            DataError: a prompt that is not stored, or a shard whose content is not what was written.
        """
        wanted = list(self._shard_of) if prompt_ids is None else list(dict.fromkeys(prompt_ids))
        missing = [p for p in wanted if p not in self._shard_of]
        if missing:
            raise DataError(
                f"{count(len(missing), 'prompt has', 'prompts have')} no conditioning, the first is {missing[0]}",
                where=str(self.folder),
                fix="run the conditioning stage again",
            )
        return Conditionings({p: self._shard_of[p] for p in wanted})

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
        self._take(shard)

    @property
    def size(self) -> int:
        """Bytes of the shards on disk."""
        return sum(shard.stat().st_size for shard in set(self._shard_of.values()))

    def keys(self, prompt_ids: Sequence[str]) -> dict[str, str]:
        """The key that each prompt was computed from, of those that are stored."""
        known = [i for i in prompt_ids if i in self._shard_of]
        entries = {shard: _read_entries(shard) for shard in {self._shard_of[i] for i in known}}
        return {i: entries[self._shard_of[i]][i]["key"] for i in known}

    def drop_damaged(self) -> None:
        """Remove shards that cannot be read; their prompts are computed again."""
        for shard in self.damaged:
            shard.unlink(missing_ok=True)
        self.damaged = []


class Conditionings(Mapping[str, Any]):
    """Conditioning by prompt id, made when it is looked at; the last ones stay. Their tensors lie on disk.

    Args:
        shard_of: the file of each prompt.

    Raises:
        DataError: the content of a file is not what was written.
    """

    KEPT: ClassVar = 1024
    """Prompts."""

    def __init__(self, shard_of: Mapping[str, Path]) -> None:
        self._shard_of = shard_of
        self.shards = list(dict.fromkeys(shard_of.values()))
        for shard in self.shards:
            verified(shard, fix=_FIX)
        self._entries = lru_cache(maxsize=16)(_read_entries)
        self._made = lru_cache(maxsize=self.KEPT)(self._make)

    def _make(self, prompt_id: str) -> Any:
        shard = self._shard_of[prompt_id]
        return _read_shard(shard, {prompt_id: self._entries(shard)[prompt_id]})[prompt_id]

    def of(self, shard: Path) -> dict[str, Any]:
        """Those of a file, at once."""
        return _read_shard(shard, {i: entry for i, entry in self._entries(shard).items()
                                   if self._shard_of.get(i) == shard})

    def __getitem__(self, prompt_id: str) -> Any:
        if prompt_id not in self._shard_of:
            raise KeyError(prompt_id)
        return self._made(prompt_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard_of)

    def __len__(self) -> int:
        return len(self._shard_of)


@lru_cache(maxsize=2)
def _opened(folder: str, times: tuple[int, ...]) -> ConditioningCache:
    return ConditioningCache(folder, strict=True)


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
    return {prompt_id: {**entry, "tensors": names.get(prompt_id, [])}
            for prompt_id, entry in entries.items()}


def _read_shard(shard: Path, entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    try:
        tensors = map_tensors(shard, [f"{i}.{name}" for i, e in entries.items() for name in e["tensors"]])
        return {
            prompt_id: family_named(entry.get("codec") or FIRST).conditioning(
                prompt_id, entry["speaker"], entry["reply_text"],
                {name: tensors[f"{prompt_id}.{name}"] for name in entry["tensors"]}, entry.get("codec") or FIRST)
            for prompt_id, entry in entries.items()
        }
    except (ValueError, OSError, KeyError) as error:
        raise DataError(f"a conditioning shard cannot be read ({error})", where=str(shard), fix=_FIX) from error
