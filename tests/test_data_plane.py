"""What grows with a run's prompts is read part by part: the same results as all at once, and memory that stays."""

from __future__ import annotations

import json
import random
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pipeline_helpers import write_world
from test_pairs import candidate, prompt, score
from train_helpers import losses, make_config, make_generator, make_pairs, weights

from talker_rl import cli
from talker_rl.base.disk import file_hash, read_json, write_json
from talker_rl.base.errors import DataError, StageError
from talker_rl.base.lazy import Lazy, picked
from talker_rl.data.config import PairsConfig
from talker_rl.data.pairs import PAIRS_HASH, PairSelection, explain_pairs, pairs_hash
from talker_rl.records.candidate import Candidate
from talker_rl.records.pair import Pair
from talker_rl.records.rows import to_row
from talker_rl.speech.cache import ConditioningCache
from talker_rl.store import sorting
from talker_rl.store.shards import ShardFolder, chunks, schema_of, table_of
from talker_rl.train.run import train_variant


def many(prompts: int, each: int = 4, seed: int = 0) -> list[tuple[list[Any], list[Any], list[Any]]]:
    """Parts of three prompts, their candidates and their scores, in no order of their ids."""
    draw = random.Random(seed)
    names = [f"p{i:03d}" for i in range(prompts)]
    draw.shuffle(names)
    parts = []
    for part in chunks(names, 3):
        candidates = [candidate(name, k, draw.randint(5, 40), draw.choice(["eos", "eos", "eos", "max_tokens"]),
                                [draw.randrange(99) for _ in range(draw.randint(5, 40))])
                      for name in part for k in range(each)]
        scores = [score(c.prompt_id, int(c.candidate_id[-1]), draw.choice([None, *[draw.random()] * 9]))
                  for c in candidates]
        parts.append(([prompt(name) for name in part], candidates, scores))
    return parts


