"""Loss dictionaries: what is accepted, what is refused and with which words, and how a new loss joins."""

from __future__ import annotations

import subprocess
import sys
from typing import Literal

import pytest
import torch
from losses_helpers import ALL_LOSSES, loss_id, make_batch, random_parts

from talker_rl.base.errors import ConfigError
from talker_rl.losses import LossOutput, PairBatch, build_loss, loss_types, parse_loss
from talker_rl.losses import config as config_module
from talker_rl.losses.config import Beta, LossConfig, register

BATCH = make_batch(*random_parts([3, 2], [2, 4]), seed=0)


def test_defaults():
    types = {"dpo", "dpo_norm", "ipo", "hinge", "r_dpo", "sampo", "ld_dpo", "simpo", "sft", "custom", "mix"}
    assert set(loss_types()) >= types | {"sigmoid", "sigmoid_norm"}
    assert parse_loss({"type": "sigmoid"}).model_dump() == {
        "type": "dpo", "stop": "as_paper", "token_weights": {}, "beta": 0.1, "label_smoothing": 0.0,
        "robust": False}
    assert parse_loss({"type": "sigmoid_norm"}).type == "dpo_norm"
    simpo = parse_loss({"type": "simpo"})
    assert (simpo.beta, simpo.gamma) == (2.0, 0.5)
    r_dpo = parse_loss({"type": "r_dpo"})
    assert (r_dpo.alpha, r_dpo.alpha_unit, r_dpo.code_rate) == (0.01, "token", None)
    assert parse_loss({"type": "ipo"}).normalize == "mean"
    assert parse_loss({"type": "ld_dpo"}).reference == "both"


def test_every_loss_is_among_those_that_the_rules_are_tried_on():
    tried = {parse_loss(config).type for config in ALL_LOSSES} | {"custom"}
    own = {cls for cls in config_module._REGISTRY.values() if cls.__module__ == config_module.__name__}
    assert {cls.model_fields["type"].default for cls in own} == tried, "add it to ALL_LOSSES in losses_helpers.py"


@pytest.mark.parametrize("config", ALL_LOSSES, ids=loss_id)
def test_round_trip(config):
    parsed = parse_loss(config)
    assert parse_loss(parsed.model_dump()) == parsed
    assert build_loss(parsed).config == parsed
    first, second = (build_loss(c)(make_batch(*random_parts([3, 2], [2, 4]), seed=0)) for c in (config, parsed))
    assert torch.equal(first.loss, second.loss)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"type": "ld_dop"}, ["no loss of type 'ld_dop'", "did you mean `ld_dpo`", "loss.type"]),
        ({"type": "LD_DPO"}, ["did you mean `ld_dpo`"]),
        ({"type": ["dpo"]}, ["no loss of type ['dpo']"]),
        ({"type": "ld_dpo", "alhpa": 0.5}, ["`loss.alhpa` is not a key", "did you mean `alpha`"]),
        ({"type": "dpo", "betta": 1, "label_smooth": 0}, ["did you mean `beta`", "did you mean `label_smoothing`"]),
        ({"type": "dpo", "beta": "strong"}, ["`loss.beta`", "got 'strong'"]),
        ({"type": "dpo", "beta": 0}, ["`loss.beta`", "greater than 0"]),
        ({"type": "ipo", "beta": -1}, ["`loss.beta`", "greater than 0"]),
        ({"type": "simpo", "beta": float("nan")}, ["`loss.beta`", "finite"]),
        ({"type": "dpo", "label_smoothing": 0.5}, ["less than 0.5"]),
        ({"type": "dpo", "robust": True}, ["label_smoothing, e.g. 0.1"]),
        ({"type": "r_dpo", "alpha": -0.1}, ["`loss.alpha`", "greater than or equal to 0"]),
        ({"type": "r_dpo", "alpha_unit": "code"}, ["'token' or 'second'", "got 'code'"]),
        ({"type": "ld_dpo", "alpha": 1.5}, ["`loss.alpha`", "less than or equal to 1"]),
        ({"type": "mix", "terms": []}, ["`loss.terms`", "at least 1"]),
        ({"type": "mix", "terms": [{"weigth": 1, "loss": {"type": "sft"}}]}, ["terms[0].weigth", "`weight`"]),
        ({"type": "mix", "terms": [{"loss": {"type": "sft", "normalise": "token"}}]},
         ["loss.terms[0].loss.normalise", "did you mean `normalize`"]),
        ({"type": "mix", "terms": [{"weight": 1}]}, ["loss.terms[0].loss", "required"]),
        ({"type": "custom"}, ["`loss.import_path`", "required"]),
        ({"type": "custom", "import_path": "no_colon"}, ["`loss.import_path`"]),
        ({"beta": 0.1}, ["has no `type`", "dpo"]),
        ("dpo", ["is a dictionary", "not 'dpo'"]),
    ],
    ids=str,
)  # fmt: skip
def test_refusals(config, words):
    with pytest.raises(ConfigError) as error:
        parse_loss(config)
    for word in words:
        assert word in str(error.value)
    assert error.value.exit_code == 2 and error.value.fix


