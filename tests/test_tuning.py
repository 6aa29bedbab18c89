"""Tuning: equal budgets, chosen on dev; every mistake of a grid is told before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest

from talker_rl.base.errors import ConfigError
from talker_rl.stages.choice import _table
from talker_rl.stages.sweep_tables import _measured_against
from talker_rl.sweep_config import load_sweep_data
from talker_rl.tuning import TuningConfig, with_settings

SFT = {"type": "mix", "terms": [{"weight": 1.0, "loss": {"type": "dpo"}}, {"weight": 5.0, "loss": {"type": "sft"}}]}
SWEEP: dict[str, Any] = {
    "variants": {"dpo": {"loss": {"type": "dpo", "beta": 0.1}}, "r_dpo": {"loss": {"type": "r_dpo", "alpha": 0.1}},
                 "mixed": {"loss": SFT}},
    "arms": {"natural": {}, "biased": {"variants": ["dpo", "r_dpo"], "pairs": {"chosen_longer_by": 5}}},
    "seeds": [3, 4],
    "run": {"checkpoint": {"save_at_kl": [0.01]}},
    "tuning": {
        "seed": 7, "grid": {"args.learning_rate": [1e-4, 1e-3]},
        "own": {"dpo": {"loss.beta": [0.05, 0.1]}, "r_dpo": {"loss.alpha": [0.02, 0.1]},
                "mixed": {"loss.terms.1.weight": [1.0, 5.0]}}},
}


def swept(**tuning: Any) -> dict[str, Any]:
    return SWEEP | {"tuning": SWEEP["tuning"] | tuning}


def test_every_combination_is_a_training_of_the_arms_own_pairs() -> None:
    config = load_sweep_data(SWEEP)
    run = config.tuning_run("biased")
    assert list(run.variants) == [f"{v}-{k}" for v in ("dpo", "r_dpo") for k in range(4)]
    assert run.pairs.chosen_longer_by == 5 and run.checkpoint.tried == "last"
    assert [(v.args["learning_rate"], v.loss.get("beta"), v.args["seed"]) for v in run.variants.values()][:4] == [
        (1e-4, 0.05, 7), (1e-4, 0.1, 7), (1e-3, 0.05, 7), (1e-3, 0.1, 7)]
    assert all(v.checkpoint.save_at_kl is None for v in run.variants.values())
    mixed = config.tuning_run("natural").variants["mixed-2"]
    assert (mixed.args["learning_rate"], mixed.loss["terms"][1]["weight"]) == (1e-3, 1.0)
    assert load_sweep_data(config.resolved()) == config


def test_what_was_chosen_stands_beside_what_was_published() -> None:
    config = load_sweep_data(SWEEP)
    tuned = {"dpo": {"args.learning_rate": 1e-3, "loss.beta": 0.05}}
    run = config.arm_run("biased", tuned)
    assert list(run.variants) == ["dpo-s3", "dpo-s4", "r_dpo-s3", "r_dpo-s4", "dpo_tuned-s3", "dpo_tuned-s4"]
    assert config.cells("biased", tuned)[-2:] == [("dpo_tuned", 3), ("dpo_tuned", 4)]
    assert run.variants["dpo_tuned-s4"].loss["beta"] == 0.05 and run.variants["dpo-s4"].loss["beta"] == 0.1
    assert run.variants["dpo_tuned-s4"].args | {"seed": 3} == run.variants["dpo_tuned-s3"].args
    assert run.variants["dpo_tuned-s4"].checkpoint.save_at_kl == [0.01]


def test_the_best_on_dev_is_chosen_and_of_equal_ones_the_first() -> None:
    tried = [{"reward": 0.5, "wer": 0.2}, {"reward": 0.6, "wer": 0.3}, {"reward": 0.6, "wer": 0.1}]
    assert TuningConfig().best(tried) == 1 and TuningConfig(metric="wer").best(tried) == 2


def test_a_try_of_which_nothing_could_be_scored_is_not_chosen_and_stops_nothing() -> None:
    """A learning rate that is too high ends in silence: that is what a grid is to find out."""
    said = {"status": "ok", "wer": 0.5, "substitutions": 1, "deletions": 0, "insertions": 0, "ref_words": 2,
            "prompt_id": "p", "text": "a b", "duration": 1.0, "reference_seconds": None, "reward": 0.4,
            "pause_error": 0.1, "cap_hit": False}
    failed = {"status": "failed", "reward": None}
    table = _table([{**said, "step": 0}, {**failed, "step": 2}, {**failed, "step": 2}, {**said, "step": 4}])
    assert [(row["step"], row["n"], row["failed"], row["wer"], row["reward"]) for row in table] == [
        (0, 1, 0, 0.5, 0.4), (2, 0, 2, None, None), (4, 1, 0, 0.5, 0.4)]
    assert table[1].keys() == table[0].keys()
    assert TuningConfig().best(table[1:]) == 1 and TuningConfig(metric="wer").best(table[1:]) == 1
    assert TuningConfig().best(table[1:2]) is None


@pytest.mark.parametrize(("tuning", "told"), [
    ({"own": {"dpo": {"loss.beta": [0.05, 0.1]}}}, "tries more of some variants than of others (dpo: 4, r_dpo: 2"),
    ({"grid": {"args.max_steps": [10, 20]}}, "losses are compared at equal steps"),
    ({"grid": {"args": [{"max_steps": 10}, {"max_steps": 20}]}}, "tuning tries args, and what is saved"),
    ({"grid": {"args.seed": [1, 2]}}, "tuning tries args.seed"),
    ({"grid": {"checkpoint.stop_at_kl": [0.1, 0.2]}}, "tuning tries checkpoint.stop_at_kl"),
    ({"grid": {"args.learning_rate": [1e-3, 1e-3]}}, "a value stands there twice"),
    ({"grid": {"loss.beta": [0.1, 0.2]}, "own": {}}, "tuning tries what a variant does not take"),
    ({"own": {"dpoo": {}}}, "there is no variant 'dpoo'"),
    ({"grid": {"args.learning_rate": []}}, "at least one value"),
    ({"grid": {"loss.terms.1.weight": [1, 2]}, "own": {}}, "loss.terms.1.weight leads nowhere"),
    ({"grid": {"loss.bta": [1, 2]}, "own": {}}, "bta"),
    ({"grid": {"args.learning_rte": [1, 2]}, "own": {}}, "learning_rte"),
])
def test_mistakes(tuning: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        config = load_sweep_data(swept(**tuning))
        for name, cfg in config.tuning_run("natural").variants.items():  # as the sweep does before it begins
            from talker_rl.train.arguments import build_arguments

            build_arguments(cfg.args, name)
    assert told in str(error.value)


def test_names_that_end_as_tuned_ones_do() -> None:
    """With tuning they would be taken for those; without they are names like others."""
    more = {"variants": SWEEP["variants"] | {"dpo_tuned": {"loss": {"type": "dpo"}}}}
    with pytest.raises(ConfigError, match="variants.dpo_tuned: with tuning a name that ends in _tuned"):
        load_sweep_data(SWEEP | more)
    config = load_sweep_data(SWEEP | more | {"tuning": None, "baseline": "dpo"})
    cells = config.cells("natural")
    assert ("dpo_tuned", 3) in _measured_against(config, "dpo", cells) == cells


def test_only_variants_of_some_arm_need_the_same_budget() -> None:
    arms = {"arms": {"biased": SWEEP["arms"]["biased"]}}  # without `mixed`
    own = {name: SWEEP["tuning"]["own"][name] for name in ("dpo", "r_dpo")}
    assert len(load_sweep_data(swept(own=own) | arms).tuning_run("biased").variants) == 8


@pytest.mark.parametrize("at_kl", [[], [0.0], [-1.0], [float("nan")]])
def test_targets_of_the_comparison(at_kl: list[float]) -> None:
    every = {"run": {"eval": {"checkpoints": "all"}}}
    with pytest.raises(ConfigError, match="give numbers above 0"):
        load_sweep_data(SWEEP | every | {"at_kl": at_kl})
    assert load_sweep_data(SWEEP | every | {"at_kl": [0.01]}).at_kl == [0.01]
    with pytest.raises(ConfigError, match="run.eval.checkpoints is `all`"):
        load_sweep_data(SWEEP | {"at_kl": [0.01]})


def test_the_given_data_stay_as_they_are() -> None:
    data = {"loss": {"type": "dpo", "beta": 0.1}, "args": {}}
    assert with_settings(data, {"loss.beta": 0.2, "args.seed": 1}) == {"loss": {"type": "dpo", "beta": 0.2},
                                                                       "args": {"seed": 1}}
    assert data == {"loss": {"type": "dpo", "beta": 0.1}, "args": {}}
