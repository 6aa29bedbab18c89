"""Pairs and completions as Hugging Face datasets: Parquet and a dataset card that `datasets.load_dataset(folder)`
loads."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from talker_rl.base.disk import atomic_write, replacing
from talker_rl.base.seals import seal
from talker_rl.data.completions import REASONS as NO_COMPLETION
from talker_rl.data.pairs import REASONS, pairs_hash
from talker_rl.records.messages import without_folders
from talker_rl.records.pair import Completion, Pair
from talker_rl.records.prompt import Prompt
from talker_rl.records.rows import to_row

SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("chosen", pa.list_(pa.int32())),
        ("rejected", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("speaker", pa.string()),
        ("messages", pa.string()),
        ("prompt_id", pa.string()),
        ("pair_id", pa.string()),
        ("chosen_id", pa.string()),
        ("rejected_id", pa.string()),
        ("chosen_reward", pa.float64()),
        ("rejected_reward", pa.float64()),
        ("margin", pa.float64()),
        ("chosen_seconds", pa.float64()),
        ("rejected_seconds", pa.float64()),
        ("chosen_length", pa.int32()),
        ("rejected_length", pa.int32()),
        ("codec", pa.string()),
    ]
)
"""`prompt` = the reply text to speak; `chosen`, `rejected` = codec ids, the stop id last; lengths in codes."""

COMPLETION_SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("completion", pa.list_(pa.int32())),
        ("speaker", pa.string()),
        ("prompt_id", pa.string()),
        ("completion_id", pa.string()),
        ("origin", pa.string()),
        ("reward", pa.float64()),
        ("rank", pa.int32()),
        ("best_of", pa.int32()),
        ("seconds", pa.float64()),
        ("codec", pa.string()),
    ]
)
"""TRL's prompt-completion data: `completion` = codec ids, the stop id last."""

_DATA = Path("data") / "train-00000-of-00001.parquet"
_AT_ONCE = 1024
"""Rows that are in memory at a time."""


def export_pairs(
    pairs: Sequence[Pair],
    folder: str | Path,
    *,
    prompts: Iterable[Prompt] = (),
    reasons: Mapping[str, int] | None = None,
    source: Mapping[str, Any] | None = None,
) -> Path:
    """Write `folder/data/train-*.parquet` and `folder/README.md`; both appear whole or not at all.

    Args:
        pairs: what to write, in the order of the rows.
        prompts: gives the `messages` column; pairs of unknown prompts get null.
        reasons: prompts without a pair by reason, for the card.
        source: facts for the card (model hash, reward, run), as key and value.

    Returns: the folder.
    """
    messages = {p.prompt_id: json.dumps(without_folders(p.messages), ensure_ascii=False)
                for p in prompts if p.messages is not None}
    rows = ({
        **to_row(pair), "prompt": pair.text, "messages": messages.get(pair.prompt_id),
        "chosen_length": len(pair.chosen.ids), "rejected_length": len(pair.rejected.ids)} for pair in pairs)
    return _write(Path(folder), rows, SCHEMA, _card(pairs, reasons or {}, source or {}))


def export_completions(
    completions: Sequence[Completion], folder: str | Path, *, reasons: Mapping[str, int] | None = None,
    source: Mapping[str, Any] | None = None,
) -> Path:
    """Like `export_pairs`, of completions to imitate."""
    rows = (to_row(c) | {"prompt": c.text, "completion": c.speech.ids} for c in completions)
    rewards = [c.reward for c in completions if c.reward is not None]
    lines = [
        *_head("supervised"),
        "# Completions for a Talker to imitate",
        "",
        "`prompt` is the reply text, `completion` its codec ids (of `codec`; the stop id comes last). `origin`",
        "is the candidate, or the file and row, that it was; `reward` its score, `rank` its place among the `best_of`",
        "finished candidates of its prompt.",
        "",
        f"- completions: {len(completions)} of {len({c.prompt_id for c in completions})} prompts",
        f"- seconds: {math.fsum(c.seconds for c in completions):.1f}",
        *([f"- mean reward: {statistics.fmean(rewards):.4f}"] if rewards else []),
        *(f"- {key}: {value}" for key, value in (source or {}).items()),
        *_left_out("Left out:", reasons or {}, NO_COMPLETION),
    ]
    return _write(Path(folder), rows, COMPLETION_SCHEMA, "\n".join(lines) + "\n")


def _write(folder: Path, rows: Iterator[dict[str, Any]], schema: pa.Schema, card: str) -> Path:
    """The rows and the card, each whole or not at all."""
    with replacing(folder / _DATA) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while some := list(islice(rows, _AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(some, schema=schema))
    seal((folder / _DATA).parent, [Path(_DATA).name])
    atomic_write(folder / "README.md", card)
    return folder


def _card(pairs: Sequence[Pair], reasons: Mapping[str, int], source: Mapping[str, Any]) -> str:
    """The dataset card: what the columns mean, and the numbers one wants before training on them."""
    lines = [
        *_head("preference"),
        "# Preference pairs for a Talker",
        "",
        "`prompt` (= `text`) is the reply text, `chosen` and `rejected` are its codec ids (of `codec`; the stop",
        "id comes last where the sequence ended by itself). `*_reward` are the scores, `margin` is their difference in",
        "the unit that ranked them, `*_seconds` leave the stop out, `*_length` count it. `messages` is the chat before",
        "the reply as JSON, null for the default system prompt and instruction; `sha256` says which files are meant.",
        "",
        f"- pairs: {len(pairs)} of {len({p.prompt_id for p in pairs})} prompts",
        f"- content hash: `{pairs_hash(pairs)}`",
    ]
    if pairs:
        shorter = statistics.fmean(
            float(p.chosen_seconds < p.rejected_seconds) + 0.5 * (p.chosen_seconds == p.rejected_seconds) for p in pairs
        )
        lines += [
            f"- mean margin: {statistics.fmean(p.margin for p in pairs):.4f}",
            f"- mean seconds: chosen {statistics.fmean(p.chosen_seconds for p in pairs):.3f}, "
            f"rejected {statistics.fmean(p.rejected_seconds for p in pairs):.3f}",
            f"- chosen is the shorter one: {shorter:.1%} (ties count half; far from 50 % means length bias)",
        ]
    lines += [f"- {key}: {value}" for key, value in source.items()]
    return "\n".join([*lines, *_left_out("Prompts without a pair:", reasons, REASONS)]) + "\n"


def _head(tag: str) -> list[str]:
    """The card's front matter."""
    return [
        "---", "configs:", "- config_name: default", "  data_files:", "  - split: train",
        "    path: data/train-*.parquet", "task_categories:", "- text-to-speech", "tags:", f"- {tag}", "- talker-rl",
        "---", "",
    ]  # fmt: skip


def _left_out(title: str, reasons: Mapping[str, int], texts: Mapping[str, str]) -> list[str]:
    if not reasons:
        return []
    lines = [f"- {count} x `{reason}`: {texts.get(reason, reason)}" for reason, count in sorted(reasons.items())]
    return ["", title, "", *lines]
