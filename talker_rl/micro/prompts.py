"""The micro world's prompt sets: train, dev and eval, disjoint by text from each other and from Talker training."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from talker_rl.micro.lexicon import VOICES, Clause, random_sentence, sentence_lang, sentence_text
from talker_rl.records.prompt import Prompt

SPLITS = {"train": 2000, "dev": 120, "eval": 200}
PROMPT_SEED = 7_000_001


@lru_cache(maxsize=1)
def prompt_sentences(seed: int = PROMPT_SEED) -> dict[str, list[tuple[Clause, ...]]]:
    """Split -> distinct sentences; a sentence is in one split only. The same for every build."""
    rng = random.Random(seed)
    seen: set[str] = set()
    splits: dict[str, list[tuple[Clause, ...]]] = {}
    for name, count in SPLITS.items():
        rows: list[tuple[Clause, ...]] = []
        while len(rows) < count:
            clauses = random_sentence(rng)
            text = sentence_text(clauses)
            if text not in seen:
                seen.add(text)
                rows.append(tuple(clauses))
        splits[name] = rows
    return splits


@lru_cache(maxsize=1)
def prompt_texts() -> frozenset[str]:
    """Every text of every split: what Talker training must not see."""
    return frozenset(sentence_text(list(c)) for rows in prompt_sentences().values() for c in rows)


def make_prompts(split: str) -> list[Prompt]:
    """Prompts of one split, speakers alternating, ``reference_seconds`` from a clean rendering."""
    from talker_rl.micro.corpus import RenderRequest, render_all

    names = sorted(VOICES)
    sentences = prompt_sentences()[split]
    speakers = [names[i % len(names)] for i in range(len(sentences))]
    requests = [RenderRequest(list(c), s) for c, s in zip(sentences, speakers, strict=True)]
    prompts = []
    for clauses, speaker, rendered in zip(sentences, speakers, render_all(requests), strict=True):
        prompts.append(
            Prompt(
                text=sentence_text(list(clauses)),
                speaker=speaker,
                lang=sentence_lang(list(clauses)),
                reference_seconds=round(len(rendered.audio) / 24_000, 4),
            )
        )
    return prompts


def write_prompts(out: Path) -> None:
    """Write ``<split>.jsonl`` files, one prompt a line, to the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        rows = (json.dumps(asdict(p), ensure_ascii=False) for p in make_prompts(split))
        (out / f"{split}.jsonl").write_text("".join(row + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write_prompts(Path("build/micro/prompts"))
