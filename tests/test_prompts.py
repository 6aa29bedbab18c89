"""Prompt sets: three file kinds, counted skips, clear errors, disjoint sets."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from talker_rl.base.errors import PromptError
from talker_rl.data.prompts import check_disjoint, read_prompts
from talker_rl.data.texts import check_text, detect_lang, is_other_script, text_key
from talker_rl.records.prompt import Prompt
from talker_rl.records.rows import to_row
from talker_rl.store.shards import ShardFolder


@pytest.mark.parametrize(
    ("text", "lang"),
    [("Hello there.", "en"), ("你好，世界。", "zh"), ("我爱 coffee。", "mixed"), ("42", "en"), ("Ｈｅｌｌｏ", "en"),
     ("㐀", "zh"), ("𠮷", "zh")],
)
def test_language_by_script(text: str, lang: str) -> None:
    assert detect_lang(text) == lang
    assert not is_other_script(text)


@pytest.mark.parametrize(
    ("text", "other"),
    [("こんにちは", True), ("政府は新しい経済対策を発表した。", True), ("안녕", True), ("Привет, мир", True),
     ("مرحبا", True), ("नमस्ते", True), ("Ça va, où es-tu?", False), ("Tiếng Việt", False),
     ("鲜の每日大药房连锁店上海", False), ("3.14", False), ("The letter π", False)],
)
def test_other_scripts(text: str, other: bool) -> None:
    assert is_other_script(text) == other


@pytest.mark.parametrize("text", ["", "   ", "...", "?! …", "—", "a\x00b", "one \ud800", None, 3, ["a"]])
def test_what_cannot_be_spoken_is_an_error_when_given_singly(text: object) -> None:
    with pytest.raises(PromptError, match="cannot be spoken"):
        check_text(text)
    assert check_text("one.\r\ntwo. ") == "one.\ntwo."


def test_a_text_file_skips_and_counts_by_line(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_bytes("﻿one two.\n\n...\nred blue.\nONE  two.\n".encode() + b"\xff\xfe broken\n" + "你好。\n".encode())
    found = read_prompts(str(file), speakers=["Ann", "Bob"])
    assert [p.text for p in found.prompts] == ["one two.", "red blue.", "你好。"]
    assert [p.lang for p in found.prompts] == ["en", "en", "zh"]
    assert {p.speaker for p in found.prompts} == {"Ann"}
    assert [(s.line, s.reason) for s in found.skips] == [(2, "empty"), (3, "unspeakable"), (5, "duplicate"),
                                                       (6, "not_utf8")]
    assert found.counts() == {"empty": 1, "unspeakable": 1, "duplicate": 1, "not_utf8": 1}
    assert any("lines 3 of" in line for line in found.describe_skips())


def test_jsonl_holds_the_fields_of_a_prompt_or_a_bare_text(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    rows = [{"text": "one.", "speaker": "Bob", "reference_seconds": 1.5}, "two.", {"text": 7}, {"text": "three."}]
    file.write_text("\n".join(json.dumps(r) for r in rows) + "\n{broken\n")
    found = read_prompts(str(file), speakers=["Ann", "Bob"], default_speaker="Ann")
    assert [(p.text, p.speaker, p.reference_seconds) for p in found.prompts] == [
        ("one.", "Bob", 1.5), ("two.", "Ann", None), ("three.", "Ann", None)]
    assert found.counts() == {"not_text": 1, "not_json": 1}


def test_a_stated_limit_is_read_and_leaves_ids_and_hashes_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in ({"text": "one.", "max_seconds": 2}, {"text": "two."})))
    limited, free = read_prompts(str(file), default_speaker="Ann").prompts
    assert (limited.max_seconds, free.max_seconds) == (2, None)
    assert limited.prompt_id == Prompt(text="one.", speaker="Ann").prompt_id
    assert free.prompt_id == "d1bfb21c0d71b422"
    # what a shard is hashed by: without a limit no trace of it, and both kinds survive the way to disk and back
    assert set(to_row(free)) == {"text", "speaker", "lang", "messages", "reference_seconds", "prompt_id"}
    folder = ShardFolder(tmp_path / "prompts", "key")
    folder.write(0, [limited, free], Prompt)
    assert folder.read_all(Prompt) == [limited, free]
    for wrong in ("3", 0, -1.0, True, float("inf")):
        file.write_text(json.dumps({"text": "one.", "max_seconds": wrong}))
        with pytest.raises(PromptError, match="max_seconds is not a positive number"):
            read_prompts(str(file))


def test_parquet_and_jsonl_give_the_same_prompts(tmp_path: Path) -> None:
    rows = [{"text": "one two.", "speaker": "Ann", "messages": None}, {"text": "red.", "speaker": "Bob",
            "messages": json.dumps([{"role": "user", "content": "hi"}])}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    (tmp_path / "p.jsonl").write_text("\n".join(
        json.dumps({**r, "messages": json.loads(r["messages"]) if r["messages"] else None}) for r in rows))
    first, second = (read_prompts(str(tmp_path / f"p.{kind}")).prompts for kind in ("parquet", "jsonl"))
    assert first == second
    assert first[1].messages == [{"role": "user", "content": "hi"}]


def test_a_limit_takes_the_first_usable_ones(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("...\none.\ntwo.\nthree.\n")
    assert [p.text for p in read_prompts(str(tmp_path / "p.txt"), limit=2).prompts] == ["one.", "two."]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.txt", "...\n\n", "No prompt in this file can be used"),
        ("p.txt", "", "No prompt in this file can be used"),
        ("p.docx", "a\n", "Unknown kind"),
        ("p.csv", "sentence,lang\none.,en\n", "no column `text`"),
        ("p.csv", "text,lang\none, two.,en\n", "3 cells, the header 2"),
        ("p.tsv", "text\treference_seconds\none.\tlong\n", "reference_seconds is not a positive number: 'long'"),
        ("p.jsonl", '{"text": "one.", "provenance": "me"}\n', "provenance is not a mapping"),
        ("p.jsonl", '{"text": "one.", "speaker": "Carl"}\n', "Unknown speaker 'Carl'"),
        ("p.jsonl", '{"text": "one.", "voice": "Ann"}\n', "Unknown field 'voice'"),
        ("p.jsonl", '{"text": "one.", "lang": "fr"}\n', "Unknown language"),
        ("p.jsonl", '{"text": "one.", "messages": "hello"}\n', "messages"),
        ("p.jsonl", '{"text": "one.", "reference_seconds": -1}\n', "reference_seconds"),
        ("p.parquet", "not parquet", "Cannot read"),
        ("p.csv", "text;speaker\none.;Ann\n", "separated by ';' (semicolons)"),
        ("p.csv", "\ufefftext\tspeaker\none.\tAnn\n", "separated by '\\t' (tabs)"),
        ("p.tsv", "text,speaker\none.,Ann\n", "separated by ',' (commas)"),
        ("p.csv", "Good morning to all.\nGood night.\n", "the first line must name the columns"),
        ("p.jsonl", '{"prompt": "one.", "chosen": [1], "rejected": [2]}\n', "have fields: prompt, chosen, rejected"),
        ("p.jsonl", '{"prompt": "one."}\n', "prompts.columns.text=prompt"),
        ("p.jsonl", '[{"text":\n"one.}\n', "not JSON"),
        ("p.jsonl", 'one.\ntwo.\n', "a file of plain texts is called .txt"),
        ("p.txt", "\u200b\n\ufeff\n\u00ad\n", "the text is empty"),
    ],
)
def test_files_that_cannot_be_used_name_the_place(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(PromptError) as caught:
        read_prompts(str(tmp_path / name), speakers=["Ann", "Bob"])
    assert told in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    if "Carl" in content:
        assert "Ann, Bob" in str(caught.value) and "line 1" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no such prompt file"):
        read_prompts(str(tmp_path / "none.txt"))


def test_sets_that_share_a_text_are_refused() -> None:
    def prompts(*texts: str, speaker: str = "Ann") -> list[Prompt]:
        return [Prompt(text=t, speaker=speaker) for t in texts]

    check_disjoint({"train": prompts("one.", "two."), "dev": prompts("three."), "eval": prompts("four.")})
    with pytest.raises(PromptError, match="train and eval share 1 text"):
        check_disjoint({"train": prompts("one.", "Two."), "dev": prompts("three."),
                        "eval": prompts("two.", speaker="Bob")})
    with pytest.raises(PromptError, match="1 prompt id occurs twice"):
        check_disjoint({"train": [Prompt(text="a", speaker="Ann", prompt_id="x"),
                                  Prompt(text="b", speaker="Ann", prompt_id="x")]})
    assert text_key("Ｏne   TWO") == text_key("one two")


@pytest.mark.parametrize("mark", ["\ufeff", "\u200b", "\u00ad", "\u2060", "\u200e", "\ufe0f"])
def test_what_nobody_sees_is_taken_out_and_told(tmp_path: Path, mark: str) -> None:
    (tmp_path / "p.txt").write_text(f"{mark}one t{mark}wo.\none two.\nthree.\n", encoding="utf-8")
    found = read_prompts(str(tmp_path / "p.txt"), default_speaker="Ann")
    assert [p.text for p in found.prompts] == ["one two.", "three."]
    assert found.counts() == {"duplicate": 1} and found.invisible == 1
    assert any("1 text of" in line and "invisible characters" in line for line in found.describe())
    plain = Prompt(text="one two.", speaker="Ann")
    assert found.prompts[0].prompt_id == plain.prompt_id


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("one\u200b two.", "one two"), ("“One” two!", "one two."), ("one, two", "one two"), ("one — two.", "one-two"),
        ("ｏｎｅ two", "one two"), ("苹果，老师。", "苹果老师"), ("it’s here", "It's here."), ("one… two", "one two"),
    ],
)
def test_a_text_of_train_is_found_in_eval_however_it_is_written(train: str, held_out: str) -> None:
    with pytest.raises(PromptError, match="train and eval share 1 text"):
        check_disjoint({"train": [Prompt(text=train, speaker="Ann")], "dev": [],
                        "eval": [Prompt(text=held_out, speaker="Ann")]})
