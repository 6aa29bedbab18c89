"""Prompt files as they go wrong: ids, quotes, encodings, line breaks, scripts; each told with its line and the fix."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from talker_rl.base.errors import ConfigError, DataError, PromptError
from talker_rl.config import load_config
from talker_rl.data.completions import import_completions
from talker_rl.data.prompt_files import count_rows, parse_source
from talker_rl.data.prompts import read_prompts
from talker_rl.records.prompt import Prompt


def texts(file: Path, **options: object) -> list[str]:
    return [p.text for p in read_prompts(str(file), **options).prompts]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "prompt_id",
    ["../../escape", "spk1/utt1", "a\\b", "..", ".hidden", "", " ", "a*", "a?", "a[0]", "c:a", 'a"b', "a<b", "a>b",
     "a|b",
     "a\x00", "a\nb", "a\u2028b", "\ud800", "é" * 101],
)
def test_an_id_that_is_no_file_name_is_refused_with_its_line(tmp_path: Path, prompt_id: str) -> None:
    file = tmp_path / "n.jsonl"
    file.write_text('{"text": "Zero."}\n' + json.dumps({"text": "One.", "prompt_id": prompt_id}))
    with pytest.raises(PromptError, match=r"prompt_id[\s\S]*line 2[\s\S]*fix") as caught:
        read_prompts(str(file), default_speaker="Ann")
    str(caught.value).encode()  # can be printed
    file.write_text(json.dumps({"text": "One.", "prompt_id": "é" * 100}))
    assert read_prompts(str(file)).prompts[0].prompt_id == "é" * 100


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.csv", 'text\nFirst.\n"Second, unclosed.\nThird.\n', r"line 3 to 4[\s\S]*write it as CSV"),
        ("p.csv", 'text,speaker\nFirst.,B\n"Hello" she said,A\n', r"line 3\n[\s\S]*doubled"),
        ("p.tsv", 'path\ttext\na\tFirst.\nb\t"Hello" she said.\n', r"line 3\n[\s\S]*csv\.QUOTE_NONE"),
        ("p.csv", 'text,lang,"a"b\nFirst.,en,x\n', "line 1\n"),
        ("p.csv", "text,a,text\nFirst.,b,c\n", "2 columns named `text`"),
        ("p.txt#text", "First.\n", "no columns, and #text"),
        ("p.lst#text", "a|First.\n", "no columns, and #text"),
    ],
)
def test_tables_that_would_be_read_wrongly_are_refused(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name.partition("#")[0]).write_text(content)
    with pytest.raises(PromptError, match=told):
        read_prompts(str(tmp_path / name))


def test_tables_that_can_be_read_are(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('text,a,a\n"""Hello,"" she said.",1,2\nHe said "no".,1,2\n')
    assert texts(tmp_path / "p.csv") == ['"Hello," she said.', 'He said "no".'], "nobody reads the columns named alike"
    limit = csv.field_size_limit()
    (tmp_path / "p.csv").write_text("text\n" + "one " * 50_000 + "\ntwo.\n")
    assert [len(t) for t in texts(tmp_path / "p.csv")] == [199_999, 4] and csv.field_size_limit() == limit
    assert count_rows(parse_source(str(tmp_path / "p.csv"))) == 2
    pq.write_table(pa.table([["one."], ["two."]], names=["text", "text"]), tmp_path / "p.parquet")
    with pytest.raises(PromptError, match="2 columns named `text`"):
        read_prompts(str(tmp_path / "p.parquet"))
    none = pa.array([[]], pa.list_(pa.string()))
    pq.write_table(pa.table({"text": ["one."], "messages": none}), tmp_path / "p.parquet")
    (tmp_path / "p.jsonl").write_text('{"text": "one.", "messages": "[]"}')
    for name in ("p.parquet", "p.jsonl"):
        assert read_prompts(str(tmp_path / name)).prompts[0].messages is None


