"""What losses push on before training against what they did to durations: ranks by hand, and their interval."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from talker_rl.diagnostics.prediction import prediction, told

Row = dict[str, Any]


def rows(stops: list[float], ratios: list[float], seconds: list[float] | None = None) -> list[Row]:
    return [{"variant": f"v{i}", "stop": stop, "stop_seconds": moment, "duration_ratio": ratio}
            for i, (stop, moment, ratio) in enumerate(zip(stops, seconds or stops, ratios, strict=True))]


def test_ranks_are_correlated_by_hand() -> None:
    # ranks 1 2 3 4 against 4 3 1 2: 1 - 6 (9 + 1 + 4 + 4) / (4 x 15)
    found = prediction(rows([-1.0, -0.5, -0.1, 0.0], [1.5, 1.4, 1.0, 1.1], [1.0, 2.0, 4.0, 3.0]))
    assert found["stop"]["rho"] == pytest.approx(1 - 6 * 18 / 60) and found["stop"]["n"] == 4
    # 1 2 4 3 against 4 3 1 2: the order turned round
    assert found["stop_seconds"]["rho"] == pytest.approx(-1.0) and found["stop_seconds"]["ci95"] == [-1.0, -1.0]
    low, high = found["stop"]["ci95"]
    assert low == -1.0 and -0.8 < high <= 1.0  # four variants tell little
    assert [row["variant"] for row in found["variants"]] == ["v0", "v1", "v2", "v3"]


def test_ties_share_their_rank_and_rounding_makes_no_order() -> None:
    # dpo, hinge and r_dpo push the stop by nothing: ranks 1 3 3 3 against 4 1 2 3
    found = prediction(rows([-1.0, 0.0, 1e-17, -1e-16], [1.5, 1.0, 1.1, 1.2]))["stop"]
    # centered ranks -1.5 .5 .5 .5 and 1.5 -1.5 -.5 .5: -3 / sqrt(3 x 5)
    assert found["rho"] == pytest.approx(-3 / np.sqrt(15))


def test_the_interval_is_that_of_variants_drawn_again() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=12)
    y = -x + rng.normal(size=12)
    found = prediction(rows(x.tolist(), y.tolist()), resamples=4000)["stop"]
    assert found["rho"] == pytest.approx(stats.spearmanr(x, y).statistic)
    other = np.random.default_rng(5)
    drawn = [stats.spearmanr(x[i], y[i]).statistic for i in other.integers(12, size=(2000, 12))]
    assert found["ci95"] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.05)
    assert found["ci95"][0] < found["rho"] < found["ci95"][1]


@pytest.mark.parametrize(("found", "note"), [
    (rows([-1.0, -0.5, 0.0], [1.5, 1.2, 1.0]), "fewer than 4 variants"),
    (rows([0.0] * 5, [1.0, 1.1, 1.2, 1.3, 1.4]), "all variants have the same"),
    ([], "fewer than 4 variants"),
])
def test_too_few_or_equal_ones_are_not_correlated(found: list[Row], note: str) -> None:
    made = prediction(found)
    assert made["stop"] == {"rho": None, "ci95": None, "n": len(found), "note": note}
    assert note in told({"biased": made})[0]


def test_an_arm_is_told_in_a_line() -> None:
    found = {"biased": prediction(rows([-1.0, -0.5, -0.1, 0.0], [1.5, 1.4, 1.2, 1.1])),
             "natural": {"variants": [], "note": "no pair has times"}}
    first, second = told(found)
    assert first == ("biased: what was predicted before training against the duration: Spearman's rho over 4 variants: "
                     "net push on the stop -1.00 [-1.00, -1.00], its first moment -1.00 [-1.00, -1.00]")
    assert second == "natural: what was predicted before training against the duration: no pair has times"
