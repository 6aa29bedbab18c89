"""The combiner, the stability columns and the removal of length."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from talker_rl.base.errors import ConfigError
from talker_rl.reward.combine import BUILT_IN_COMPONENTS, Combiner, ComponentError, remove_length
from talker_rl.reward.config import ComponentConfig, GateConfig, PauseConfig, RewardConfig, StabilityConfig
from talker_rl.reward.silences import find_silences
from talker_rl.reward.stability import longest_run, repeated_ngrams, speaking_units, stability_components
from talker_rl.speech.qwen2_5_omni.codec import CODEC

GOOD = {"wer": 0.0, "cer": 0.0, "pause_error": 0.0, "duration": 2.0, "rate": 5.0, "cap_hit": 0.0, "clipping": 0.0}


def brevity(item, components, scale=1.0):
    return scale / (1 + components["duration"])


def raises(item, components):
    raise KeyError("nothing")


def is_nan(item, components):
    return math.nan


def test_default_reward_by_hand():
    combiner = Combiner(RewardConfig())
    assert combiner.combine(GOOD).value == pytest.approx(1.0)
    result = combiner.combine(GOOD | {"wer": 0.2, "pause_error": 0.5})
    assert result.value == pytest.approx(0.7 * (1 - math.tanh(0.6)) + 0.3 * 0.5)
    assert result.terms == pytest.approx({"wer": 1 - math.tanh(0.6), "pause": 0.5})


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 5), st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 30))
def test_default_reward_is_bounded_and_falls_with_errors(wer, pause, step, rate):
    combiner = Combiner(RewardConfig())
    here = combiner.combine(GOOD | {"wer": wer, "pause_error": pause, "rate": rate}).value
    worse = combiner.combine(GOOD | {"wer": wer + step, "pause_error": min(1.0, pause + step), "rate": rate}).value
    assert 0.0 <= worse <= here <= 1.0


def test_gates():
    combiner = Combiner(RewardConfig())
    assert combiner.combine(GOOD | {"cap_hit": 1.0}).value == 0.0
    assert combiner.combine(GOOD | {"rate": 0.5}).value == pytest.approx(0.5)
    assert combiner.combine(GOOD | {"rate": 20.0}).value == pytest.approx(0.5)
    assert combiner.combine(GOOD | {"duration_ratio": 2.0, "clipping": 0.5}).gate == pytest.approx(0.25)
    assert combiner.combine(GOOD | {"duration_ratio": None}).value == pytest.approx(1.0)


def test_rate_term_is_two_sided():
    combiner = Combiner(RewardConfig(weights={"wer": 0, "pause": 0, "rate": 1}, gates=[]))
    at = {r: combiner.combine(GOOD | {"duration_ratio": r}).value for r in (0.5, 0.9, 1.0, 1.1, 2.0)}
    assert at[0.9] == at[1.0] == at[1.1] == 1.0
    assert at[0.5] == pytest.approx(at[2.0]) and at[0.5] < 0.1
    assert combiner.combine(GOOD | {"rate": None, "duration_ratio": None}).value == pytest.approx(0.0)
    assert combiner.combine(GOOD | {"rate": 16.0}).value == pytest.approx(1 - math.tanh(math.log(2) / 0.25))


def test_a_null_component_with_weight_is_an_error_never_a_number():
    combiner = Combiner(RewardConfig())
    with pytest.raises(ComponentError) as caught:
        combiner.combine(GOOD | {"pause_error": None})
    assert caught.value.code == "null_component"
    without = Combiner(RewardConfig(weights={"pause": 0}))
    assert without.combine(GOOD | {"pause_error": None}).value == pytest.approx(1.0)


def counted(words: int, right: int, substituted: int, inserted: int, **others: float | None) -> dict[str, float | None]:
    """Components of a candidate by its word counts; the words that are neither right nor substituted were left out."""
    deleted = words - right - substituted
    rate = (substituted + deleted + inserted) / words
    return {"wer": rate, "cer": rate, "substitutions": float(substituted), "deletions": float(deleted),
            "insertions": float(inserted), "ref_words": float(words), **others}


def a_component(rng: random.Random, low: float, high: float, null: float = 0.15) -> float | None:
    return None if rng.random() < null else rng.uniform(low, high)


def test_more_right_words_never_earn_less_and_nothing_earns_the_minimum():
    """10,000 random component sets under random rewards: weights, gates, an own component, nulls."""
    rng = random.Random(14)
    seen = 0
    for case in range(10_000):
        if case % 50 == 0:
            gates = [
                GateConfig(component=name, min=rng.uniform(0, 1), max=None if rng.random() < 0.5 else rng.uniform(1, 3),
                           factor=rng.choice([0.0, 0.5, 0.9]))
                for name in rng.sample(["rate", "duration_ratio", "pause_recall", "pause_f1", "lead_silence"], 2)
            ]
            config = RewardConfig(
                weights={name: rng.uniform(0.1, 1) for name in ("wer", "cer", "pause", "rate")},
                gates=[*RewardConfig().gates, *gates] if rng.random() < 0.7 else [],
                components=[{"name": "mine", "import_path": f"{__name__}:brevity", "weight": rng.choice([0.0, 0.5])}],
                clip=rng.choice([(0.0, 1.0), (0.1, 0.8)]),
            )
            combiner = Combiner(config)
        words = rng.randint(1, 12)
        right = rng.randint(0, words - 1)
        substituted = rng.randint(0, words - right)
        others = {
            "pause_error": rng.uniform(0, 1.5), "mine": rng.uniform(0, 1), "pause_marks": float(rng.randint(0, 3)),
            "rate": a_component(rng, 0, 12), "duration_ratio": a_component(rng, 0.3, 2.5),
            "cap_hit": a_component(rng, 0, 0.4), "clipping": rng.uniform(0, 0.02), "lead_silence": rng.uniform(0, 2),
            "pause_recall": a_component(rng, 0, 1), "pause_f1": a_component(rng, 0, 1),
        }
        if others["pause_error"] > 1:
            others["pause_error"] = 1.0
        inserted = rng.randint(0, 3)
        here = combiner.combine(counted(words, right, substituted, inserted, **others)).value
        low, high = config.clip
        assert low <= here <= high
        # one word more is right: it was substituted, or left out
        fewer = max(0, substituted - (rng.random() < 0.5 or right + substituted == words))
        better = combiner.combine(counted(words, right + 1, fewer, inserted, **others)).value
        assert better >= here - 1e-12, (words, right, substituted, inserted, others)
        seen += better > here
        # an empty transcript earns the minimum whatever else is perfect
        perfect = {"pause_error": 0.0, "mine": 1.0, "rate": 4.0, "duration_ratio": 1.0, "cap_hit": 0.0, "clipping": 0.0}
        assert combiner.combine(counted(words, 0, 0, 0, **perfect)).value == low <= here
        # a component that could not be measured is never worth more than one that was, and passes
        name = rng.choice(["rate", "lead_silence"])
        missing = combiner.combine(counted(words, right, substituted, inserted, **others | {name: None})).value
        free = 5.0 if name == "rate" else 1.0
        if all(g.component != name or (g.min or 0) <= free <= (g.max or 99) for g in config.gates):
            present = combiner.combine(counted(words, right, substituted, inserted, **others | {name: free})).value
            assert missing <= present + 1e-12
    assert seen > 3000  # most of the sets are told apart, not clipped alike


def test_the_share_of_right_words_pays_for_pauses_and_rate():
    combiner = Combiner(RewardConfig(gates=[]))
    half = combiner.combine(counted(4, 2, 2, 0, pause_error=0.0))
    assert half.value == pytest.approx(0.7 * (1 - math.tanh(1.5)) + 0.3 * 0.5)
    assert half.terms == pytest.approx({"wer": 1 - math.tanh(1.5), "pause": 0.5})
    assert combiner.combine(counted(4, 0, 4, 0, pause_error=0.0)).value == 0.0
    assert combiner.combine({"wer": 1.0, "pause_error": 0.0}).terms["pause"] == 0.0  # no counts: the WER says so


@pytest.mark.parametrize(
    ("weights", "low"),
    [({"wer": 0.7, "pause": 0.3}, True), ({"wer": 1, "pause": 0}, True), ({"wer": 0.5, "cer": 0.5}, False),
     ({"wer": 0, "pause": 0, "cer": 1}, False), ({"wer": 0, "pause": 0, "rate": 1}, False)],
)
def test_no_word_of_the_text_is_as_bad_as_silence_where_words_count(weights, low):
    """ "yeah", heard in noise, is not better than all words with others said after them."""
    combiner = Combiner(RewardConfig(weights=weights, gates=[]))
    yeah = combiner.combine(counted(3, 0, 1, 0, pause_error=0.0, rate=4.0) | {"cer": 0.9}).value
    run_on = combiner.combine(counted(3, 3, 0, 12, pause_error=0.0, rate=4.0)).value
    assert (yeah == 0.0) is (low or weights.get("rate") == 1) and run_on > 0.0


def test_a_gate_on_what_is_known_only_after_the_reward_is_refused():
    for name in ("unwritten", "reward_written", "gate"):
        with pytest.raises(ConfigError, match="only after the reward"):
            Combiner(RewardConfig(gates=[{"component": name, "max": 0}]))


def test_silence_does_not_bend_the_removal_of_length():
    rewards, slope = remove_length([0.0, 0.3, 1.0], [0.2, 1.0, 3.0], ["p"] * 3, [True, False, False])
    assert slope == pytest.approx(0.35) and rewards[0] == 0.0
    assert rewards[1] == pytest.approx(rewards[2])
    bent, _ = remove_length([0.0, 0.3, 1.0], [0.2, 1.0, 3.0], ["p"] * 3)
    assert bent[1] > bent[2]  # as it was: half-right speech beat perfect speech


def test_a_gate_on_what_could_not_be_measured_does_not_let_it_pass():
    def gate(component: str, **components: float | None) -> float:
        config = RewardConfig(gates=[{"component": component, "min": 0.5, "factor": 0.25}])
        return Combiner(config).combine(GOOD | components).gate

    assert gate("rate", rate=None) == 0.25  # no sound between the silences
    assert gate("pause_recall", pause_recall=None, pause_marks=2.0) == 0.25
    assert gate("pause_recall", pause_recall=None, pause_marks=0.0) == 1.0  # no mark in the text: nothing to recall
    assert gate("pause_recall", pause_recall=None, pause_error=0.0) == 1.0
    for needs_more in ("duration_ratio", "cap_hit", "repeated_run", "repeated_ngram"):
        assert gate(needs_more, **{needs_more: None}) == 1.0  # the item came without: like its neighbors


def test_own_component_counts_with_its_weight():
    config = RewardConfig(
        components=[
            ComponentConfig(name="brevity", import_path=f"{__name__}:brevity", weight=1.0, kwargs={"scale": 0.5})
        ]
    )
    combiner = Combiner(config)
    own = combiner.own_components(None, GOOD)
    assert own == pytest.approx({"brevity": 0.5 / 3})
    assert combiner.combine(GOOD | own).value == pytest.approx((1.0 + 0.5 / 3) / 2)


@pytest.mark.parametrize(("name", "code"), [("raises", "component_error"), ("is_nan", "component_invalid")])
def test_a_faulty_component_is_named(name, code):
    combiner = Combiner(RewardConfig(components=[{"name": "mine", "import_path": f"{__name__}:{name}"}]))
    with pytest.raises(ComponentError, match="mine") as caught:
        combiner.own_components(None, GOOD)
    assert caught.value.code == code


def test_weighted_component_outside_the_unit_interval_is_refused():
    config = {"name": "big", "import_path": f"{__name__}:brevity", "weight": 1.0, "kwargs": {"scale": 9.0}}
    combiner = Combiner(RewardConfig(components=[config]))
    with pytest.raises(ComponentError, match=r"\[0, 1\]"):
        combiner.combine(GOOD | combiner.own_components(None, GOOD))


def test_configuration_mistakes():
    with pytest.raises(ConfigError, match="cannot be imported"):
        Combiner(RewardConfig(components=[{"name": "x", "import_path": "no_such_module:f"}]))
    with pytest.raises(ConfigError, match="built-in"):
        Combiner(RewardConfig(components=[{"name": "wer", "import_path": f"{__name__}:brevity"}]))
    with pytest.raises(ConfigError, match="unknown component"):
        Combiner(RewardConfig(gates=[{"component": "speed", "max": 1}]))
    with pytest.raises(ValidationError, match="neither min nor max"):
        GateConfig(component="wer")
    with pytest.raises(ValidationError, match="all weights are zero"):
        RewardConfig(weights={"wer": 0, "pause": 0})
    with pytest.raises(ValidationError, match="not below"):
        RewardConfig(clip=(1.0, 0.0))


def test_remove_length_removes_the_within_prompt_slope_only():
    rng = np.random.default_rng(0)
    prompts = [f"p{i}" for i in range(20) for _ in range(6)]
    base = np.repeat(rng.normal(size=20), 6)  # prompts differ in difficulty and in length
    duration = np.repeat(rng.uniform(1, 5, 20), 6) + rng.normal(0, 0.3, 120)
    quality = rng.normal(0, 0.1, 120)
    rewards = base + quality - 0.4 * duration
    out, slope = remove_length(rewards.tolist(), duration.tolist(), prompts)
    assert slope == pytest.approx(-0.4, abs=0.05)
    groups = np.array(out).reshape(20, 6)
    lengths = duration.reshape(20, 6)
    centered = groups - groups.mean(1, keepdims=True)
    assert abs((centered * (lengths - lengths.mean(1, keepdims=True))).sum()) < 1e-9
    assert groups.mean(1) == pytest.approx(rewards.reshape(20, 6).mean(1))
    again, rest = remove_length(out, duration.tolist(), prompts)
    assert rest == pytest.approx(0.0, abs=1e-12) and again == pytest.approx(out)


def test_remove_length_keeps_failures_and_degenerate_sets():
    out, slope = remove_length([1.0, None, 0.0], [1.0, 9.0, 2.0], ["a", "a", "a"])
    assert out[1] is None and slope == pytest.approx(-1.0)
    assert out[0] == pytest.approx(0.5) and out[2] == pytest.approx(0.5)
    assert remove_length([1.0, 0.0], [1.0, 1.0], ["a", "a"]) == ([1.0, 0.0], 0.0)
    assert remove_length([1.0, 0.0], [1.0, 2.0], ["a", "b"]) == ([1.0, 0.0], 0.0)
    assert remove_length([], [], []) == ([], 0.0)


def test_repetition_by_hand():
    assert longest_run([1, 1, 2, 2, 2, 1]) == 3 and longest_run([]) == 0
    assert repeated_ngrams([1, 2, 1, 2, 1], 2) == pytest.approx(1 - 2 / 4)
    assert repeated_ngrams([1, 2, 3, 4], 2) == 0.0 and repeated_ngrams([1], 2) == 0.0


@pytest.mark.parametrize(
    ("tokens", "units"),
    [(["river"], 2), (["table"], 2), (["orange"], 2), (["苹", "果"], 2), (["1000"], 4), (["hmm"], 1), (["coffee"], 2)],
)
def test_speaking_units(tokens, units):
    assert speaking_units(tokens) == units


def test_stability_columns():
    rate = 24_000
    t = np.arange(rate) / rate
    tone = (0.5 * np.sin(2 * np.pi * 150 * t)).astype(np.float32)
    zeros = np.zeros(rate // 2, np.float32)
    audio = np.concatenate([zeros[: rate // 10], tone, zeros, tone, zeros])
    silences = find_silences(audio, rate, PauseConfig())
    codes = [5] * 10 + list(range(10, 165))
    row = stability_components(audio, rate, silences, ["a", "b", "c"], codes, CODEC, "eos", 3.0, StabilityConfig())
    assert row["duration"] == pytest.approx(len(codes) / 50)
    assert row["duration_ratio"] == pytest.approx(len(codes) / 50 / 3.0)
    assert row["rate"] == pytest.approx(3 / 2.5, abs=0.02)
    assert row["lead_silence"] == pytest.approx(0.1, abs=0.011)
    assert row["tail_silence"] == pytest.approx(0.5, abs=0.011)
    assert row["max_inner_silence"] == pytest.approx(0.5, abs=0.011)
    assert row["repeated_run"] == 10 and 0 < row["repeated_ngram"] < 0.05
    assert (row["cap_hit"], row["clipping"], row["non_finite"]) == (0.0, 0.0, 0.0)
    assert set(row) <= set(BUILT_IN_COMPONENTS)

    loud = np.clip(audio * 4, -1, 1)
    loud[:3] = np.nan
    row = stability_components(loud, rate, silences, ["a"], None, CODEC, "max_tokens", None, StabilityConfig())
    assert row["cap_hit"] == 1.0 and row["clipping"] > 0.2 and row["non_finite"] == pytest.approx(3 / len(loud))
    assert row["repeated_run"] is None and row["duration_ratio"] is None
    assert row["duration"] == pytest.approx(len(loud) / rate)
