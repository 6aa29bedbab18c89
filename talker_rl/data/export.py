"""Pairs as a Hugging Face preference dataset: Parquet and a dataset card that `datasets.load_dataset(folder)` loads."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError
from .pairs import REASONS, pairs_hash
from .records import Pair, Prompt, from_row, to_row

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
    ]
)
"""`prompt` = the reply text to speak; `chosen`, `rejected` = codec ids, the stop id last; lengths in codes."""

_DATA = Path("data") / "train-00000-of-00001.parquet"


def export_pairs(
    pairs: Sequence[Pair],
    folder: str | Path,
    *,
    prompts: Sequence[Prompt] = (),
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
    folder = Path(folder)
    (folder / _DATA).parent.mkdir(parents=True, exist_ok=True)
    messages = {p.prompt_id: json.dumps(p.messages, ensure_ascii=False) for p in prompts if p.messages is not None}
    rows = []
    for pair in pairs:
        row = to_row(pair)
        row |= {"prompt": pair.text, "messages": messages.get(pair.prompt_id)}
        row |= {"chosen_length": len(pair.chosen), "rejected_length": len(pair.rejected)}
        rows.append(row)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    target = folder / _DATA
    temporary = target.with_suffix(".tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, target)
    card = folder / "README.md.tmp"
    card.write_text(_card(pairs, reasons or {}, source or {}), encoding="utf-8")
    os.replace(card, folder / "README.md")
    return folder


def read_pairs(folder: str | Path) -> list[Pair]:
    """The pairs that `export_pairs` wrote.

    Raises:
        DataError: the folder holds no readable pairs.
    """
    path = Path(folder) / _DATA
    try:
        rows = pq.read_table(path).to_pylist()
    except FileNotFoundError:
        raise DataError("no pairs here", where=str(path), fix="run the pairs stage first") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"the pairs cannot be read: {error}", where=str(path), fix="delete the file and run the pairs stage again"
        ) from None
    return [from_row(Pair, row) for row in rows]


def _card(pairs: Sequence[Pair], reasons: Mapping[str, int], source: Mapping[str, Any]) -> str:
    """The dataset card: what the columns mean, and the numbers one wants before training on them."""
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: data/train-*.parquet",
        "task_categories:",
        "- text-to-speech",
        "tags:",
        "- preference",
        "- talker-rl",
        "---",
        "",
        "# Preference pairs for a Talker",
        "",
        "`prompt` (= `text`) is the reply text, `chosen` and `rejected` are its codec ids (one code is 20 ms; the stop",
        "id comes last where the sequence ended by itself). `*_reward` are the scores, `margin` is their difference in",
        "the unit that ranked them, `*_seconds` leave the stop out, `*_length` count it. `messages` is the chat before",
        "the reply as JSON, null for the default system prompt and instruction.",
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
    if reasons:
        lines += ["", "Prompts without a pair:", ""]
        lines += [f"- {count} x `{reason}`: {REASONS.get(reason, reason)}" for reason, count in sorted(reasons.items())]
    return "\n".join(lines) + "\n"
