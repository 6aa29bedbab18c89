"""Rows and objectives: what a loss is given, and where references and behavior log-probs come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train_helpers import make_config, make_generator, make_pairs

from talker_rl.base.errors import ConfigError, TrainingError
from talker_rl.losses import PairBatch, build_loss
from talker_rl.train.arguments import build_arguments
from talker_rl.train.collate import Examples
from talker_rl.train.objective import PairObjective
from talker_rl.train.rows import CHOSEN, REJECTED, Rows
from talker_rl.train.sources import Stored
from talker_rl.train.trainer import TalkerTrainer


def rows(paired: bool = True) -> Rows:
    generator = torch.Generator().manual_seed(0)
    s = 6 if paired else 3
    mask = torch.arange(5)[None] < torch.tensor([5, 3, 4, 2, 5, 1])[:s, None]
    logps, ref = (-torch.rand(s, 5, generator=generator) * mask for _ in range(2))
    side = torch.tensor([CHOSEN] * 3 + [REJECTED] * 3)[:s]
    return Rows(logps.requires_grad_(), mask, ref, None, torch.arange(3).repeat(s // 3), side)


@pytest.mark.parametrize("loss", ["dpo", "sft", "simpo", "ld_dpo"])
def test_a_pair_loss_is_given_its_two_sides(loss):
    given = rows()
    function = build_loss({"type": loss})
    found = PairObjective(function)(given)
    halves = [(x[:3], x[3:]) for x in (given.logps_ST, given.ref_logps_ST, given.mask_ST)]
    wanted = function(PairBatch(*halves[0], *halves[1], *halves[2]))
    assert torch.equal(found.loss, wanted.loss) and torch.equal(found.per_pair, wanted.per_pair)
    assert PairObjective(function).needs_reference == (loss in ("dpo", "ld_dpo"))


def test_a_sequence_that_was_cut_has_no_stop_to_drop():
    stopped = torch.tensor([True, True, True, False, True, True])
    given = replace(rows(), stopped_S=stopped)
    found = PairObjective(build_loss({"type": "dpo", "beta": 1.0, "stop": "drop"}))(given)
    ratios = (given.logps_ST - given.ref_logps_ST) * given.mask_ST
    sums = [float(ratios[s, : int(given.mask_ST[s].sum()) - int(stopped[s])].sum()) for s in range(6)]
    assert found.margin.tolist() == pytest.approx([sums[i] - sums[3 + i] for i in range(3)], abs=1e-6)
    everything = PairObjective(build_loss({"type": "dpo", "beta": 1.0, "stop": "drop"}))(rows())
    assert found.margin[0].item() != pytest.approx(everything.margin[0].item())  # its last code would have gone


@pytest.mark.parametrize("normalize", ["sequence", "token"])
def test_a_completion_needs_no_rejected(normalize):
    objective = PairObjective(build_loss({"type": "sft", "normalize": normalize}))
    alone, paired = objective(rows(paired=False)), objective(rows())
    assert torch.equal(alone.loss, paired.loss)
    assert set(paired.metrics) - set(alone.metrics) == {"logps/rejected"}


def trainer(policy: Any, folder: Path, source: Any, objective: Any, **args: Any) -> TalkerTrainer:
    cfg = make_config(args={"max_steps": 3, "save_strategy": "no", **args})
    return TalkerTrainer(policy, build_arguments(cfg.args, folder, use_cpu=True, disable_tqdm=True),
                         objective=objective, source=source)  # fmt: skip


def test_references_are_computed_where_none_are_given(tmp_path):
    pairs, conditionings = make_pairs(8)
    objective = PairObjective(build_loss({"type": "dpo", "beta": 0.1}))
    losses = {}
    for name in ("given", "computed"):
        with make_generator().policy(train=make_config().lora, seed=7) as policy:
            source = Stored(pairs, [], conditionings)
            source.refer(policy, tmp_path / "cache")
            if name == "computed":
                source.train = Examples(list(source.train.examples))
                for example in source.train.examples:
                    example.ref_logps = None
            made = trainer(policy, tmp_path / name, source, objective)
            made.train()
            losses[name] = [row["rewards/margins"] for row in made.state.log_history if "loss" in row]
    assert losses["computed"] == pytest.approx(losses["given"], abs=1e-6) and losses["given"][-1] > 1e-3


def test_what_cannot_be_had_is_refused(tmp_path):
    pairs, conditionings = make_pairs(4)
    objective = PairObjective(build_loss({"type": "dpo"}))
    with make_generator().policy(train="full") as policy:
        source = Stored(pairs, [], conditionings)
        source.refer(policy, tmp_path / "cache")
        source.train = Examples(list(source.train.examples))
        for example in source.train.examples:
            example.ref_logps = None
        with pytest.raises(ConfigError, match="moved away from their reference"):
            trainer(policy, tmp_path, source, objective).train()
        objective.needs_behaviour = True
        with pytest.raises(TrainingError, match="policy that was sampled from"):
            trainer(policy, tmp_path, source, objective).train()


def test_recorded_log_probs_reach_the_objective(tmp_path):
    pairs, conditionings = make_pairs(4)
    seen: list[Rows] = []

    class Watching(PairObjective):
        needs_behaviour = True

        def __call__(self, given: Rows) -> Any:
            seen.append(given)
            return super().__call__(given)

    with make_generator().policy(train=make_config().lora) as policy:
        source = Stored(pairs, [], conditionings)
        source.refer(policy, tmp_path / "cache")
        source.train = Examples(list(source.train.examples))
        for example in source.train.examples:
            example.behaviour_logps = [-torch.arange(s.speech.steps) - 1.0 for s in example.sequences]
        trainer(policy, tmp_path, source, Watching(build_loss({"type": "dpo"})), max_steps=1).train()
    behaviour = seen[0].behaviour_logps_ST
    assert behaviour is not None and behaviour.dtype == torch.float32
    assert torch.equal(behaviour, -(torch.arange(behaviour.shape[1]) + 1.0) * seen[0].mask_ST)


def test_no_module_of_training_knows_a_family():
    folder = Path(__file__).resolve().parents[1] / "talker_rl" / "train"
    assert [f.name for f in folder.glob("*.py") if "qwen2_5_omni." in f.read_text()] == []
