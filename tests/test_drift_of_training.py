"""Exact KL to the reference: against plain softmaxes; while a policy is trained: what is saved, what ends it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omni_factory import random_conditionings, tiny_omni
from said import sequence
from train_helpers import StopAt, curve, losses, make_config, make_generator, make_pairs

from talker_rl.base.errors import ConfigError
from talker_rl.speech.config import LoraSettings
from talker_rl.speech.head import kl_divergence
from talker_rl.speech.lora import attach_lora
from talker_rl.speech.qwen2_5_omni.layout import collate
from talker_rl.speech.qwen2_5_omni.logps import _completion_logits
from talker_rl.speech.qwen2_5_omni.policy import TalkerPolicy
from talker_rl.train.checkpoints import list_checkpoints
from talker_rl.train.drift import EVERY, mean_kl
from talker_rl.train.run import train_variant


def test_kl_of_two_distributions_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]]), torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]])
    # .5 ln 2 + .25 ln .5 = .25 ln 2; ln(5/3) * 2/3 + ln(5/9) / 3
    expected = [0.25 * 0.6931472, 2 / 3 * 0.5108256 - 0.5877867 / 3]
    assert kl_divergence(p.log(), q.log() + 7.0).tolist() == pytest.approx(expected, abs=1e-6)
    ruled_out = torch.tensor([[0.0, -torch.inf]])
    assert kl_divergence(ruled_out, torch.zeros(1, 2)).tolist() == pytest.approx([0.6931472])
    assert kl_divergence(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0,)


@pytest.fixture(scope="module")
def adapted() -> TalkerPolicy:
    model = attach_lora(tiny_omni().talker, LoraSettings(r=4, lora_alpha=8), base_model="tiny")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))
    return TalkerPolicy(model.eval())


def test_a_policy_beside_its_reference(adapted: TalkerPolicy) -> None:
    conditionings = random_conditionings([(5, 3), (9, 2)])
    batch = collate([sequence(conditionings[0], [5, 6, 8294]), sequence(conditionings[1], [7] * 6)])
    found = adapted.compared(batch)
    assert torch.equal(found.logps_ST, adapted.logps(batch).detach())
    assert torch.equal(found.stops_ST, adapted.logps_and_stops(batch)[1].detach())
    with torch.no_grad(), adapted.as_reference():
        assert torch.equal(found.ref_logps_ST, adapted.logps(batch))
        theirs = _completion_logits(adapted.module, batch)[0].double().softmax(-1)
    with torch.no_grad():
        mine = _completion_logits(adapted.module, batch)[0].double().softmax(-1)
    expected = (mine * (mine / theirs).log()).sum(-1)
    assert found.kl_ST[batch.mask_ST].double().sub(expected).abs().max() < 1e-6 and float(expected.min()) > 1e-6
    assert not found.kl_ST[~batch.mask_ST].any()
    per_step = mean_kl(adapted, [sequence(conditionings[0], [5, 6, 8294]), sequence(conditionings[1], [7] * 6)], 1)
    assert per_step == pytest.approx(float(expected.sum()) / 9, rel=1e-5)


def test_the_base_has_not_moved_and_full_weights_have_nothing_to_be_compared_with() -> None:
    policy = TalkerPolicy(tiny_omni().talker)
    batch = collate([sequence(random_conditionings([(5, 3)])[0], [5, 8294])])
    assert not policy.compared(batch).kl_ST.any()
    policy.moved = True
    with pytest.raises(ConfigError, match="leave no reference"):
        policy.compared(batch)
    with pytest.raises(ConfigError, match="full weights leave no reference behind"):
        make_config(lora=None, save_at_kl=[0.1])


@pytest.fixture(scope="module")
def world() -> tuple[Any, Any, Any]:
    return make_generator(), *make_pairs(16)


def drifts(folder: Path) -> dict[int, float]:
    return dict(losses(folder, "kl"))


def test_a_training_saves_where_it_first_has_moved_so_far_and_goes_on(world: Any, tmp_path: Path) -> None:
    generator, pairs, conditionings = world
    args = {"max_steps": 9, "save_steps": 9, "learning_rate": 3e-3}
    run = {"progress": False, "reference_cache": tmp_path / "cache"}
    train_variant(generator, pairs, conditionings, make_config(args=args, save_at_kl=[1e9]), tmp_path / "far", **run)
    moved = drifts(tmp_path / "far")
    assert list(moved) == [*range(EVERY, 9, EVERY), 9] and sorted(moved.values()) == list(moved.values())
    assert list(list_checkpoints(tmp_path / "far")) == [9]
    targets = [(moved[2] + moved[4]) / 2, (moved[6] + moved[8]) / 2]
    cfg = make_config(args=args, save_at_kl=targets)
    result = train_variant(generator, pairs, conditionings, cfg, tmp_path / "near", **run)
    assert result["checkpoints"] == [4, 8, 9] and result["steps"] == 9
    assert drifts(tmp_path / "near") == moved  # to look is not to touch

    # cut between the two, it goes on as if it had not been: what was reached is not saved again
    with pytest.raises(KeyboardInterrupt):
        train_variant(generator, pairs, conditionings, cfg, tmp_path / "cut", extra_callbacks=[StopAt(7)], **run)
    again = train_variant(generator, pairs, conditionings, cfg, tmp_path / "cut", **run)
    assert again["checkpoints"] == [4, 8, 9] and curve(tmp_path / "cut") == curve(tmp_path / "near")

    cfg = make_config(args=args, stop_at_kl=targets[0])
    ended = train_variant(generator, pairs, conditionings, cfg, tmp_path / "ended", **run)
    assert (ended["steps"], ended["step"], ended["checkpoints"]) == (4, 4, [4])
    assert json.loads((tmp_path / "ended" / "result.json").read_text())["selected_by"] == "last step"
