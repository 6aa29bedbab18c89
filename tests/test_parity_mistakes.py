"""Mistakes that trainers and engines have shipped, planted by really computing what they compute: each is caught, and
named as far as the figures allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from parity_helpers import STEPS, seeds, tiny

from talker_rl.diagnostics.parity import Bound
from talker_rl.diagnostics.parity_causes import diagnose
from talker_rl.records.prompt import Prompt
from talker_rl.speech.packing import Packing
from talker_rl.speech.protocol import SampleRequest
from talker_rl.stages.parity import judge, measure
from talker_rl.stages.parity_samples import Sample
from talker_rl.stages.parity_scoring import scored, sequences_of

OMNI, QWEN3, ALL = "qwen2_5_omni", "qwen3_omni", "qwen3_omni, all codes"


@dataclass
class Said:
    """What one family said, and how."""

    generator: Any
    policy: Any
    candidates: list[Any]
    sequences: list[Any]
    adapter: str | None = None

    def forced(self, score: Callable[[Any], Any] | None = None) -> list[np.ndarray]:
        return scored(self.policy, self.sequences, "packed", score)

    def under(self, change: Callable[[Any], Any]) -> list[np.ndarray]:
        """Log-probs of a batch that was changed."""
        return self.forced(lambda batch: self.policy.logps(change(batch)))

    @property
    def own(self) -> list[np.ndarray]:
        return [np.array(c.token_logps) for c in self.candidates]


@cache
def said(family: str) -> Said:
    generator = tiny(family)
    policy = generator.made(generator.talker)
    requests = [SampleRequest(c, s) for c, s in zip(generator.conditionings, seeds(), strict=True)]
    candidates = policy.sample(requests, generator.sampling)
    assert any(c.stop_id is not None for c in candidates)
    return Said(generator, policy, candidates, sequences_of(candidates, generator.conditionings))


def verdict(s: Said, recorded: list[np.ndarray], sampling: Any = None, adapter: str | None = None) -> Any:
    samples = [Sample(c.candidate_id, Prompt("", "ann", prompt_id=c.prompt_id), q.speech, row, sampling)
               for c, q, row in zip(s.candidates, s.sequences, recorded, strict=True)]
    return judge(s.generator, samples, s.generator.conditionings, s.generator.sampling, adapter=adapter)


def predictor_of(batch: Any) -> str:
    return "predictor_BT" if hasattr(batch, "predictor_BT") else "predictor_ST"


# What each mistake computes


def not_shifted(s: Said) -> list[np.ndarray]:
    """logits[t] against ids[t]."""
    def change(batch):
        name = predictor_of(batch)
        at = getattr(batch, name)
        later = torch.where(batch.mask_ST[:, 1:], at[:, 1:], at[:, :-1])
        return replace(batch, **{name: torch.cat([later, at[:, -1:]], dim=1)})
    return s.under(change)


def shifted_twice(s: Said) -> list[np.ndarray]:
    def change(batch):
        name = predictor_of(batch)
        at = getattr(batch, name)
        return replace(batch, **{name: torch.cat([at[:, :1], at[:, :-1]], dim=1)})
    return s.under(change)


def rolled(s: Said) -> list[np.ndarray]:
    """The mask shifted, the numbers not."""
    return [np.roll(row, -1) for row in s.own]


def without_stop(s: Said) -> list[np.ndarray]:
    return [row[:-1] if c.stop_id is not None else row for row, c in zip(s.own, s.candidates, strict=True)]


def stop_masked(s: Said) -> list[np.ndarray]:
    return [np.append(row[:-1], 0.0) if c.stop_id is not None else row
            for row, c in zip(s.own, s.candidates, strict=True)]


def processed(s: Said) -> list[np.ndarray]:
    return [np.array(c.processed_logps) for c in s.candidates]


def second_sample(s: Said) -> list[np.ndarray]:
    """Log-probs of another draw of the same prompts, cut to the same lengths."""
    requests = [SampleRequest(c, [9000 + k for k in x])
                for c, x in zip(s.generator.conditionings, seeds(), strict=True)]
    free = s.generator.sampling.model_copy(update={"min_new_tokens": STEPS})
    others = s.policy.sample(requests, free)
    return [np.array(o.token_logps)[: len(row)] for o, row in zip(others, s.own, strict=True)]


def other_prompts(s: Said) -> list[np.ndarray]:
    """A batch whose conditionings are off by one."""
    spoken = s.generator.conditionings
    place = {id(c): i for i, c in enumerate(spoken)}
    wrong = [replace(q, conditioning=spoken[place[id(q.conditioning)] - 1]) for q in s.sequences]
    return scored(s.policy, wrong)


def base_ten(s: Said) -> list[np.ndarray]:
    return [row / np.log(10) for row in s.own]


def positions_restart(s: Said) -> list[np.ndarray]:
    """Completions count from 0 again."""
    def change(batch):
        positions, at = batch.position_ids_3L.clone(), 0
        for prefix, fed in batch.packing.prompts:
            at += prefix
            for steps in fed:
                positions[:, at : at + steps] = torch.arange(steps)
                at += steps
        return replace(batch, position_ids_3L=positions)
    return s.under(change)


def _patched(s: Said, owner: Any, name: str, value: Any, score: Any = None) -> list[np.ndarray]:
    before = owner.__dict__.get(name)
    setattr(owner, name, value)
    try:
        return s.forced(score)
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def projection_missing(s: Said) -> list[np.ndarray]:
    """Inputs reach the Talker's width without the layer that brings them there."""
    name = "thinker_to_talker_proj" if s.generator.omni else "text_projection"
    module, width = getattr(s.generator.talker, name), s.generator.talker.codec_head.in_features
    def plain(x):
        return torch.nn.functional.pad(x, (0, width - x.shape[-1]))
    return _patched(s, module, "forward", plain)


