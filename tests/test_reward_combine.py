"""The combiner, the stability columns and the removal of length."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from talker_rl.errors import ConfigError
from talker_rl.reward.audio import find_silences
from talker_rl.reward.combine import BUILT_IN_COMPONENTS, Combiner, ComponentError, remove_length
from talker_rl.reward.config import ComponentConfig, GateConfig, PauseConfig, RewardConfig, StabilityConfig
from talker_rl.reward.stability import longest_run, repeated_ngrams, speaking_units, stability_components

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
    row = stability_components(audio, rate, silences, ["a", "b", "c"], codes, "eos", 3.0, StabilityConfig())
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
    row = stability_components(loud, rate, silences, ["a"], None, "max_tokens", None, StabilityConfig())
    assert row["cap_hit"] == 1.0 and row["clipping"] > 0.2 and row["non_finite"] == pytest.approx(3 / len(loud))
    assert row["repeated_run"] is None and row["duration_ratio"] is None
    assert row["duration"] == pytest.approx(len(loud) / rate)
