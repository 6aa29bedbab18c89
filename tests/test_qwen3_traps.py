"""What public scripts for Qwen3-Omni's Talker stumble over, each by its number; those that this project could, too.

    1   a Talker alone is loaded without its experts      test_qwen3_family.py, test_a_talker_alone_has_the_experts...
    2   a fresh Talker is uninitialized memory             here
    3   ``labels=`` shifts, or takes one head for all      here: nothing gives labels, and each code has its own head
    4   the state at a frame in place of the one before    here, planted
    5   streams of unequal replies in a batch              test_qwen3_twin.py, "batch"
    6   padding that is read, turns that are not           here; test_the_talker_reads_what_upstream_gives_it
    7   code2wav's end, and chunks that cut it             test_pieces_and_batches_are_the_whole
    8   codes that are looked up among the next book's     test_codes_that_are_none_are_refused...
    9   positions that restart, taken for packing          here
    10  ``rope_deltas`` left on the module                 here
    11  three counts of codebooks, names in lower case     test_a_config_that_cannot_be_is_refused; here
    12  a cache by default                                 here
    13  small updates lost in bfloat16                     test_export.py (rounding is told); here
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from qwen3_factory import GROUPS, STOP, random_conditionings, tiny_talker
from test_qwen3_twin import FIRST, SAMPLING, requests, sequences, worst

from talker_rl.micro.qwen3.config import SPEAKERS, whole_config
from talker_rl.micro.qwen3.talker import new_talker
from talker_rl.records.speech import Speech
from talker_rl.speech.protocol import TalkerSequence
from talker_rl.speech.qwen3_omni import logps
from talker_rl.speech.qwen3_omni.checkpoint import speaker_rows
from talker_rl.speech.qwen3_omni.codec import CODEC
from talker_rl.speech.qwen3_omni.policy import TalkerPolicy


@pytest.fixture(scope="module")
def talker() -> Any:
    return tiny_talker()


@pytest.fixture(scope="module")
def sampled(talker: Any) -> tuple[TalkerPolicy, Any, list[Any], list[Any]]:
    policy = TalkerPolicy(talker, residual_weight=1.0)
    asked = requests([(6, 3), (11, 2)])
    candidates = policy.sample(asked, SAMPLING)
    examples = sequences(candidates, asked)
    return policy, policy.collate(examples), candidates, examples


def test_trap_2_the_small_models_fresh_talker_is_initialized(tmp_path: Path) -> None:
    found = new_talker(tmp_path)
    for name, value in found.named_parameters():
        assert bool(value.isfinite().all()) and float(value.abs().max()) < 10, name
        if "experts" in name or name.endswith("mlp.gate.weight"):
            assert 0.01 < float(value.std()) < 0.03, name


def test_trap_3_each_code_has_its_own_head(sampled: Any) -> None:
    policy, batch, candidates, _ = sampled
    heads = policy.module.code_predictor.lm_head
    with torch.no_grad():
        right = policy.logps(batch)
        kept = [head.weight.clone() for head in heads]
        for head in heads:
            head.weight.copy_(kept[-1])  # what one head for all would give
        wrong = policy.logps(batch)
        for head, weight in zip(heads, kept, strict=True):
            head.weight.copy_(weight)
    assert worst(right, candidates) <= GROUPS * FIRST < 0.1 < worst(wrong, candidates)


def test_trap_4_the_state_that_predicted_a_frame_and_not_the_one_that_has_read_it(
    sampled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, batch, candidates, _ = sampled
    right = logps.residual_logps
    with torch.no_grad():
        assert worst(policy.logps(batch), candidates) <= GROUPS * FIRST
        monkeypatch.setattr(logps, "residual_logps", lambda talker, hidden, frames: right(
            talker, torch.roll(hidden, -1, 0), frames))
        assert worst(policy.logps(batch), candidates) > 0.1, "a shift by one frame is seen"


def test_trap_6_what_is_padded_changes_nothing(sampled: Any) -> None:
    """Rows of other lengths beside a row: the mask keeps their padding out, and padding has no log-prob."""
    policy, batch, _, examples = sampled
    with torch.no_grad():
        together = policy.logps(batch)
        alone = policy.logps(policy.collate(examples[:1]))[0]
    assert float((together[0, : len(alone)] - alone).abs().max()) <= GROUPS * FIRST
    assert not together[~batch.mask_ST].any()


def test_traps_9_and_10_positions_are_given_and_none_are_left_behind(sampled: Any) -> None:
    """On each of three axes: of two rows upstream would read restarting positions as packed sequences."""
    policy, batch, _, _ = sampled
    assert batch.position_ids_3L.shape[0] == 3 and int((batch.position_ids_3L[0].diff() < 0).sum()) > 0
    before = getattr(policy.module, "rope_deltas", None)
    with torch.no_grad():
        first = policy.logps(batch)
        policy.module.rope_deltas = torch.full((1, 1), 777)
        assert torch.equal(policy.logps(batch), first), "what another forward left on the module does not count"
    policy.module.rope_deltas = before


def test_trap_11_a_name_is_one_in_any_case(tmp_path: Path) -> None:
    assert speaker_rows(whole_config(tmp_path)) == {"Chelsie": SPEAKERS["chelsie"], "Ethan": SPEAKERS["ethan"]}


def test_trap_12_teacher_forcing_keeps_no_cache(sampled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, batch, _, _ = sampled
    asked: list[dict[str, Any]] = []
    for model in (policy.module.model, policy.module.code_predictor.model):
        forward = model.forward
        monkeypatch.setattr(model, "forward", lambda forward=forward, **given: asked.append(given) or forward(**given))
    policy.logps(batch)
    assert len(asked) == 2 and all(given.get("use_cache") is False for given in asked)


def test_trap_13_small_updates_survive_where_weights_are_float32(talker: Any) -> None:
    """In bfloat16 an update of a thousandth of a weight is mostly lost: full weights are refused there."""
    weight = talker.codec_head.weight.detach()
    update = weight * 1e-3
    kept = lambda dtype: float(((weight.to(dtype) + update.to(dtype)).float() - weight.to(dtype).float()).norm()  # noqa: E731
                               / update.norm())
    assert abs(kept(torch.float32) - 1) < 1e-3 and abs(kept(torch.bfloat16) - 1) > 0.2


def test_a_stop_is_one_step_and_no_frame(talker: Any) -> None:
    (spoken,) = random_conditionings([(2, 2)])
    said = Speech([1] * GROUPS, STOP, CODEC)
    both = [TalkerSequence(spoken, one) for one in (said, replace(said, stop_id=None))]
    batch = TalkerPolicy(talker).collate(both)
    assert batch.mask_ST.sum(1).tolist() == [2, 1] and batch.framed_ST.sum(1).tolist() == [1, 1]