def norm_casts(s: Said) -> list[np.ndarray]:
    """Every norm rounds to bfloat16 before its weight, in a float32 model."""
    norms = [m for m in s.generator.talker.model.modules() if type(m).__name__.endswith("RMSNorm")]
    def rounding(m):
        def forward(x):
            normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + m.variance_epsilon)
            return m.weight * normed.to(torch.bfloat16).to(x.dtype)
        return forward
    for m in norms:
        m.forward = rounding(m)
    try:
        return s.forced()
    finally:
        for m in norms:
            del m.forward


def half_weights(s: Said) -> list[np.ndarray]:
    """Weights merged, stored in bfloat16, and served."""
    before = {k: v.clone() for k, v in s.generator.talker.state_dict().items()}
    for value in s.generator.talker.parameters():
        value.data = value.data.bfloat16().float()
    try:
        return s.forced()
    finally:
        s.generator.talker.load_state_dict(before)


def first_codes_alone(s: Said) -> list[np.ndarray]:
    return [c[:, 0] for c in s.forced(s.policy.code_logps)]


def all_codes(s: Said) -> list[np.ndarray]:
    return [c.sum(1) for c in s.forced(s.policy.code_logps)]


def residual_labels_shifted(s: Said) -> list[np.ndarray]:
    """Each residual code by its neighbor's head."""
    heads = s.generator.talker.code_predictor.lm_head
    kept = [h.weight.data for h in heads]
    for head, weight in zip(heads, [kept[-1], *kept[:-1]], strict=True):
        head.weight.data = weight
    try:
        return s.forced(s.policy.code_logps)
    finally:
        for head, weight in zip(heads, kept, strict=True):
            head.weight.data = weight


def state_after_the_frame(s: Said) -> list[np.ndarray]:
    """The code predictor reads the state that has read the frame, in place of the one that predicted it."""
    from talker_rl.speech.qwen3_omni import logps as module

    right = module.residual_logps
    def wrong(talker, hidden, frames):
        return right(talker, torch.cat([hidden[1:], hidden[-1:]]), frames)
    module.residual_logps = wrong
    try:
        return s.forced(s.policy.code_logps)
    finally:
        module.residual_logps = right