def test_every_kind_of_line_break_is_one_and_other_control_characters_have_their_reason(tmp_path: Path) -> None:
    breaks = ["\r\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"]
    rows = [{"text": f"Line {i} one.{mark}Line two"} for i, mark in enumerate(breaks)]
    file = tmp_path / "p.jsonl"
    bad = [{"text": "a\x00b"}, {"text": "a\ud800b"}, {"text": "..."}]
    file.write_text("\n".join(json.dumps(row) for row in rows + bad))
    found = read_prompts(str(file))
    assert [p.text for p in found.prompts] == [f"Line {i} one.\nLine two" for i in range(len(breaks))]
    assert [(s.line, s.reason) for s in found.skips] == [(8, "control"), (9, "control"), (10, "unspeakable")]
    assert texts(file, max_words=3, limit=2) == ["Line 0 one.", "Line two"]
    file.write_bytes("\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
    assert texts(file) == [p.text for p in found.prompts], "lines of a file end at its newlines alone"
    codes = [{**row, "codes": [1, 2, i, 8294]} for i, row in enumerate(rows)]
    file.write_bytes("\n".join(json.dumps(row, ensure_ascii=False) for row in codes).encode())
    assert len(import_completions(file, found.prompts)[0]) == len(rows), "the same texts, given with their codes"


def test_ids_of_given_codes_may_be_numbers_and_other_things_are_none(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"prompt_id": 7, "codes": [1, 8294]}\n')
    (made,), _ = import_completions(tmp_path / "c.jsonl", [Prompt("One.", "Ann", prompt_id="7")])
    assert made.prompt_id == "7"
    for line in ('{"prompt_id": ["7"], "codes": [1, 8294]}', "[" * 100_000):
        (tmp_path / "c.jsonl").write_text(line)
        with pytest.raises(DataError):
            import_completions(tmp_path / "c.jsonl", [Prompt("One.", "Ann", prompt_id="7")])


def test_what_no_encoding_file_system_or_parser_takes_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"

    def told(row: object) -> str:
        file.write_text('{"text": "one."}\n' + (row if isinstance(row, str) else json.dumps(row)))
        with pytest.raises(PromptError, match="line 2") as caught:
            read_prompts(str(file))
        return str(caught.value)

    def asked(content: object) -> dict[str, object]:
        return {"text": "two.", "messages": [{"role": "user", "content": content}]}

    for row in (asked("a\ud800"), asked([{"type": "text", "text": "a\ud800"}]), {"text": "two.", "speaker": "\ud800"},
                {"text": "two.", "provenance": {"\ud800": 1}}):
        assert "lone surrogate '\\ud800'" in told(row)
    assert "nested more than" in told('{"text": "two.", "provenance": {"a": ' + "[" * 300 + "]" * 300 + "}}")
    assert "Not a part" in told(asked([{"type": ["a"], "a": "x"}]))
    for path in ("~nouser/x.wav", "x" * 300 + ".wav", "x\x00.wav"):
        assert "no such audio file" in told(asked([{"type": "audio", "audio": path}]))
    for deep, reason in (("[" * 100_000, "not_json"), ('{"text": ' + "[" * 900 + "]" * 900 + "}", "not_text")):
        file.write_text('{"text": "one."}\n' + deep)
        assert [(s.line, s.reason) for s in read_prompts(str(file)).skips] == [(2, reason)]
    for spec in ("~nouser/x.txt", "x" * 300 + ".txt", "x" * 300 + ":train"):
        with pytest.raises(PromptError, match="no such prompt file"):
            read_prompts(spec)
        assert count_rows(parse_source(spec)) is None and parse_source(spec).content_hash() == "missing"


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
def test_lines_that_are_not_utf8_say_so(tmp_path: Path, name: str) -> None:
    lines = [b"plain.", "你好。".encode("gbk"), "café.".encode("latin-1")]
    quote = b'"' if name == "p.jsonl" else b""
    (tmp_path / name).write_bytes(b"\n".join(quote + line + quote for line in lines))
    found = read_prompts(str(tmp_path / name))
    assert [(s.line, s.reason) for s in found.skips] == [(2, "not_utf8"), (3, "not_utf8")]
    assert "2 x not_utf8 (the line is not UTF-8: save the file as UTF-8): lines 2, 3" in found.describe_skips()[0]


def test_a_seed_tts_eval_list_is_spoken_in_the_language_that_is_said(tmp_path: Path) -> None:
    file = tmp_path / "meta.lst"
    file.write_text("10-1|提示|p/1.wav|我爱 KTV。\n\na/2|提示|p/2.wav|你好。\n", encoding="utf-8")
    found = read_prompts(str(file), lang="zh")
    assert [(p.text, p.lang) for p in found.prompts] == [("我爱 KTV。", "zh"), ("你好。", "zh")]
    assert [p.prompt_id for p in found.prompts] == ["10-1", Prompt("你好。", "").prompt_id], "a/2 can name no file"
    assert [p.lang for p in read_prompts(str(file)).prompts] == ["mixed", "zh"]
    assert count_rows(parse_source(str(file))) == 2
    whole, part = (load_config([], [f"prompts.lang{of}=zh"]).prompts for of in ("", ".eval"))
    assert [whole.reading(name)["lang"] for name in ("train", "eval")] == ["zh", "zh"]
    assert [part.reading(name)["lang"] for name in ("train", "eval")] == [None, "zh"]
    with pytest.raises(ConfigError, match="prompts.lang"):
        load_config([], ["prompts.lang=fr"])
    file.write_text("a|b|c|d|e|f\n")
    with pytest.raises(PromptError, match="line 1"):
        read_prompts(str(file))


def test_a_given_language_is_that_of_the_pieces(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    text = "我爱 KTV。你好。"
    for given, langs in (("zh", ["zh", "zh"]), ("mixed", ["mixed", "zh"]), (None, ["mixed", "zh"])):
        file.write_text(json.dumps({"text": text, "lang": given}))
        assert [p.lang for p in read_prompts(str(file), max_words=3).prompts] == langs
    file.write_text(json.dumps({"text": text, "lang": "mixed"}))
    assert read_prompts(str(file), lang="zh").prompts[0].lang == "mixed", "what the prompt says goes before"


def test_texts_in_other_scripts_are_skipped_unless_their_language_is_given(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    rows = [{"text": "Привет, мир."}, {"text": "Café."}, {"text": "안녕하세요."}, 
            {"text": "こんにちは。", "lang": "zh"}, {"text": "We met Москва twice."}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    found = read_prompts(str(file))
    assert [(p.text, p.lang) for p in found.prompts] == [("Café.", "en"), ("こんにちは。", "zh"),
                                                         ("We met Москва twice.", "en")]
    assert [(s.line, s.reason) for s in found.skips] == [(1, "other_script"), (3, "other_script")]
    assert "no recognizer here hears its language; set lang" in found.describe()[0]
    assert len(read_prompts(str(file), lang="en").prompts) == 5
    file.write_text(json.dumps({"text": "We met there yesterday evening. Привет, мир."}))
    found = read_prompts(str(file), max_words=5)
    assert [p.text for p in found.prompts] == ["We met there yesterday evening."]
    assert found.counts() == {"other_script": 1}


def test_the_doctor_tells_what_is_skipped_and_reads_as_the_stage_does(tmp_path: Path) -> None:
    from talker_rl.doctor import _prompts

    (tmp_path / "train.txt").write_bytes("Привет.\nmusic bottle. seven orange.\n".encode() + b"\xff\n")
    (tmp_path / "dev.txt").write_text("seven orange.\n")
    (tmp_path / "eval.txt").write_text("happy captain.\n")
    sets = [f"prompts.{name}={tmp_path}/{name}.txt" for name in ("train", "dev", "eval")]
    config = load_config([], [*sets, "prompts.max_words=2"])
    told = list(_prompts(config))
    assert [level for level, _ in told] == ["ok", "warn", "warn", "warn", "ok", "ok", "ok"]
    assert "1 x not_utf8" in told[1][1] and "1 x other_script" in told[2][1] and "1 long text of" in told[3][1]
    assert told[-1][1] == "the three sets share no text", "the piece that dev holds is left out of train"
