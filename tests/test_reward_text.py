"""Normalization and error rates against values worked out by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talker_rl.base.text.alignment import ErrorCounts, align, character_errors, pool
from talker_rl.base.text.tokens import characters_of, normalize


@pytest.mark.parametrize(
    ("text", "tokens", "marks"),
    [
        ("River garden, winter.", ["river", "garden", "winter"], ["none", "weak", "none"]),
        ("苹果老师，城市。", list("苹果老师城市"), ["none", "none", "none", "weak", "none", "none"]),
        ("我用Python写code。", ["我", "用", "python", "写", "code"], ["none"] * 5),
        ("Ｆｕｌｌ　ｗｉｄｔｈ！Yes", ["full", "width", "yes"], ["none", "strong", "none"]),
        ("pi is 3.14 now", ["pi", "is", "3.14", "now"], ["none"] * 4),
        ("1,000 men at 10:30, gone", ["1000", "men", "at", "10:30", "gone"], ["none"] * 3 + ["weak", "none"]),
        ("1,234,567.89 left", ["1234567.89", "left"], ["none", "none"]),
        ("1,2,3", ["1", "2", "3"], ["weak", "weak", "none"]),
        ("pages 10-20 and 30–40", ["pages", "10", "20", "and", "30", "40"], ["none"] * 6),
        ("version 3. Next", ["version", "3", "next"], ["none", "strong", "none"]),
        ("well-known don't 'quoted' it’s", ["well", "known", "don't", "quoted", "it's"], ["none"] * 5),
        ("one - two -- three—four", ["one", "two", "three", "four"], ["weak", "weak", "weak", "none"]),
        ("甲、乙；丙：丁？戊", list("甲乙丙丁戊"), ["weak", "weak", "weak", "strong", "none"]),
        ("wait, what?! yes", ["wait", "what", "yes"], ["weak", "strong", "none"]),
        ("“Hello,” she said", ["hello", "she", "said"], ["weak", "none", "none"]),
        (", leading. mark", ["leading", "mark"], ["strong", "none"]),
        ("1st 2nd", ["1st", "2nd"], ["none", "none"]),
        ("...", [], []),
        ("", [], []),
    ],
)
def test_normalize(text, tokens, marks):
    result = normalize(text)
    assert result.tokens == tokens
    assert result.marks == marks


def test_unknown_language_is_refused():
    with pytest.raises(ValueError, match="klingon"):
        normalize("a", "klingon")


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_normalize_invariants(text):
    result = normalize(text)
    assert len(result.tokens) == len(result.marks)
    assert all(t and t == t.lower() and not any(c.isspace() for c in t) for t in result.tokens if t.isascii())
    assert not result.marks or result.marks[-1] == "none"
    # tokens are a fixed point: reading them again gives them back
    assert normalize(" ".join(result.tokens)).tokens == result.tokens


@pytest.mark.parametrize(
    ("ref", "hyp", "s", "d", "i", "wer"),
    [
        ("the cat sat", "the cat sat", 0, 0, 0, 0.0),
        ("the cat sat on", "the dog sat", 1, 1, 0, 0.5),
        ("a b", "a x b", 0, 0, 1, 0.5),
        ("a b c", "", 0, 3, 0, 1.0),
        ("a", "b c d", 1, 0, 2, 3.0),
        ("苹果很好", "苹果好", 0, 1, 0, 0.25),
        ("我爱 music", "我唉 music music", 1, 0, 1, 2 / 3),
    ],
)
def test_error_rates_by_hand(ref, hyp, s, d, i, wer):
    counts = align(normalize(ref).tokens, normalize(hyp).tokens).counts
    assert (counts.substitutions, counts.deletions, counts.insertions) == (s, d, i)
    assert counts.rate == pytest.approx(wer)


def test_empty_reference_has_no_rate_but_its_insertions_pool():
    assert align([], []).counts.rate == 0.0
    wrong = align([], ["a", "b"]).counts
    assert wrong.rate is None and wrong.insertions == 2
    assert pool([wrong, align(list("abcd"), list("abcd")).counts]).rate == pytest.approx(0.5)


def test_corpus_rate_is_not_the_mean_of_rates():
    short, long = align(["a"], ["b"]).counts, align(list("abcdefghi"), list("abcdefghi")).counts
    assert pool([short, long]).rate == pytest.approx(0.1)
    assert (short.rate + long.rate) / 2 == pytest.approx(0.5)


def test_character_errors_ignore_spaces():
    assert characters_of(["ab", "苹"]) == ["a", "b", "苹"]
    counts = character_errors(["river", "苹"], ["rivet", "苹"])
    assert counts == ErrorCounts(1, 0, 0, 6)


def test_alignment_positions_and_operations():
    result = align(list("abcd"), list("axcde"))
    assert result.hits == [0, None, 2, 3]
    assert result.ops == [("S", "b", "x"), ("I", "", "e")]


tokens = st.lists(st.sampled_from("abcd"), max_size=8)


@settings(max_examples=150, deadline=None)
@given(tokens, tokens)
def test_alignment_properties(ref, hyp):
    forward, backward = align(ref, hyp), align(hyp, ref)
    c, b = forward.counts, backward.counts
    assert c.errors == b.errors  # a distance is symmetric
    assert abs(len(ref) - len(hyp)) <= c.errors <= max(len(ref), len(hyp))
    assert c.length == len(ref)
    assert len(hyp) == len(ref) - c.deletions + c.insertions
    positions = [h for h in forward.hits if h is not None]
    assert positions == sorted(set(positions))
    assert all(ref[i] == hyp[h] for i, h in enumerate(forward.hits) if h is not None)
    assert len(positions) == len(ref) - c.substitutions - c.deletions
    assert (c.errors == 0) == (ref == hyp)
    assert [op for op, _, _ in forward.ops].count("I") == c.insertions
