"""Guards of online training, rules for the rewards of a group, weights of importance: against hand-derived values."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from talker_rl.losses import build_loss
from talker_rl.losses.config import parse_loss
from talker_rl.losses.policy_config import learned_from
from talker_rl.losses.types import SampleBatch
from talker_rl.train import importance
from talker_rl.train.groups import _rewards, demoted
from talker_rl.train.guards import drifted, hacked, heard_to_drift, rung, without_gain
from talker_rl.train.online_config import GuardsConfig, ImportanceConfig, OnlineConfig


def history(**ends: tuple[float, float]) -> list[dict[str, float]]:
    """Ten samplings: five as the first of each figure says, five as the second."""
    return [{f"online/{name}": both[i >= 5] for name, both in ends.items()} for i in range(10)]


@pytest.mark.parametrize(("ends", "told"), [
    ({"seconds_per_word": (0.4, 0.43)}, []),
    ({"seconds_per_word": (0.4, 0.45)}, ["duration"]),
    ({"seconds_per_word": (0.4, 0.35)}, ["duration"]),
    ({"entropy": (2.0, 1.1)}, []),
    ({"entropy": (2.0, 0.9)}, ["entropy"]),
    ({"entropy": (2.0, 4.0)}, []),
    ({"cut": (0.01, 0.07)}, ["cut"]),
    ({"cut": (0.3, 0.0)}, []),
    ({"tail_silence": (0.1, 0.5), "failed": (0.0, 0.2)}, ["tail_silence", "failed"]),
])
def test_alarms(ends: dict[str, tuple[float, float]], told: list[str]) -> None:
    assert list(drifted(history(**ends), GuardsConfig())) == told


def test_alarms_wait_for_two_windows_and_can_be_switched_off() -> None:
    rows = history(seconds_per_word=(0.4, 0.8))
    assert not drifted(rows[:9], GuardsConfig()) and not drifted(rows, GuardsConfig(duration=None))
    assert list(drifted([row | {"kl": 0.2} for row in rows], GuardsConfig(duration=None, kl=0.1))) == ["kl"]


@pytest.mark.parametrize(("reward", "wer", "rings"), [
    ((0.5, 0.7), (0.2, 0.25), True), ((0.5, 0.7), (0.2, 0.2), True), ((0.5, 0.7), (0.2, 0.15), False),
    ((0.5, 0.52), (0.2, 0.3), False),  # within two standard errors
])
def test_a_reward_that_rises_alone_is_told(
    reward: tuple[float, float], wer: tuple[float, float], rings: bool
) -> None:
    ups = [{"held_out/reward": r, "held_out/wer": w, "held_out/reward_se": 0.01} for r, w in
           zip(reward, wer, strict=True)]
    assert (hacked(ups) is not None) == rings
    assert hacked(ups[:1]) is None


@pytest.mark.parametrize(("first", "last", "told"), [
    ({"f0_spread": 2.0}, {"f0_spread": 1.5}, []), ({"f0_spread": 2.0}, {"f0_spread": 1.3}, ["f0_spread"]),
    ({"f0_spread": 2.0}, {}, []),
    ({"speaker_similarity": 0.95}, {"speaker_similarity": 0.89}, ["speaker_similarity"]),
    ({"speaker_similarity": 0.89}, {"speaker_similarity": 0.95}, []),
    ({"stop_logp": -0.2}, {"stop_logp": -2.5}, ["stop_logp"]),
    ({"stop_logp": -2.5}, {"stop_logp": -0.1}, ["stop_logp"]),
])
def test_alarms_of_check_ups(first: dict[str, float], last: dict[str, float], told: list[str]) -> None:
    ups = [{f"held_out/{k}": v for k, v in one.items()} for one in (first, {}, last)]
    assert list(heard_to_drift(ups, GuardsConfig())) == told
    off = GuardsConfig(f0_spread=None, speaker_similarity=None, stop_logp=None)
    assert not heard_to_drift(ups, off) and not heard_to_drift(ups[:1], GuardsConfig())


def test_check_ups_since_the_lowest() -> None:
    assert without_gain([]) == 0
    assert without_gain([{"held_out/wer": w} for w in (0.3, 0.2, 0.25, 0.2)]) == 2


def test_weights_of_what_was_sampled_from_another_distribution() -> None:
    raw, sampled = torch.log(torch.tensor([0.2, 0.5, 0.03])), torch.log(torch.tensor([0.25, 0.1, 0.3]))
    ratios = [0.8, 5.0, 0.1]
    cut = importance.weights(raw, sampled, ImportanceConfig())
    assert cut.tolist() == pytest.approx([0.8, 2.0, 0.1])
    masked = importance.weights(raw, sampled, ImportanceConfig(mode="mask", cap=2.0, floor=0.5))
    assert masked.tolist() == pytest.approx([0.8, 0.0, 0.0])
    whole = importance.weights(raw, sampled, ImportanceConfig(level="sequence"))
    assert whole.tolist() == pytest.approx([math.prod(ratios)] * 3)
    apart = importance.gap(raw, sampled)
    assert apart["sampling/processed_outside"] == pytest.approx(2 / 3, abs=0.34)  # 0.8 itself is rounding
    assert apart["sampling/processed_gap"] == pytest.approx(sum(abs(math.log(r)) for r in ratios) / 3)


def said(duration: float, end: str = "eos") -> Any:
    return SimpleNamespace(duration=duration, end_reason=end)


def test_what_is_cut_or_out_of_proportion_is_as_the_worst() -> None:
    cfg = OnlineConfig(max_length_ratio=1.5)
    group = [said(2.0), said(2.2), said(3.4), said(1.3), said(2.1, "max_tokens")]
    assert demoted(group, cfg) == [False, False, True, True, True]
    scores = [SimpleNamespace(reward=r, error_code=None) for r in (0.4, 0.9, 1.0, 0.8, 1.0)]
    assert _rewards(group, scores, cfg) == [0.4, 0.9, 0.4, 0.4, 0.4]  # type: ignore[arg-type]
    assert demoted(group, OnlineConfig()) == [False, False, False, False, True]
    scores[0].reward = None
    for code, reward in (("empty", 0.8), ("recognizer_error", 0.9)):  # its own doing: as the worst; else as the mean
        scores[0].error_code = code
        assert _rewards(group, scores, OnlineConfig()) == [reward, 0.9, 1.0, 0.8, 0.8]  # type: ignore[arg-type]


@pytest.mark.parametrize(("loss", "learned"), [
    ({"type": "grpo"}, "samples"), ({"type": "dpo"}, "pairs"), ({"type": "sft"}, "completions"),
    ({"type": "mix", "terms": [{"loss": {"type": "sft"}}]}, "completions"),
    ({"type": "mix", "terms": [{"loss": {"type": "dpo"}}, {"loss": {"type": "sft"}}]}, "pairs"),
    ({"type": "mix", "terms": [{"loss": {"type": "rloo"}}, {"loss": {"type": "sft"}}]}, "samples"),
])
def test_what_a_loss_learns_from(loss: dict[str, Any], learned: str) -> None:
    assert learned_from(parse_loss(loss)) == learned


def test_a_mixture_imitates_the_best_beside_the_gradient() -> None:
    logps = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.7, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    batch = SampleBatch(logps=logps, mask=mask, advantages=torch.tensor([[1.0] * 3, [-1.0] * 3]),
                        group=torch.tensor([0, 1]), imitate=torch.tensor([2.0, 0.0]))  # one of two is imitated
    out = build_loss({"type": "mix", "terms": [{"loss": {"type": "grpo"}}, {"weight": 0.5, "loss": {"type": "sft"}}]})(
        batch)
    # grpo at ratio 1: -(3 x 1 + 2 x -1) / 5 steps; sft: the mean of the imitated one's NLL, 2
    assert float(out.loss) == pytest.approx(-1 / 5 + 0.5 * 2.0)
    out.loss.backward()
    assert logps.grad is not None
    # both: -A / 5 of each step; imitated: -0.5 / 3 more
    assert logps.grad[0].tolist() == pytest.approx([-1 / 5 - 0.5 / 3] * 3)
    assert logps.grad[1].tolist() == pytest.approx([1 / 5, 1 / 5, 0.0])


def test_the_alarms_of_a_whole_training_and_when_they_rang_first() -> None:
    cfg = GuardsConfig(window=1, kl=0.1)
    rows = [{"online/cut": cut, "kl": kl} for cut, kl in ((0.0, 0.01), (0.02, 0.02), (0.1, 0.05), (0.2, 0.15))]
    ups = [{"held_out/reward": r, "held_out/wer": w, "held_out/reward_se": 0.01} for r, w in ((0.5, 0.2), (0.7, 0.2))]
    found = rung(rows, ups, cfg, every=3)  # check-ups before samplings 0 and 3
    assert {name: number for name, (number, _) in found.items()} == {"cut": 2, "kl": 3, "hack": 3}
    assert found["cut"][1].endswith("0.000 -> 0.100"), "as it was told when it rang, and not as it is at the end"
    assert rung(rows, ups, GuardsConfig(window=1, cut=None, hack=False), every=3) == {}