MISTAKES: list[tuple[Callable[[Said], list[np.ndarray]], tuple[str, ...], str]] = [
    (not_shifted, (OMNI, QWEN3), "not shifted"),
    (shifted_twice, (OMNI, QWEN3), "shifted twice"),
    (rolled, (OMNI, QWEN3), "shifted"),
    (without_stop, (OMNI, QWEN3), "stop left out"),
    (stop_masked, (OMNI, QWEN3), "only the stop"),
    (second_sample, (OMNI, QWEN3), "an independent sample"),
    (other_prompts, (OMNI, QWEN3), "another prompt"),
    (base_ten, (OMNI,), "unit: log10"),
    (positions_restart, (OMNI, QWEN3), "from the second step on"),
    (projection_missing, (OMNI, QWEN3), "other"),
    (norm_casts, (OMNI, QWEN3), "rounding"),
    (half_weights, (OMNI, QWEN3), "rounding"),
    (first_codes_alone, (ALL,), "first codebook"),
    (all_codes, (QWEN3,), "all codebooks"),
    (residual_labels_shifted, (QWEN3,), "residual codebooks"),
    (state_after_the_frame, (QWEN3,), "residual codebooks"),
]


@pytest.mark.parametrize(("plant", "family", "expected"), [
    pytest.param(plant, family, expected, id=f"{plant.__name__}-{family}")
    for plant, families, expected in MISTAKES for family in families
])  # fmt: skip
def test_a_planted_mistake_is_caught_and_named(plant, family, expected):
    s = said(family)
    with torch.no_grad():
        recorded = plant(s)
        report = verdict(s, recorded, s.generator.sampling)
    uneven = any(len(row) != len(own) for row, own in zip(recorded, s.own, strict=True))
    tried = "not one a step" if uneven else "not raw; numbers by code" if recorded[0].ndim == 2 else "neither raw nor"
    assert not report.ok and report.kind.startswith(tried)
    names = [cause.name for _, cause in report.causes]
    assert names and names[0].startswith(expected), (names, report.text())


@pytest.mark.parametrize("family", [OMNI, QWEN3])
def test_right_numbers_are_raw(family):
    s = said(family)
    report = verdict(s, s.own)
    assert report.ok and report.kind.startswith("raw") and [r.shape for r in report.rows][1:]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("family", [OMNI, QWEN3])
def test_processed_numbers_are_told_from_raw_ones(family, told):
    """Under the settings that were told; or, where none were, under those that are tried."""
    s = said(family)
    report = verdict(s, processed(s), s.generator.sampling if told else None)
    assert not report.ok and report.kind.startswith("processed (temperature 0.9, top_k 40")
    assert report.causes[0][1].name == "processed"


@pytest.mark.parametrize("family", [OMNI, QWEN3])
def test_an_adapter_mixed_up_is_named(family):
    """The trained adapter is scored, the base was recorded."""
    report = verdict(said(family), said(family).own, said(family).generator.sampling, adapter="some")
    assert report.causes[0][1].name == "reference"


def causal_over_the_row(self, query, key, value, scale, dropout=0.0):
    """A plain causal mask: every sequence of the row sees all before it."""
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, None, dropout, True, scale=scale,
                                                           enable_gqa=True)
    return out.transpose(1, 2)


def leaking_prefix(right):
    """As it should be, but that a prompt's prefix looks at the first row of what stands before it."""
    def attend(self, query, key, value, scale, dropout=0.0):
        out = right(self, query, key, value, scale, dropout)
        first = sum((self.prompts[0][0], *self.prompts[0][1]))
        return out if len(self.prompts) == 1 else torch.cat([out[:, :first], out[:, first:] + 0.5 * out[:, :1]], 1)
    return attend


