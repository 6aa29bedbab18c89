"""Prompts as people have them: tables, datasets, messages with files; long texts in pieces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from talker_rl.base.errors import PromptError
from talker_rl.config import load_config
from talker_rl.data.prompt_files import count_rows, parse_source
from talker_rl.data.prompts import PromptSet, check_disjoint, drop_shared_pieces, read_prompts
from talker_rl.records.messages import check_messages
from talker_rl.records.prompt import Prompt
from talker_rl.records.rows import from_row, to_row

TEXTS = ["one, two.", 'red "blue" green.', "你好，世界。"]


def texts(spec: object, **options: object) -> list[str]:
    return [p.text for p in read_prompts(str(spec), **options).prompts]  # type: ignore[arg-type]


def test_tables_give_the_same_texts_however_they_are_written(tmp_path: Path) -> None:
    rows = [{"sentence": t, "voice": v, "age": 3} for t, v in zip(TEXTS, ("Ann", "Bob", "Ann"), strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    for name, comma in (("p.csv", ","), ("p.tsv", "\t")):
        cells = [list(rows[0]), *(list(r.values()) for r in rows)]
        lines = [comma.join('"' + str(c).replace('"', '""') + '"' for c in row) for row in cells]
        (tmp_path / name).write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    for name in ("p.csv", "p.tsv", "p.parquet", "p.jsonl"):
        spec = str(tmp_path / name)
        found = read_prompts(spec, columns={"text": "sentence", "speaker": "voice"})
        assert [(p.text, p.speaker) for p in found.prompts] == list(zip(TEXTS, ("Ann", "Bob", "Ann"), strict=True))
        named = read_prompts(spec + "#sentence", default_speaker="Ann")
        assert [(p.text, p.speaker) for p in named.prompts] == [(t, "Ann") for t in TEXTS]
        assert named.unused == (() if name == "p.jsonl" else ("age", "voice"))
        assert count_rows(parse_source(spec)) == 3
    with pytest.raises(PromptError, match="prompts.columns.text=COLUMN"):
        read_prompts(str(tmp_path / "p.csv"))
    with pytest.raises(PromptError, match="Unknown field 'texts'"):
        read_prompts(str(tmp_path / "p.csv"), columns={"texts": "sentence"})


def test_a_cell_over_several_lines_keeps_the_count_of_lines(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('text,reference_seconds,speaker\n"one\ntwo",1.5,\n...,,\nthree.,,Carl\n')
    found = read_prompts(str(tmp_path / "p.csv"), default_speaker="Ann")
    assert [(p.text, p.reference_seconds, p.speaker) for p in found.prompts] == [("one\ntwo", 1.5, "Ann"),
                                                                               ("three.", None, "Carl")]
    assert [(s.line, s.reason) for s in found.skips] == [(4, "unspeakable")]
    with pytest.raises(PromptError, match="line 5"):
        read_prompts(str(tmp_path / "p.csv"), speakers=["Ann"])
    (tmp_path / "p.csv").write_bytes(b"text\none.\n\xff\xfe\n")
    with pytest.raises(PromptError, match="save it as UTF-8"):
        read_prompts(str(tmp_path / "p.csv"))


def test_datasets_of_the_hub_and_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    data = datasets.Dataset.from_dict({"sentence": TEXTS, "lang": ["anything"] * 3})
    datasets.DatasetDict({"train": data, "test": data.select([2])}).save_to_disk("saved")
    assert texts("saved:test#sentence") == TEXTS[2:]
    assert count_rows(parse_source("saved:train")) == 3
    for spec, told in (("saved", "several splits"), ("saved:dev", "no split 'dev'"), ("hf:", "names no hub dataset"),
                       ("hf:nobody/nothing", "Cannot load the dataset"), ("saved:train", "no column `text`")):
        with pytest.raises(PromptError, match=told):
            read_prompts(spec)
    folder = tmp_path / "owner" / "name"  # the same call takes a folder in the hub's layout, so no hub is needed
    folder.mkdir(parents=True)
    data.to_parquet(str(folder / "train.parquet"))
    data.select([0]).to_parquet(str(folder / "test.parquet"))
    assert texts("hf:owner/name#sentence") == TEXTS and count_rows(parse_source("hf:owner/name")) == 3
    assert texts("hf:owner/name:default:test#sentence") == TEXTS[:1]
    assert texts("hf:owner/name:train", columns={"text": "sentence"}, limit=1) == TEXTS[:1]


def test_what_a_specification_names(tmp_path: Path) -> None:
    found = parse_source("hf:owner/name@abc:zh:test#sentence")
    assert (found.name, found.revision, found.config, found.split, found.column) == ("owner/name", "abc", "zh", "test",
                                                                                   "sentence")
    odd = tmp_path / "a#b.txt"
    odd.write_text("one.")
    assert parse_source(str(odd)).path == odd and texts(odd) == ["one."]
    prompts = load_config([], ["prompts.columns.text=sentence", "prompts.max_words=30"]).prompts
    assert prompts.reading("dev") == {"spec": "micro:dev", "limit": None, "default_speaker": None, "max_chars": None,
                                      "columns": {"text": "sentence"}, "max_words": 30, "lang": None}


def test_files_in_messages_are_known_by_their_content(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.wav").write_bytes(b"sound")
        row = {"text": "one.", "speaker": "Ann", "messages": [
            {"role": "user", "content": [{"type": "audio", "audio": "x.wav"}, {"type": "text", "text": "?"}]}]}
        (tmp_path / folder / "p.jsonl").write_text(json.dumps(row))
    (first,), (second,) = (read_prompts(str(tmp_path / f / "p.jsonl")).prompts for f in ("a", "b"))
    assert first.prompt_id == second.prompt_id
    assert first.messages is not None and first.messages[0]["content"][0]["audio"] == str(tmp_path / "a" / "x.wav")
    assert from_row(Prompt, to_row(first)) == first
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "b" / "x.wav").write_bytes(b"other sound")
    (changed,) = read_prompts(str(tmp_path / "b" / "p.jsonl")).prompts
    assert changed.prompt_id != first.prompt_id
    (tmp_path / "b" / "x.wav").unlink()
    with pytest.raises(PromptError, match="no such audio file[\\s\\S]*line 1[\\s\\S]*x.wav"):
        read_prompts(str(tmp_path / "b" / "p.jsonl"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], "neither a text nor a list"),
        ([{"type": "sound", "audio": "x"}], "Not a part"),
        ([{"type": "audio"}], "Not a part"),
        ([{"type": "image", "image": "https://a/b.png"}], "holds no path"),
        ([{"type": "text", "text": 3}], "holds no text"),
    ],
)
def test_parts_that_are_none(content: object, told: str) -> None:
    with pytest.raises(PromptError, match=told):
        check_messages([{"role": "user", "content": content}], "here")


def test_text_parts_are_one_text_and_nulls_of_a_table_are_nothing() -> None:
    parts = [{"type": "text", "text": "a", "audio": None}, {"type": "text", "text": "b"}]
    assert check_messages([{"role": "user", "content": parts}], "here") == [{"role": "user", "content": "ab"}]


def test_long_texts_become_pieces_that_name_their_parent(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"text": "One two. Three four. Five.", "speaker": "Ann",
                                                  "reference_seconds": 3.0, "category": "c"}))
    whole = read_prompts(str(tmp_path / "p.jsonl")).prompts[0]
    found = read_prompts(str(tmp_path / "p.jsonl"), max_words=3)
    assert [(p.text, p.prompt_id, p.reference_seconds, p.category) for p in found.prompts] == [
        ("One two.", f"{whole.prompt_id}_1", None, "c"), ("Three four. Five.", f"{whole.prompt_id}_2", None, "c")]
    assert found.split == 1 and "1 long text of" in found.describe()[0]
    assert texts(tmp_path / "p.jsonl", max_words=3, limit=1) == ["One two."]
    assert texts(tmp_path / "p.jsonl", max_chars=100) == [whole.text]
    sets = {"train": found, "eval": PromptSet("eval", [Prompt("one two.", "Ann")])}
    assert drop_shared_pieces(sets) == 1 and [p.text for p in sets["train"].prompts] == ["Three four. Five."]
    check_disjoint({name: s.prompts for name, s in sets.items()})
    (tmp_path / "own.jsonl").write_text(json.dumps({"text": "One two.", "speaker": "Ann", "prompt_id": "x_1"}))
    own = {"train": read_prompts(str(tmp_path / "own.jsonl"), max_words=3), "eval": sets["eval"]}
    assert drop_shared_pieces(own) == 0, "an id of the user's own that ends like a piece's"
    with pytest.raises(PromptError, match="share 1 text"):
        check_disjoint({name: s.prompts for name, s in own.items()})
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "One two. One two.", "speaker": "Ann"}))
    with pytest.raises(PromptError, match="Every piece of prompts.train"):
        drop_shared_pieces({"train": read_prompts(str(tmp_path / "one.jsonl"), max_words=2), "eval": sets["eval"]})


def test_ids_of_a_table_may_be_numbers_and_nothing_else_but_texts(tmp_path: Path) -> None:
    (tmp_path / "n.jsonl").write_text('{"text": "One.", "prompt_id": 0}\n{"text": "Two.", "prompt_id": "b"}\n')
    assert [p.prompt_id for p in read_prompts(str(tmp_path / "n.jsonl"), default_speaker="Ann").prompts] == ["0", "b"]
    (tmp_path / "n.jsonl").write_text('{"text": "One.", "prompt_id": [1]}\n')
    with pytest.raises(PromptError, match="prompt_id"):
        read_prompts(str(tmp_path / "n.jsonl"), default_speaker="Ann")