@pytest.mark.parametrize("settings", [
    {}, {"strategy": "all_margin", "max_pairs_per_prompt": 5}, {"length_normalized": "residual"},
    {"length_normalized": "per_second"}, {"strategy": "all_margin", "balance_lengths": 4}, {"mislabeled": 0.3},
    {"strategy": "best_vs_random", "balance_lengths": 3, "mislabeled": 0.5, "length_normalized": "residual"},
])
def test_pairs_of_parts_are_those_of_the_whole(settings: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sorting, "RANKS", 4)
    monkeypatch.setattr(sorting, "SHARD", 7)
    cfg, parts = PairsConfig(margin=0.05, **settings), many(41)
    parts[3][1].clear()  # prompts without candidates
    whole, reasons = explain_pairs(*([row for part in parts for row in part[i]] for i in range(3)), cfg)
    assert len(whole) > 10 and reasons

    selection = PairSelection(cfg)
    for part in parts if selection.looks else ():
        selection.look(*part)
    rank = {name: i for i, name in enumerate(sorted(p.prompt_id for part in parts for p in part[0]))}
    folder = ShardFolder(tmp_path / "pairs", "key")
    with sorting.Sorted(Pair, lambda pair: rank[pair.prompt_id], len(rank), folder.path) as chosen:
        for part in parts:
            chosen.add(selection.choose(*part))
        assert len(list(folder.path.glob(".sorting-*/*.arrow"))) > 3, "more than is in memory at a time"
        assert sorting.write(folder, (selection.finish(part) for part in chosen.parts()), Pair) == len(whole)
    assert len(folder) == -(-len(whole) // 7) and not list(folder.path.glob(".sorting-*"))
    assert folder.read_all(Pair) == whole and list(folder.records(Pair)) == whole
    assert selection.reason_of == reasons


@pytest.fixture
def stored(tmp_path: Path) -> tuple[ShardFolder, list[Candidate]]:
    """A folder of unequal shards, one of them empty."""
    rows = [row for part in many(60) for row in part[1]]
    folder = ShardFolder(tmp_path / "rollouts", "key")
    for i, (start, end) in enumerate([(0, 130), (130, 131), (131, 131), (131, len(rows))]):
        folder.write(i, rows[start:end], Candidate)
    return folder, rows


def test_records_are_read_where_they_are_looked_at(stored: tuple[ShardFolder, list[Candidate]]) -> None:
    folder, rows = stored
    found = folder.records(Candidate)
    assert len(found) == len(rows) and list(found) == rows
    for i in random.Random(0).sample(range(len(rows)), 60):
        assert found[i] == rows[i] and found[i - len(rows)] == rows[i]
    assert list(found[10:200:7]) == rows[10:200:7] and found[:3] == rows[:3]
    assert found.column("seed") == [c.seed for c in rows]
    assert list(folder.records(Candidate, 3)) == rows[131:]
    with pytest.raises(IndexError):
        found[len(rows)]
    assert picked(rows, [3, 1])[::-1] == [rows[1], rows[3]] and not Lazy(0, lambda i: i)


def test_of_others_nothing_is_made(stored: tuple[ShardFolder, list[Candidate]]) -> None:
    folder, rows = stored
    wanted = {rows[i].candidate_id for i in (0, 77, 130, 200)} | {"nobody"}
    assert folder.where("candidate_id", wanted, Candidate) == [c for c in rows if c.candidate_id in wanted]
    assert folder.where("candidate_id", (), Candidate) == []


def test_shards_of_earlier_versions_are_one_group(tmp_path: Path) -> None:
    rows = [row for part in many(60) for row in part[1]]
    folder = ShardFolder(tmp_path, "key")
    folder.write(0, rows, Candidate)
    pq.write_table(table_of([to_row(c) for c in rows], schema_of(Candidate)), tmp_path / folder.name(0))
    index = read_json(tmp_path / "index.json")
    index["shards"][folder.name(0)]["sha256"] = file_hash(tmp_path / folder.name(0))
    write_json(tmp_path / "index.json", index)
    again = ShardFolder(tmp_path)
    assert again.groups(0) == [len(rows)] and again.records(Candidate)[200] == rows[200]


def test_a_damaged_shard_is_told_before_a_record_of_it_is_used(stored: tuple[ShardFolder, list[Candidate]]) -> None:
    folder, _ = stored
    file = folder.path / folder.name(3)
    file.write_bytes(file.read_bytes()[:-9] + b"x" * 9)
    with pytest.raises(DataError, match="shard-00003.parquet is damaged"):
        ShardFolder(folder.path).records(Candidate)
    with pytest.raises(DataError, match="shard-00003.parquet is damaged"):
        ShardFolder(folder.path).where("candidate_id", ["p000-0"], Candidate)


def test_the_hash_of_pairs_knows_no_order_and_every_change() -> None:
    pairs, _ = make_pairs(8)
    known = pairs_hash(pairs)
    assert known.startswith(f"{PAIRS_HASH}8:") and pairs_hash(iter(pairs[::-1])) == known
    others = [pairs[1:], [*pairs, pairs[0]], [replace(pairs[0], margin=9.0), *pairs[1:]],
              [replace(pairs[0], chosen=pairs[0].rejected, rejected=pairs[0].chosen), *pairs[1:]]]
    assert len({known, *map(pairs_hash, others)}) == 5


def test_training_reads_its_pairs_from_the_shards(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sorting, "SHARD", 3)
    pairs, conditionings = make_pairs(10)
    folder = ShardFolder(tmp_path / "pairs", "key")
    sorting.write(folder, [pairs], Pair)
    ConditioningCache(tmp_path / "conditioning").put([(c, "key") for c in conditionings])
    known = ConditioningCache(tmp_path / "conditioning", strict=True).mapping([p.prompt_id for p in pairs])
    made = {}
    for name, records, given in (("held", pairs, conditionings), ("read", folder.records(Pair), known)):
        settings = {"args": {"max_steps": 4, "learning_rate": 1e-2, "max_length": 9}}
        made[name] = train_variant(make_generator(), records, given, make_config(**settings), tmp_path / name,
                                   eval_pairs=picked(records, [0, 1]), progress=False)
    assert made["held"]["data"] == made["read"]["data"] and losses(tmp_path / "held") == losses(tmp_path / "read")
    assert made["held"]["data"]["length_limit"]["rejected_cut"] > 0
    one, two = weights(tmp_path / "held"), weights(tmp_path / "read")
    assert all((one[key] == two[key]).all() for key in one)


def test_a_folder_with_another_versions_hash_is_continued(tmp_path: Path) -> None:
    pairs, conditionings = make_pairs(6)

    def train(given: list[Pair]) -> Any:
        return train_variant(make_generator(), given, conditionings, make_config(args={"max_steps": 2}),
                             tmp_path / "v", progress=False)

    first = train(pairs)
    file = tmp_path / "v" / "variant.json"
    settings = read_json(file)
    write_json(file, {**settings, "pairs_hash": "0" * 64})
    assert train(pairs) == first
    write_json(file, settings)
    with pytest.raises(StageError, match="pairs_hash"):
        train(pairs[1:])


def test_a_run_whose_parts_are_small_gives_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    made = {}
    for name, shard, ranks in (("large", 2048, 1024), ("small", 2, 1)):
        monkeypatch.setattr(sorting, "SHARD", shard)
        monkeypatch.setattr(sorting, "RANKS", ranks)
        config = write_world(tmp_path / name)
        run = tmp_path / name / "run"
        assert cli.main(["run", "-c", str(config), "--run-dir", str(run), "-q", "--debug"]) == 0
        folder = ShardFolder(run / "pairs")
        data = pq.read_table(run / "pairs" / "data" / "train-00000-of-00001.parquet").to_pylist()
        made[name] = (folder.read_all(Pair), data, (run / "round1/train/default/adapter_model.safetensors").read_bytes()
                      if (run / "round1/train/default/adapter_model.safetensors").exists() else b"",
                      json.loads((run / "manifest.json").read_text())["stages"]["pairs"]["counts"])
        assert len(folder) == -(-len(made[name][0]) // shard)
        for verb in ("diagnose", "report", "anatomy"):
            assert cli.main([verb, "--run-dir", str(run)]) == 0
    assert made["large"] == made["small"] and len(made["large"][0]) > 2


def test_conditioning_is_made_where_it_is_looked_at(tmp_path: Path) -> None:
    _, conditionings = make_pairs(6)
    cache = ConditioningCache(tmp_path)
    cache.put([(c, "key") for c in conditionings[:2]])
    cache.put([(c, "key") for c in conditionings[2:]])
    names = [c.prompt_id for c in conditionings]
    assert ConditioningCache.opened(tmp_path) is ConditioningCache.opened(tmp_path)
    found = ConditioningCache.opened(tmp_path).mapping(names[::-1])
    assert list(found) == list(dict.fromkeys(names[::-1])) and "nobody" not in found
    for one in conditionings:
        assert all((value == one.tensors()[key]).all() for key, value in found[one.prompt_id].tensors().items())
    with pytest.raises(KeyError):
        found["nobody"]
    with pytest.raises(DataError, match="1 prompt has no conditioning, the first is nobody"):
        cache.mapping([*names, "nobody"])
    shard = next(tmp_path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-4] + b"\x01\x02\x03\x04")
    with pytest.raises(DataError, match="is damaged: its content is not what was written"):
        ConditioningCache(tmp_path, strict=True).mapping(names)



def test_memory_does_not_grow_with_the_candidates(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sorting, "SHARD", 16)
    monkeypatch.setattr(sorting, "RANKS", 8)

    def peak(prompts: int) -> int:
        folder = ShardFolder(tmp_path / str(prompts), "key")
        names = [f"p{i:05d}" for i in range(prompts)]
        rank = {name: i for i, name in enumerate(names)}
        selection = PairSelection(PairsConfig(margin=0.05, length_normalized="per_second"))
        tracemalloc.start()
        with sorting.Sorted(Pair, lambda pair: rank[pair.prompt_id], prompts, folder.path) as chosen:
            for at in range(0, prompts, 3):
                draw = random.Random(at)
                some = names[at : at + 3]
                candidates = [candidate(n, k, 0, codes=[draw.randrange(300, 999) for _ in range(400)])
                              for n in some for k in range(4)]
                chosen.add(selection.choose([prompt(n) for n in some], candidates,
                                            [score(c.prompt_id, int(c.candidate_id[-1]), draw.random())
                                             for c in candidates]))
            sorting.write(folder, (selection.finish(part) for part in chosen.parts()), Pair)
        records = folder.records(Pair)
        assert sum(pair.chosen.steps for pair in records) > 0
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few, more = peak(60), peak(360)
    assert more < 2 * few, f"{few} bytes for 60 prompts, {more} for six times as many"
