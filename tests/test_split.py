"""Where long texts are split: at sentence ends, then commas, then spaces; never inside a word or a number."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talker_rl.base.text.tokens import tokens_of
from talker_rl.data.split import _sentence_ends, split_text


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("One two. Three four!  Five six?", ["One two.", "Three four!", "Five six?"]),
        ("It costs 3.5 dollars. Mr. Smith paid.", ["It costs 3.5 dollars.", "Mr. Smith paid."]),
        ("The U.S. Army met J. R. Hill. He left.", ["The U.S. Army met J. R. Hill.", "He left."]),
        ("See e.g. this one. It is fig. 3 here.", ["See e.g. this one.", "It is fig. 3 here."]),
        ('"Stop!" he said. "Go."', ['"Stop!" he said.', '"Go."']),
        ("I came; he saw. Done.", ["I came;", "he saw.", "Done."]),
        ("Wait... what? No.", ["Wait... what?", "No."]),
        ("今天很好。你呢？“走吧！”他说；好的……再见", ["今天很好。", "你呢？", "“走吧！”", "他说；", "好的……", "再见"]),
        ("我买了3.5公斤apple。Mr. Li说ok.好吧。", ["我买了3.5公斤apple。", "Mr. Li说ok.", "好吧。"]),
        ("他在U.S.经济学院。昨天Mr.王来了。", ["他在U.S.经济学院。", "昨天Mr.王来了。"]),
        ("作者J.王在Acme Inc.上班.好吧", ["作者J.王在Acme Inc.上班.", "好吧"]),
        ("他去了U.S.。你呢？他说ok.好吧", ["他去了U.S.。", "你呢？", "他说ok.", "好吧"]),
        ("From the U.S.? Yes. Cats, dogs etc.! No.", ["From the U.S.?", "Yes.", "Cats, dogs etc.!", "No."]),
        ("a title\nThe text.", ["a title", "The text."]),
        ("one two. three! four... five", ["one two.", "three!", "four... five"]),
    ],
)  # fmt: skip
def test_sentence_ends(text: str, pieces: list[str]) -> None:
    cuts = [0, *_sentence_ends(text), len(text)]
    assert [text[a:b].strip() for a, b in zip(cuts, cuts[1:], strict=False)] == pieces


def test_sentences_are_joined_up_to_the_limit() -> None:
    text = "One two. Three four. Five six. Seven."
    assert split_text(text, max_words=4) == ["One two. Three four.", "Five six. Seven."]
    assert split_text(text, max_chars=20) == ["One two. Three four.", "Five six. Seven."]
    assert split_text(text, max_chars=20, max_words=2) == ["One two.", "Three four.", "Five six.", "Seven."]
    assert split_text(text) == [text]


def test_then_at_commas_then_at_spaces_and_never_inside_a_word() -> None:
    assert split_text("one two, three four, five", max_words=4) == ["one two, three four,", "five"]
    assert split_text("价格是1,000元，很贵，真的", max_words=5) == ["价格是1,000元，", "很贵，真的"]
    assert split_text("上午10：30开始，比分：3：2", max_words=4) == ["上午10：30开始，", "比分：3：2"]
    assert split_text("从1990—2000年，一直——很好", max_words=5) == ["从1990—2000年，", "一直——很好"]
    assert split_text("比分：3：2", max_words=2) == ["比分：", "3：2"]
    assert split_text("他——1990——走了", max_words=1) == ["他——", "1990——", "走了"]
    assert split_text("one two three four five", max_words=2) == ["one two", "three four", "five"]
    assert split_text("a extraordinarily b", max_chars=5) == ["a", "extraordinarily", "b"]
    assert split_text("没有标点的一句长长的话", max_words=3) == ["没有标点的一句长长的话"]


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab Mr3.5,;!? 你好。，！：\n“”—A", max_size=60), st.integers(1, 12))
def test_nothing_is_lost_and_pieces_are_whole(text: str, limit: int) -> None:
    pieces = split_text(text, max_words=limit)
    assert [t for piece in pieces for t in tokens_of(piece)] == tokens_of(text)
    assert not [a for a, b in pairwise(pieces) if re.search(r"\d—$", a) and b[0].isdigit() and f"{a}{b}" in text]
    assert all(split_text(piece, max_words=limit) == [piece] for piece in pieces)
