"""Policy gradients: by hand, against TRL's GRPOTrainer, and wrong implementations that must fail."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from talker_rl.base.errors import ConfigError
from talker_rl.losses import LossOutput, SampleBatch, parse_loss
from talker_rl.losses import policy_gradient as pg

# Two samples of one prompt and one of another; the third was cut.
OLD = [[-1.0, -2.0, -0.5], [-1.0, -1.0], [-3.0]]
NEW = [[math.log(1.5) - 1.0, -2.0, math.log(0.5) - 0.5], [math.log(1.1) - 1.0, math.log(0.7) - 1.0], [-3.0]]
ADVANTAGES = [[1.0, 1.0, 1.0], [-1.0, -1.0], [2.0]]
REF = [[-1.0, -2.0, -0.5], [-1.0, -1.0], [-3.0]]
LEFT = 99.0  # at padding: never read


def padded(rows: list[list[float]], fill: float = LEFT) -> Tensor:
    return torch.tensor([row + [fill] * (3 - len(row)) for row in rows])


def batch(**changes: Any) -> SampleBatch:
    mask = torch.tensor([[True] * 3, [True, True, False], [True, False, False]])
    stop = torch.tensor([[False, False, True], [False, True, False], [False] * 3])
    made = SampleBatch(logps=padded(NEW).requires_grad_(True), mask=mask, advantages=padded(ADVANTAGES),
                       group=torch.tensor([0, 0, 1]), old_logps=padded(OLD), ref_logps=padded(REF), stop=stop)
    return replace(made, **changes)


def loss(data: dict[str, Any], samples: SampleBatch | None = None) -> LossOutput:
    config = parse_loss(data)
    function = pg.reinforce_loss if data["type"] in ("reinforce", "rloo") else pg.policy_gradient_loss
    return function(samples or batch(), config)  # type: ignore[arg-type]


# -min(r A, clip(r) A) at epsilon .2: 1.5 -> 1.2, 1, .5 (below the clip, and A > 0: it counts) | -1.1 A: +1.1, and .7 ->
# .8 (A < 0): +.8 | 1
STEPS = [[-1.2, -1.0, -0.5], [1.1, 0.8], [-2.0]]


def test_clipped_steps_and_what_they_are_divided_by() -> None:
    sums = [sum(row) for row in STEPS]
    assert loss({"type": "grpo"}).loss.item() == pytest.approx(sum(sums) / 6)
    by_sequence = [sums[0] / 3, sums[1] / 2, sums[2]]
    out = loss({"type": "grpo", "loss_type": "grpo"})
    assert out.loss.item() == pytest.approx(sum(by_sequence) / 3)
    assert out.per_pair.tolist() == pytest.approx([(by_sequence[0] + by_sequence[1]) / 2, by_sequence[2]])
    assert out.margin.tolist() == pytest.approx([1.0, 2.0])  # mean size of a group's advantages
    constant = loss({"type": "grpo", "loss_type": "dr_grpo", "max_completion_length": 10})
    assert constant.loss.item() == pytest.approx(sum(sums) / 30)
    # of an optimizer step whose batches hold 12 steps on average: half of what its own 6 would give
    assert loss({"type": "dapo"}, batch(mean_steps=4.0)).loss.item() == pytest.approx((sum(sums) - 0.08) / 12)
    # 1.28 above: the first ratio is clipped later
    assert loss({"type": "dapo"}).loss.item() == pytest.approx((sum(sums) - 0.08) / 6)
    assert out.metrics["clip_ratio/low_mean"].item() == pytest.approx(1 / 6)
    assert out.metrics["clip_ratio/high_mean"].item() == pytest.approx(1 / 6)


def test_gradients_by_hand() -> None:
    samples = batch()
    loss({"type": "grpo"}, samples).loss.backward()
    # d/dlogp of -r A is -r A; nothing where the clip holds, and nothing at padding
    expected = padded([[0.0, -1.0, -0.5], [1.1, 0.0], [-2.0]], 0.0) / 6
    assert samples.logps.grad is not None and torch.allclose(samples.logps.grad, expected)


def test_on_the_policys_own_samples_it_is_reinforce() -> None:
    own = [batch(logps=padded(OLD).requires_grad_(True), old_logps=old) for old in (padded(OLD), None, padded(OLD))]
    for samples, data in zip(own, ({"type": "grpo"}, {"type": "grpo"}, {"type": "rloo"}), strict=True):
        loss(data, samples).loss.backward()
    for samples in own:
        assert samples.logps.grad is not None
        assert torch.allclose(samples.logps.grad, -padded(ADVANTAGES, 0.0) / 6)
    # -A log pi: 1 + 2 + .5 - 1 - 1 + 6
    assert loss({"type": "reinforce"}, own[2]).loss.item() == pytest.approx(7.5 / 6)


def test_dual_clip() -> None:
    far = batch(logps=padded([[0.0] * 3, [2.0, -1.0], [-3.0]]).requires_grad_(True))
    # A < 0 and r = e^3 = 20: -min(-20, -1.2) = 20; with delta 3 it is 3, without gradient
    whole, bounded = (loss({"type": "grpo", **more}, far).loss.item() for more in ({}, {"delta": 3.0}))
    assert whole - bounded == pytest.approx((math.exp(3) - 3) / 6, rel=1e-5)
    loss({"type": "grpo", "delta": 3.0}, far).loss.backward()
    assert far.logps.grad is not None and far.logps.grad[1, 0] == 0


def test_ratios_of_sequences() -> None:
    # mean log-ratios: (ln 1.5 + 0 + ln .5) / 3 = ln .75 / 3, (ln 1.1 + ln .7) / 2, 0
    r = [0.75 ** (1 / 3), 0.77 ** 0.5, 1.0]
    wide = {"type": "gspo", "epsilon": 0.2, "epsilon_high": 0.2}
    out = loss(wide)
    assert out.loss.item() == pytest.approx((-r[0] + r[1] - 2) / 3)
    narrow = loss({"type": "gspo"})  # all but the third beyond 3e-4: A > 0 and r < 1 counts, A < 0 and r < 1 is clipped
    assert narrow.loss.item() == pytest.approx((-r[0] + (1 - 3e-4) - 2) / 3, rel=1e-6)


def test_a_ratio_of_a_sequence_leaves_each_step_its_own_advantage() -> None:
    """GSPO-token, eq. 13: the sequence's ratio by value, each step's gradient by its own advantage; 0 stays 0."""
    credit = [[0.0, 2.0, 0.0], [-1.0, 0.0], [0.0]]
    samples = batch(logps=padded(OLD).requires_grad_(True), advantages=padded(credit))
    loss({"type": "gspo", "loss_type": "dapo"}, samples).loss.backward()
    assert samples.logps.grad is not None and torch.allclose(samples.logps.grad, -padded(credit, 0.0) / 6)
    same = batch()  # where all steps have the same advantage it is d/dlogp of -r A, r the root of the product
    loss({"type": "gspo", "loss_type": "dapo", "epsilon": 0.9, "epsilon_high": 0.9}, same).loss.backward()
    r = padded([[0.75 ** (1 / 3)] * 3, [0.77 ** 0.5] * 2, [1.0]], 0.0)
    assert same.logps.grad is not None and torch.allclose(same.logps.grad, -r * padded(ADVANTAGES, 0.0) / 6)


def test_kl_to_the_reference() -> None:
    out = loss({"type": "grpo", "beta": 0.1})
    k3 = [[1 / q - math.log(1 / q) - 1 for q in row] for row in ([1.5, 1.0, 0.5], [1.1, 0.7], [1.0])]
    assert out.metrics["kl_k3"].item() == pytest.approx(sum(map(sum, k3)) / 6, rel=1e-5)
    assert out.loss.item() == pytest.approx((sum(map(sum, STEPS)) + 0.1 * sum(map(sum, k3))) / 6, rel=1e-5)
    with pytest.raises(ValueError, match="no reference"):
        loss({"type": "grpo", "beta": 0.1}, batch(ref_logps=None))


def test_the_stop_and_weights() -> None:
    # without the stops' -.5 and .8; the third was cut: its last step is a step like others
    assert loss({"type": "grpo", "stop": "drop"}).loss.item() == pytest.approx((-1.2 - 1.0 + 1.1 - 2.0) / 6)
    assert loss({"type": "grpo", "stop": "drop"}, batch(stop=None)).loss.item() == pytest.approx((-2.2 + 1.1) / 6)
    weights = padded([[0.0, 1.0, 1.0], [0.5, 0.5], [1.0]], math.nan)
    assert loss({"type": "grpo"}, batch(weights=weights)).loss.item() == pytest.approx((-1.5 + 0.95 - 2.0) / 6)


@pytest.mark.parametrize(("data", "told"), [
    ({"type": "grpo", "epsilon": 0.3, "epsilon_high": 0.2}, "below epsilon"),
    ({"type": "grpo", "delta": 1.1}, "within the clip"),
    ({"type": "grpo", "epsilom": 0.1}, "did you mean `epsilon`"),
    ({"type": "grppo"}, "did you mean `grpo`"),
])
def test_mistakes(data: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_loss(data)


def test_a_constant_has_to_be_given_and_shapes_have_to_fit() -> None:
    with pytest.raises(ValueError, match="max_completion_length"):
        loss({"type": "grpo", "loss_type": "dr_grpo"})
    with pytest.raises(ValueError, match="old_logps is"):
        batch(old_logps=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="3 samples"):
        batch(group=torch.tensor([0, 1]))


# -- TRL as oracle ----------------------------------------------------------------------------------------------------


class Oracle:
    """What TRL's ``_compute_loss`` asks of its trainer, with the log-probs of a batch in place of a model's."""

    def __init__(self, samples: SampleBatch, **settings: Any) -> None:
        values = {"beta": 0.0, "loss_type": "bnpo", "epsilon_low": 0.2, "epsilon_high": 0.2, "delta": None,
                  "importance_sampling_level": "token", **settings}
        self.args = SimpleNamespace(delta=values.pop("delta"), use_bias_correction_kl=False, steps_per_generation=1)
        self.__dict__.update(values)
        self.samples, self.model = samples, SimpleNamespace(training=True)
        self.top_entropy_quantile, self.off_policy_mask_threshold, self.use_vllm = 1.0, None, False
        self._entropy_bonus_enabled = False
        self.aux_loss_enabled, self.current_gradient_accumulation_steps, self.max_completion_length = False, 1, 10
        self.accelerator = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1)
        self._metrics: Any = {"train": defaultdict(list)}

    def _get_per_token_logps_and_entropies(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        clean = torch.where(self.samples.mask, self.samples.logps, 0.0)
        return clean, torch.zeros_like(clean), None


ORACLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "token mean": ({"type": "grpo"}, {}),
    "sequence mean": ({"type": "grpo", "loss_type": "grpo"}, {"loss_type": "grpo"}),
    "constant": ({"type": "grpo", "loss_type": "dr_grpo", "max_completion_length": 10}, {"loss_type": "dr_grpo"}),
    "clip higher": ({"type": "dapo"}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dual clip": ({"type": "grpo", "delta": 1.3}, {"delta": 1.3}),
    "kl": ({"type": "grpo", "beta": 0.3}, {"beta": 0.3}),
    "sequences": ({"type": "gspo", "epsilon": 0.1, "epsilon_high": 0.1},
                  {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.1,
                   "epsilon_high": 0.1}),
}


def random_samples(seed: int) -> SampleBatch:
    rng = torch.Generator().manual_seed(seed)
    mask = torch.arange(9) < torch.tensor([[9], [3], [5], [1], [7], [2]])
    old, new, ref, advantages = (torch.randn(6, 9, generator=rng) for _ in range(4))
    return SampleBatch(logps=(new - 3).requires_grad_(True), mask=mask, advantages=advantages[:, :1].expand(6, 9),
                       group=torch.tensor([0, 0, 0, 1, 1, 1]), old_logps=new - 3 + 0.3 * old, ref_logps=ref - 3)


def trls(samples: SampleBatch, settings: dict[str, Any]) -> Tensor:
    grpo = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is the oracle here")
    inputs = {"prompt_ids": torch.zeros(6, 1, dtype=torch.long), "prompt_mask": torch.ones(6, 1, dtype=torch.long),
              "completion_ids": torch.zeros(6, 9, dtype=torch.long), "completion_mask": samples.mask.long(),
              "advantages": samples.advantages[:, 0], "old_per_token_logps": samples.old_logps,
              "ref_per_token_logps": samples.ref_logps, "num_items_in_batch": samples.mask.sum()}
    found: Tensor = grpo.GRPOTrainer._compute_loss(Oracle(samples, **settings), None, inputs)
    return found


@pytest.mark.parametrize("name", ORACLES)
def test_values_and_gradients_equal_trls(name: str) -> None:
    data, settings = ORACLES[name]
    for seed in range(3):
        mine, theirs = random_samples(seed), random_samples(seed)
        value, oracle = loss(data, mine).loss, trls(theirs, settings)
        value.backward()
        oracle.backward()
        assert value.item() == pytest.approx(oracle.item(), rel=1e-5, abs=1e-6)
        assert mine.logps.grad is not None and theirs.logps.grad is not None
        assert torch.allclose(mine.logps.grad, theirs.logps.grad, atol=1e-6)


# -- planted ----------------------------------------------------------------------------------------------------------


def wrong_sign(samples: SampleBatch) -> SampleBatch:
    return replace(samples, advantages=-samples.advantages)


def wrong_detach(samples: SampleBatch) -> SampleBatch:
    """The old log-probs carry the graph: the ratio is 1 and its gradient 0."""
    return replace(samples, old_logps=samples.logps)


def stale(samples: SampleBatch) -> SampleBatch:
    """The ratio forgotten: samples of another policy taken for its own."""
    return replace(samples, old_logps=None)


def no_stop(samples: SampleBatch) -> SampleBatch:
    assert samples.stop is not None
    return replace(samples, mask=samples.mask & ~samples.stop)


def neighbour(samples: SampleBatch) -> SampleBatch:
    return replace(samples, advantages=samples.advantages.roll(1, dims=0))


@pytest.mark.parametrize("fault", [wrong_sign, stale, no_stop, neighbour])
def test_a_planted_fault_is_not_the_loss(fault: Any) -> None:
    right, wrong = batch(), fault(batch())
    for samples in (right, wrong):
        loss({"type": "grpo"}, samples).loss.backward()
    assert right.logps.grad is not None and wrong.logps.grad is not None
    assert not torch.allclose(right.logps.grad, wrong.logps.grad, atol=1e-3)


def test_old_log_probs_never_carry_a_graph() -> None:
    samples = wrong_detach(batch())
    loss({"type": "grpo"}, samples).loss.backward()
    assert samples.logps.grad is not None and torch.allclose(samples.logps.grad, -padded(ADVANTAGES, 0.0) / 6)


def test_lengths_count_as_said() -> None:
    """A sample said twice as long weighs twice under the token mean, as much under the sequence mean."""
    mask = torch.arange(8) < torch.tensor([[8], [4]])
    samples = SampleBatch(logps=torch.full((2, 8), -1.0, requires_grad=True), mask=mask,
                          advantages=torch.ones(2, 8), group=torch.tensor([0, 0]))
    for data, share in (({"type": "grpo"}, 2.0), ({"type": "grpo", "loss_type": "grpo"}, 1.0),
                        ({"type": "grpo", "loss_type": "dr_grpo", "max_completion_length": 8}, 2.0)):
        (grad,) = torch.autograd.grad(loss(data, samples).loss, samples.logps)
        assert float(grad[0].sum() / grad[1].sum()) == pytest.approx(share)
