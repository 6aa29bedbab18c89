"""Texts that break Talkers: deterministic, told apart by seed, speakable, with category and provenance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from talker_rl.base.errors import PromptError
from talker_rl.base.text.tokens import tokens_of
from talker_rl.cli import main
from talker_rl.data.hard import CATEGORIES, FIGURES, english, hard_texts
from talker_rl.data.hard.spoken import cardinal_en, cardinal_zh, decimal_en, decimal_zh, ordinal_en, phone_zh, year_en
from talker_rl.data.prompts import check_disjoint, read_prompts, text_key


def test_numbers_as_they_are_spoken() -> None:
    assert [cardinal_en(n) for n in (0, 15, 42, 100, 342, 1_005, 2_000_017)] == [
        "zero", "fifteen", "forty-two", "one hundred", "three hundred forty-two", "one thousand five",
        "two million seventeen"]  # fmt: skip
    assert [ordinal_en(n) for n in (1, 2, 3, 5, 8, 9, 12, 20, 21, 100)] == [
        "first", "second", "third", "fifth", "eighth", "ninth", "twelfth", "twentieth", "twenty-first", "one hundredth"]
    assert [year_en(n) for n in (1984, 1905, 1900, 2000, 2005, 2024)] == [
        "nineteen eighty-four", "nineteen oh five", "nineteen hundred", "two thousand", "two thousand five",
        "twenty twenty-four"]  # fmt: skip
    assert [cardinal_zh(n) for n in (0, 7, 10, 15, 20, 105, 110, 200, 342, 2000, 2012, 10_050, 20_000, 100_000,
                                     40_399_075, 100_000_005)] == [
        "零", "七", "十", "十五", "二十", "一百零五", "一百一十", "二百", "三百四十二", "两千", "两千零一十二",
        "一万零五十", "两万", "十万", "四千零三十九万九千零七十五", "一亿零五"]  # fmt: skip
    assert (decimal_en("3.14"), decimal_zh("10.05"), phone_zh("138")) == (
        "three point one four", "十点零五", "幺三八")


def test_every_rule_gives_texts_that_can_be_judged() -> None:
    rows = hard_texts(168, seed=3)
    assert rows[:48] == hard_texts(48, seed=3)
    counts = {name: [r for r in rows if r["category"] == name] for name in CATEGORIES}
    assert {len(found) for found in counts.values()} == {14}
    assert len({" ".join(tokens_of(r["text"])) for r in rows}) == 168
    lengths = {name: [len(tokens_of(r["text"])) for r in found] for name, found in counts.items()}
    assert min(min(n) for n in lengths.values()) >= 1 and max(lengths["very_short"]) <= 8
    assert min(lengths["very_long"]) >= 70 and {r["lang"] for r in counts["code_switching"]} == {"mixed"}
    for row in rows:
        assert not any(c.isdigit() for c in row["text"]), row  # each token is a word that is said
        assert row["provenance"]["rule"].endswith(row["category"]) and row["provenance"]["seed"] == 3
    figures = hard_texts(60, seed=3, categories=FIGURES, digits=True)
    assert all(any(c.isdigit() for c in r["text"]) and r["provenance"]["digits"] for r in figures)
    assert {r["lang"] for r in hard_texts(30, 0, ["zh"], ["numbers", "dates", "rare_names"])} == {"zh"}


def test_seeds_share_no_text() -> None:
    sets = {f"seed {s}": {" ".join(tokens_of(r["text"])) for r in hard_texts(96, s)} for s in (0, 1, 7)}
    assert len(set.union(*sets.values())) == sum(map(len, sets.values()))
    first = hard_texts(60, 0, categories=["very_short"])
    same_class = hard_texts(60, 16, categories=["very_short"])
    assert {r["text"] for r in first} & {r["text"] for r in same_class}  # which is why --apart-from is there
    apart = hard_texts(60, 16, categories=["very_short"], apart_from=[r["text"] for r in first])
    assert not {text_key(r["text"]) for r in first} & {text_key(r["text"]) for r in apart}


def test_texts_that_differ_in_marks_alone_are_one_text() -> None:
    rows = hard_texts(200, 4, categories=["very_short"])
    words = [" ".join(tokens_of(r["text"])) for r in rows]
    assert len(set(words)) == 200
    shouted = [r["text"][:-1].upper() + "?!" for r in rows]
    apart = hard_texts(20, 4, categories=["very_short"], apart_from=shouted)
    assert not {" ".join(tokens_of(r["text"])) for r in apart} & set(words)


def test_a_rule_that_is_used_up_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(english, "SHORT", english.SHORT[:3])
    with pytest.raises(PromptError, match="The rule en.very_short has only \\d+ texts for seed 0"):
        hard_texts(5_000, 0, ["en"], ["very_short"])
    with pytest.raises(PromptError, match="Unknown category 'songs'"):
        hard_texts(1, 0, categories=["songs"])
    with pytest.raises(PromptError, match="Unknown language 'fr'"):
        hard_texts(1, 0, ["fr"])
    with pytest.raises(PromptError, match="No language is named"):
        hard_texts(1, 0, [])
    with pytest.raises(PromptError, match="No category is named"):
        hard_texts(1, 0, ["en"], [])


def test_the_command_writes_prompt_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"{name}.jsonl" for name in ("train", "eval")}
    for seed, file in enumerate(files.values()):
        assert main(["prompts", "hard", "--count", "48", "--seed", str(seed), "-o", str(file)]) == 0
    assert "48 texts of seed 1" in capsys.readouterr().out
    sets = {name: read_prompts(str(file), default_speaker="Ann").prompts for name, file in files.items()}
    check_disjoint(sets)
    assert {p.category for p in sets["train"]} == set(CATEGORIES)
    assert sets["eval"][0].provenance == {"rule": "hard.zh.repetition", "seed": 1, "index": 0, "version": 2}
    before = files["train"].read_text()
    assert main(["prompts", "hard", "--count", "48", "--seed", "0", "-o", str(files["train"])]) == 0  # the same again
    assert main(["prompts", "hard", "--count", "4", "-o", str(files["train"])]) == 1
    assert "holds something else" in capsys.readouterr().err and files["train"].read_text() == before
    both = tmp_path / "both.jsonl"
    assert main(["prompts", "hard", "--count", "24", "--apart-from", str(files["train"]), "-o", str(both)]) == 0
    texts = {json.loads(line)["text"] for line in both.read_text().splitlines()}
    assert not texts & {p.text for p in sets["train"]}
    assert main(["prompts", "hard", "--lang", "zh", "--category", "numbers", "--count", "2", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("numbers")
    with pytest.raises(SystemExit):
        main(["prompts", "hard", "--help"])
    assert "--apart-from" in capsys.readouterr().out
