"""Experts that a rollout went through are written down, and taken again where it is scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from qwen3_factory import random_conditionings, tiny_qwen3, tiny_talker, write_checkpoint

import talker_rl
from talker_rl import cli
from talker_rl.base.errors import ConfigError, DataError
from talker_rl.records.candidate import Candidate
from talker_rl.records.rows import hashed, to_row
from talker_rl.speech.config import LoraSettings, ModelConfig, SamplingConfig
from talker_rl.speech.lora import attach_lora
from talker_rl.speech.protocol import SampleRequest, TalkerSequence
from talker_rl.speech.qwen3_omni.checkpoint import part_hash
from talker_rl.speech.qwen3_omni.policy import TalkerPolicy, lora_targets
from talker_rl.stages.parity_scoring import views_of
from talker_rl.store.shards import ShardFolder

LAYERS, TOP = 4, 6
SAMPLING = SamplingConfig(max_new_tokens=30, top_k=0, top_p=1.0, temperature=1.0, sequence_bias=[([2150], 4.0)])


def policy_in(dtype: torch.dtype) -> TalkerPolicy:
    return TalkerPolicy(tiny_talker(layers=LAYERS, experts=64, top_k=TOP).to(dtype), replay_experts=True)


def spoken(policy: TalkerPolicy, *, batch_size: int = 5) -> tuple[list[Candidate], list[TalkerSequence]]:
    asked = [SampleRequest(c, [100 * i + k for k in range(3)])
             for i, c in enumerate(random_conditionings([(5 + 2 * i, 1 + i % 4) for i in range(4)]))]
    said = policy.sample(asked, SAMPLING, batch_size=batch_size)
    by_id = {r.conditioning.prompt_id: r.conditioning for r in asked}
    return said, [TalkerSequence(by_id[c.prompt_id], c.speech) for c in said]


def apart(policy: TalkerPolicy, said: list[Candidate], sequences: list[TalkerSequence]) -> torch.Tensor:
    with torch.no_grad():
        rows = policy.logps(policy.collate(sequences))
    return torch.cat([(row[: len(c.token_logps)] - torch.tensor(c.token_logps)).abs()
                      for row, c in zip(rows, said, strict=True)])


Spoken = tuple[TalkerPolicy, list[Candidate], list[TalkerSequence]]


@pytest.fixture(scope="module")
def exact() -> Spoken:
    policy = policy_in(torch.float32)
    return policy, *spoken(policy)


def test_every_position_that_was_read_is_written_down(exact: Spoken) -> None:
    """Rows join, leave and move between others; with a batch of one nothing moves."""
    policy, said, sequences = exact
    alone, _ = spoken(policy, batch_size=1)
    for one, other, sequence in zip(said, alone, sequences, strict=True):
        positions = sequence.conditioning.rows[0] + sequence.speech.steps - 1
        assert one.experts is not None and len(one.experts) == positions * LAYERS * TOP
        assert one.codes == other.codes and one.experts == other.experts
    assert {c.end_reason for c in said} == {"eos", "max_tokens"}
    assert float(apart(policy, said, sequences).max()) <= 1e-5 and policy.rerouted() == 0


def test_in_half_precision_it_takes_the_largest_differences_away() -> None:
    policy = policy_in(torch.bfloat16)
    said, sequences = spoken(policy)
    replayed = apart(policy, said, sequences)
    moved = policy.rerouted()
    policy.replay_experts = False
    free = apart(policy, said, sequences)
    assert moved is not None and 0.002 < moved < 0.2 and policy.rerouted() is None
    assert replayed.max() < 0.8 * free.max() and replayed.mean() < 0.9 * free.mean()


def test_what_was_chosen_is_taken_and_nothing_else(exact: Spoken) -> None:
    policy, said, sequences = exact
    other = bytes((value + 1) % 64 for value in said[0].experts or b"")
    changed = [replace(s, speech=replace(s.speech, experts=other)) if i == 0 else s for i, s in enumerate(sequences)]
    far = apart(policy, said, changed)
    steps = [len(c.token_logps) for c in said]
    assert float(far[: steps[0]].max()) > 0.05
    assert float(far[sum(steps[:3]) :].max()) <= 1e-5  # other prompts'
    assert policy.rerouted() > 0.005  # type: ignore[operator]
    # (a sequence without a record chooses for itself, among others that have one)
    mixed = [replace(s, speech=replace(s.speech, experts=None)) if i % 2 else s for i, s in enumerate(sequences)]
    assert float(apart(policy, said, mixed).max()) <= 1e-5
    with pytest.raises(DataError, match="of another model"):
        policy.collate([replace(sequences[0], speech=replace(sequences[0].speech, experts=b"123"))])
    assert spoken(policy)[0] == said  # sampling follows nobody


def test_a_reference_goes_through_its_own_experts(exact: Spoken) -> None:
    """A record is of the policy that sampled: another policy forced through it would be a model that is not there."""
    policy, said, sequences = exact
    other = [replace(s, speech=replace(s.speech, experts=bytes((v + 1) % 64 for v in s.speech.experts or b"")))
             for s in sequences]
    assert float(apart(policy, said, other).max()) > 0.05
    with policy.as_reference():
        assert float(apart(policy, said, other).max()) <= 1e-5
    found = policy.compared(policy.collate(other))
    assert float(found.kl_ST.abs().max()) <= 1e-6
    steps = torch.cat([row[: len(c.token_logps)] - torch.tensor(c.token_logps)
                       for row, c in zip(found.logps_ST, said, strict=True)])
    assert float(steps.abs().max()) <= 1e-5
    assert float(apart(policy, said, other).max()) > 0.05  # and the policy goes through the given ones again


def test_parity_seeks_the_cause_of_a_bound_that_is_not_kept(exact: Spoken) -> None:
    """Under another prompt's conditioning a record of experts has no meaning."""
    policy, _, sequences = exact
    conditionings = list({s.conditioning.prompt_id: s.conditioning for s in sequences}.values())
    assert len({c.rows[0] for c in conditionings}) > 1
    views = views_of(policy, sequences, conditionings)
    assert "another prompt" in views and all(len(rows) == len(sequences) for rows in views.values())


