"""What recognizers do not write as the text has it: found, counted, told, and never what a pair hangs on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from talker_rl.base.text.tokens import tokens_of
from talker_rl.base.text.unwritten import describe_unwritten, find_unwritten, is_traditional, kinds_of
from talker_rl.data.config import PairsConfig
from talker_rl.data.pairs import select_pairs
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.reward.asr.base import Transcript
from talker_rl.reward.config import RewardConfig
from talker_rl.reward.scorer import ScoreItem, Scorer, ScoreResult, to_score_row

READINGS = [  # text, a perfect reading as recognizers write it, a worse one that loses an unwritten place alone
    ("一共123个苹果，2024年买的", "一共一百二十三个苹果二零二四年买的", "一共一百二十三个苹果二零二年买的"),
    ("今天我們學習漢語詞彙", "今天我们学习汉语词汇", "今天我们学习汉语词"),
    ("The room costs $120 for 3 nights.", "the room costs one hundred and twenty dollars for three nights",
     "the room costs one hundred twenty dollars for tree nights"),
    ("Dr. Lee met Mr. Young.", "doctor lee met mister young", "docker lee met mister young"),
    ("Sales rose by 5% in 2024.", "sales rose by five percent in twenty twenty four",
     "sales rose by five in twenty four"),
    ("Open report.txt now", "open report dot txt now", "open report that txt now"),
    ("Tom & Jerry left", "tom and jerry left", "tom jerry left"),
    ("Meet me at 10:30 tomorrow", "meet me at ten thirty tomorrow", "meet me at ten dirty tomorrow"),
    ("他住在3号楼", "他住在三号楼", "他住在山号楼"),
    ("價格是20元", "价格是二十元", "价格是二元"),
    ("Henry VIII ruled", "henry the eighth ruled", "henry the fate ruled"),
    ("Dr Lee ran ten km", "doctor lee ran ten kilometers", "doctor lee ran ten killers"),
]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("plain words, nothing else. Is it?", set()),
        ("苹果老师，城市。", set()),
        ("room 7", {"figures"}),
        ("the 1st of mp3", {"figures"}),
        ("costs $ or €, a+b, 5%", {"figures", "symbols"}),
        ("Dr. Lee, No. 7", {"abbreviations", "figures"}),
        ("the U.S. at ten a.m. with J. Hill", set()),
        ("mail anna@example.org", {"symbols", "addresses"}),
        ("open notes.txt", {"addresses"}),
        ("學習", {"traditional"}),
        ("於是他走了，後來", {"traditional"}),
        ("甄嬛和王玥、彭珮", set()),
        ("Henry VIII and World War II", {"figures"}),
        ("I mix civil paint in CHAPTER", set()),
        ("see x.com", {"addresses"}),
        ("Mrs Lee ran 5 km", {"abbreviations", "figures"}),
        ("头发和头髮", {"traditional"}),
        ("我用Python写", {"latin"}),
        ("well-known (really) “so” / it's — yes… 😀 ~", set()),
    ],
)
def test_kinds(text: str, kinds: set[str]) -> None:
    assert set(kinds_of(text)) == kinds
    assert find_unwritten(text).any is bool(kinds - {"latin"})


def test_traditional_characters() -> None:
    assert all(map(is_traditional, "學習漢語詞彙們龍體廳後於徵裏説爲衆"))
    assert not any(map(is_traditional, "学习汉语词汇们龙体后里面干发玥珺嬛璟囧a1の"))


@pytest.mark.parametrize(("text", "perfect", "worse"), READINGS)
def test_no_pair_hangs_on_a_place_that_is_written_otherwise(text: str, perfect: str, worse: str) -> None:
    """Both readings cost errors that say nothing; which of them wins by the figure is chance."""
    heard = {"perfect": perfect, "worse": worse}

    class Told:
        def transcribe(self, audios: list[np.ndarray], lang: str) -> list[Transcript]:
            return [Transcript(tokens := tokens_of(said), [(0.1 * k, 0.1 * k + 0.1) for k in range(len(tokens))])
                    for said in heard.values()]

        def fingerprint(self) -> str:
            return "told"

    prompt = Prompt(text=text, speaker="Ann", prompt_id="p")
    sound = (0.1 * np.sin(np.arange(4 * 24_000) / 20)).astype(np.float32)
    items = [ScoreItem(f"p-{name}", text, sound, codes=[1] * 200, end_reason="eos", prompt_id="p") for name in heard]
    results = Scorer(RewardConfig(weights={"pause": 0}, gates=[]), Told()).score(items)
    assert all(isinstance(r, ScoreResult) and r.components["unwritten"] for r in results)
    first, second = (r.components["reward_written"] for r in results)
    if first is not None:
        assert first == pytest.approx(1.0), "all that is left of the perfect reading is right"
    rows = [to_score_row(i, r) for i, r in zip(items, results, strict=True)]
    candidates = [Candidate("p", i.id, "Ann", k, [k + 1] * 200, 8294, "eos", [-1.0] * 201) for k, i in enumerate(items)]
    pairs, _ = select_pairs([prompt], candidates, rows, PairsConfig(margin=0.0))
    assert not pairs or (second is not None and second < 1.0 and pairs[0].chosen_id == "p-perfect")


def test_a_real_error_elsewhere_still_makes_a_pair() -> None:
    text = "Room 7 is on the second floor"
    said = ["room seven is on the second floor", "room seven is on the floor"]

    class Told:
        def transcribe(self, audios: list[np.ndarray], lang: str) -> list[Transcript]:
            return [Transcript(t := tokens_of(s), [(0.1 * k, 0.1 * k + 0.1) for k in range(len(t))]) for s in said]

        def fingerprint(self) -> str:
            return "told"

    sound = (0.1 * np.sin(np.arange(4 * 24_000) / 20)).astype(np.float32)
    items = [ScoreItem(f"p-{k}", text, sound, codes=[1] * 200, end_reason="eos", prompt_id="p") for k in (0, 1)]
    rows = [to_score_row(i, r) for i, r in zip(items, Scorer(RewardConfig(gates=[]), Told()).score(items), strict=True)]
    candidates = [Candidate("p", f"p-{k}", "Ann", k, [k + 1] * 200, 8294, "eos", [-1.0] * 201) for k in (0, 1)]
    prompt = Prompt(text=text, speaker="Ann", prompt_id="p")
    pairs, _ = select_pairs([prompt], candidates, rows, PairsConfig(margin=0.0))
    assert [(p.chosen_id, p.rejected_id) for p in pairs] == [("p-0", "p-1")]


def test_sets_are_counted_and_the_fix_is_told(tmp_path: Path) -> None:
    lines = describe_unwritten(["room 7", "room 8 for $5", "the room", "學習"], "prompts.train")
    assert lines[0].startswith("2 of 4 texts of prompts.train hold figures") and "'7'" in lines[0]
    assert any("1 of 4" in line and "traditional" in line for line in lines)
    assert "write them as they are spoken" in lines[-1] and "pairs.unwritten" in lines[-1]
    assert describe_unwritten(["the room", "苹果"], "x") == []


def test_hard_texts_with_digits_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from talker_rl import cli

    out = tmp_path / "hard.jsonl"
    assert cli.main(["prompts", "hard", "--digits", "--count", "48", "--seed", "1", "-o", str(out)]) == 0
    texts = [json.loads(line)["text"] for line in out.read_text(encoding="utf-8").splitlines()]
    figures = sum("figures" in kinds_of(text) for text in texts)
    assert figures and f"{figures} of 48 texts" in capsys.readouterr().out