@pytest.mark.parametrize(("attention", "expected"), [
    (lambda right: causal_over_the_row, "neighbors are seen"),
    (leaking_prefix, "the prefix before is seen"),
], ids=["mask not obeyed", "prefix leaks"])  # fmt: skip
def test_packed_rows_that_leak_are_named(monkeypatch, attention, expected):
    """Alone all is right: the shape of the batch tells."""
    monkeypatch.setattr(Packing, "attend", attention(Packing.attend))
    g = tiny(QWEN3)
    report = measure(g, g.conditionings, g.sampling, seeds(), lora=g.lora)
    assert not report.ok and {cause.name for _, cause in report.causes} == {expected}
    assert [r.kept for r in report.rows[:3]] == [True, expected != "neighbors are seen", False]


def test_where_it_begins_is_told():
    """The first step that differs, its code and both values."""
    s = said(QWEN3)
    wrong = s.own
    wrong[2] = wrong[2].copy()
    wrong[2][3] -= 0.25
    report = verdict(s, wrong, s.generator.sampling)
    place = report.rows[0].place
    assert (place.sequence, place.step, round(place.difference, 4)) == (2, 3, 0.25)
    frame = s.candidates[2].codes[48:64]
    assert f"candidate {s.candidates[2].candidate_id}, step 3 of " in report.text() and str(frame) in report.text()


def test_patterns_on_plain_numbers():
    """Each in itself, without a model."""
    generator, bound = np.random.default_rng(0), Bound(1e-5, 1e-5)
    right = [-generator.exponential(2.0, 40) for _ in range(6)]

    def name(recorded, **options):
        causes = diagnose(recorded, right, bound, **options)
        return causes[0].name if causes else None

    assert name(right) is None
    assert name([-a for a in right]) == "unit: negative" and name([np.exp(a) for a in right]) == "unit: probabilities"
    assert name([a / np.log(2) for a in right]) == "unit: log2" and name([a.cumsum() for a in right]) == (
        "unit: running sums")
    assert name([np.concatenate([[0.0], a[:-1]]) for a in right]) == "shifted"
    assert name([np.concatenate([[a[0] - 1], a[1:]]) for a in right]) == "only the first step"
    assert name([a * 0.8 for a in right]) == "scaled"
    assert name([a + generator.normal(0, 0.01, 40) for a in right]) == "rounding"
    assert name([np.full(40, -np.inf) for _ in right]) == "not finite"
    assert name([a[:-2] for a in right]) == "other lengths"
    assert name([a - 20 + generator.normal(0, 9, 40) for a in right]) == "other inputs"


def test_a_view_is_compared_where_it_has_numbers():
    """Not where it has none; and what was recorded must be a number there."""
    generator, bound = np.random.default_rng(0), Bound(1e-5, 1e-5)
    right, wrong = ([-generator.exponential(2.0, 40) for _ in range(6)] for _ in range(2))
    view = [np.where(np.arange(40) % 8 == 3, row, np.nan) for row in wrong]

    def names(recorded, scored=right, view=view):
        return [cause.name for cause in diagnose(recorded, scored, bound, {"not shifted": view})]

    assert names(wrong)[0] == "not shifted"
    assert names([np.where(np.isnan(row), np.nan, row) for row in view]) == ["not shifted"]
    unsaid = [np.where(np.arange(40) == 3, np.nan, row) for row in wrong]
    assert "not shifted" not in names(unsaid)
    impossible = [np.where(np.arange(40) == 3, -np.inf, row) for row in right]
    assert "not shifted" not in names(wrong, impossible, [row - 1 for row in wrong])


def test_what_is_not_a_number_is_named():
    generator, bound = np.random.default_rng(0), Bound(1e-5, 1e-5)
    right = [-generator.exponential(2.0, 40) for _ in range(6)]
    wrong = [row.copy() for row in right]
    wrong[1][7] = np.nan
    assert [cause.name for cause in diagnose(wrong, right, bound)] == ["not finite"]
    assert [cause.name for cause in diagnose(right, wrong, bound)] == ["not finite"]