def test_where_is_the_callers():
    with pytest.raises(ConfigError, match=r"where: train\.loss\.alhpa"):
        parse_loss({"type": "ld_dpo", "alhpa": 0.5}, where="train.loss")


def test_the_configuration_needs_no_torch_and_the_losses_no_trainer():
    code = (
        "import sys, talker_rl.losses.config;"
        "from talker_rl.losses import parse_loss; parse_loss({'type': 'dpo'});"
        "assert 'torch' not in sys.modules;"
        "sys.modules['trl'] = sys.modules['funasr'] = sys.modules['transformers'] = None;"
        "from talker_rl.losses import build_loss; [build_loss({'type': t}) for t in ('dpo', 'sampo', 'ld_dpo', 'sft')];"
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# A loss of one's own -------------------------------------------------------------------------------------------------


def chosen_only(batch: PairBatch, scale: float = 1.0) -> LossOutput:
    logps = torch.where(batch.chosen_mask, batch.policy_chosen_logps, 0.0).sum(1)
    return LossOutput(loss=-scale * logps.mean(), per_pair=-scale * logps, margin=logps.detach(), metrics={})


chosen_only.needs_reference = False  # type: ignore[attr-defined]


def broken(batch: PairBatch):
    return batch.policy_chosen_logps.sum()


def misshapen(batch: PairBatch) -> LossOutput:
    one = batch.policy_chosen_logps
    return LossOutput(loss=one, per_pair=one, margin=one, metrics={})


def test_custom():
    loss = build_loss({"type": "custom", "import_path": f"{__name__}:chosen_only", "kwargs": {"scale": 2.0}})
    assert not loss.needs_reference
    expected = -2 * torch.where(BATCH.chosen_mask, BATCH.policy_chosen_logps, 0.0).sum(1).mean()
    torch.testing.assert_close(loss(BATCH).loss, expected)
    mix = build_loss({"type": "mix", "terms": [{"weight": 0.5, "loss": loss.config.model_dump()}]})
    torch.testing.assert_close(mix(BATCH).loss, expected / 2)


@pytest.mark.parametrize(
    ("path", "kwargs", "words"),
    [
        ("no_such_module_here:f", {}, ["no_such_module_here", "PYTHONPATH"]),
        (f"{__name__}:chosen_onyl", {}, ["no function `chosen_onyl`", "chosen_only"]),
        (f"{__name__}:chosen_only", {"scael": 1}, ["kwargs", "scael", "scale: "]),
    ],
)
def test_custom_that_cannot_be_built(path, kwargs, words):
    with pytest.raises(ConfigError) as error:
        build_loss({"type": "custom", "import_path": path, "kwargs": kwargs})
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(("name", "word"), [("broken", "returned Tensor"), ("misshapen", "of shapes")])
def test_custom_that_returns_something_else(name, word):
    with pytest.raises(ConfigError, match=word):
        build_loss({"type": "custom", "import_path": f"{__name__}:{name}"})(BATCH)


def test_a_new_loss_is_a_function_and_a_config_class(monkeypatch):
    monkeypatch.setattr(config_module, "_REGISTRY", dict(config_module._REGISTRY))

    @register
    class ShiftedConfig(LossConfig):
        aliases = ("shifted2",)
        implementation = f"{__name__}:shifted"
        needs_reference = False
        type: Literal["shifted"] = "shifted"
        beta: Beta = 1.0

    loss = build_loss({"type": "shifted2", "beta": 3.0})
    assert loss(BATCH).loss.item() == 3.0
    with pytest.raises(ConfigError, match="did you mean `shifted`"):
        parse_loss({"type": "shiftd"})

    with pytest.raises(ValueError, match="already registered"):

        @register
        class Impostor(LossConfig):
            type: Literal["shifted"] = "shifted"


def shifted(batch: PairBatch, config) -> LossOutput:
    per_pair = torch.full((len(batch),), config.beta)
    return LossOutput(loss=per_pair.mean(), per_pair=per_pair, margin=per_pair, metrics={})