def test_gradients_are_those_of_the_same_experts() -> None:
    """With gradient checkpointing a layer is computed again in the backward pass, behind the forward's end."""
    talker = tiny_talker(layers=LAYERS, experts=64, top_k=TOP)
    module = attach_lora(talker, LoraSettings(r=2, target_modules=lora_targets()), base_model="tiny")
    for name, value in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.02)
    policy = TalkerPolicy(module, replay_experts=True)
    _, sequences = spoken(policy)
    others = [replace(s, speech=replace(s.speech, experts=bytes((v + 7) % 64 for v in s.speech.experts or b"")))
              for s in sequences[:4]]
    found = []
    for again in (False, True):
        module.train()
        if again:
            module.gradient_checkpointing_enable({"use_reentrant": False})
            module.enable_input_require_grads()
        module.zero_grad()
        policy.logps(policy.collate(others)).sum().backward()
        learned = [(n, p.grad) for n, p in module.named_parameters() if p.requires_grad]
        found.append({n: grad.clone() for n, grad in learned if grad is not None})
    assert found[0].keys() == found[1].keys() and found[0]
    assert all(torch.allclose(found[0][n], found[1][n], rtol=1e-4, atol=1e-6) for n in found[0])


def test_records_keep_it(tmp_path: Path, exact: Spoken) -> None:
    _, said, _ = exact
    plain = replace(said[1], experts=None)
    assert "experts" not in to_row(plain) and hashed(to_row(said[0])) != hashed(to_row(replace(said[0], experts=b"1")))
    folder = ShardFolder(tmp_path / "rollouts")
    folder.write(0, [said[0], plain], Candidate)
    assert [c.experts for c in folder.read_all(Candidate)] == [said[0].experts, None]


def test_as_a_setting(tmp_path: Path, capsys: Any) -> None:
    folder = write_checkpoint(tmp_path / "qwen3", tiny_qwen3())
    settings = ModelConfig(path=str(folder), device="cpu", replay_experts=True)
    assert part_hash(settings, "talker") != part_hash(settings.model_copy(update={"replay_experts": False}), "talker")
    (texts := tmp_path / "eval.txt").write_text("stop, go left.\nblue.\n")
    assert cli.main(["parity", "--prompts", "2", "--candidates", "2", f"model.path={folder}", "model.device=cpu",
                     "model.replay_experts=true", f"prompts.eval={texts}", "prompts.speaker=Ann",
                     "rollouts.sampling.max_new_tokens=20"]) == 0
    assert "experts: the rollouts' are taken; 0.0% of routers' choices in a row" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="has no experts"):
        talker_rl.load(ModelConfig(path="micro", replay_experts=True), parts=("talker",))
