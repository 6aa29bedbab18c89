"""Settings of training: what is refused, with which advice, and what the module needs to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from talker_rl.base.errors import ConfigError
from talker_rl.losses.config import parse_loss
from talker_rl.train.config import LOSS_FIELDS, SAVE_STEPS, TrainConfig, suggest_loss


@pytest.mark.parametrize(
    ("args", "advice"),
    [
        ({"beta": 0.1}, '{"type": "dpo", "beta": 0.1}'),  # TRL's default value, but somebody wrote it
        ({"loss_type": "ipo", "beta": 0.2}, '{"type": "ipo", "beta": 0.2, "normalize": "mean"}'),
        ({"loss_type": ["sigmoid_norm"]}, '"dpo_norm"'),
        ({"label_smoothing": 0.1}, '"label_smoothing": 0.1'),
        ({"ld_alpha": 0.5}, '{"type": "ld_dpo", "beta": 0.1, "alpha": 0.5}'),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}, '"type": "mix"'),
        ({"loss_type": "exo_pair"}, "custom"),
        ({"f_divergence_type": "js_divergence"}, "custom"),
        ({"use_weighting": True}, "custom"),
        ({"discopop_tau": 0.05}, "custom"),
    ],
)
def test_loss_fields_are_refused_with_the_dictionary_to_write(args, advice):
    from talker_rl.train.arguments import TalkerArguments

    with pytest.raises(ConfigError) as error:
        TrainConfig(args=args)
    assert advice in str(error.value) and next(iter(args)) in str(error.value)
    with pytest.raises(ConfigError, match="only way to name a loss"):
        TalkerArguments(output_dir="unused", **args)


def test_every_loss_field_of_dpo_config_is_known():
    trl = pytest.importorskip("trl")
    import dataclasses

    from transformers import TrainingArguments

    from talker_rl.train.arguments import _UNUSED

    own = {f.name for f in dataclasses.fields(trl.DPOConfig)} - {f.name for f in dataclasses.fields(TrainingArguments)}
    handled = {"disable_dropout", "max_length", "precompute_ref_batch_size"}
    harmless_alone = {"ref_model_mixup_alpha", "ref_model_sync_steps"}  # only read when sync_ref_model is on
    assert own - set(LOSS_FIELDS) - set(_UNUSED) - handled - harmless_alone == set()


@pytest.mark.parametrize(
    "given",
    [
        {"beta": 0.3},
        {"ld_alpha": 0.2},
        {"loss_type": ["sigmoid", "sft", "ipo", "hinge", "sigmoid_norm"]},
        {"loss_type": "sft"},
    ],
)
def test_suggested_losses_are_valid(given):
    parse_loss(suggest_loss(given))


def test_bad_loss_and_dropout_contradiction_are_named():
    with pytest.raises(ConfigError, match="ld_dpo"):
        TrainConfig(loss={"type": "ld_dop"})
    with pytest.raises(ConfigError, match="lora_dropout"):
        TrainConfig(lora={"lora_dropout": 0.1})
    TrainConfig(lora={"lora_dropout": 0.1}, args={"disable_dropout": False})


def test_defaults(tmp_path):
    from transformers import TrainingArguments

    from talker_rl.train.arguments import HAS_TRL, TalkerArguments, build_arguments

    args = build_arguments({}, tmp_path, use_cpu=True)
    assert isinstance(args, TrainingArguments)
    assert not args.bf16 and not args.fp16 and not args.gradient_checkpointing
    assert args.remove_unused_columns is False and args.report_to == []
    assert args.loss_type is None and args.beta is None
    assert args.data_seed == args.seed
    if HAS_TRL:
        import trl

        assert issubclass(TalkerArguments, trl.DPOConfig)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"learnin_rate": 1.0}, "did you mean 'learning_rate'"),
        ({"padding_free": False}, "padding_free"),
        ({"train_sampling_strategy": "group_by_length"}, "packed"),
        ({"precompute_ref_log_probs": False}, "precompute_ref_log_probs"),
        ({"sync_ref_model": True}, "sync_ref_model"),
        ({"load_best_model_at_end": True}, "select: best"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
        ({"max_length": 0}, "max_length"),
        ({"lr_scheduler_type": "nonsense"}, "nonsense"),
    ],
)
def test_arguments_that_do_nothing_or_do_not_exist_are_refused(tmp_path, args, message):
    from talker_rl.train.arguments import build_arguments

    with pytest.raises(ConfigError) as error:
        build_arguments(args, tmp_path)
    assert message in str(error.value)


def test_imports_without_trl_and_config_without_torch():
    code = """
import sys
import talker_rl.train.config
assert "torch" not in sys.modules and "transformers" not in sys.modules
sys.modules["trl"] = None  # as if it were not installed
sys.modules["funasr"] = None
from talker_rl.train.arguments import HAS_TRL, TalkerArguments
import talker_rl.train.run
assert not HAS_TRL
from talker_rl.base.errors import ConfigError
args = TalkerArguments(output_dir="unused", max_steps=3)
assert args.max_length is None and args.disable_dropout
for bad in ({"beta": 0.1}, {"ld_alpha": 0.5}, {"padding_free": False}):
    try:
        TalkerArguments(output_dir="unused", **bad)
    except ConfigError:
        continue
    raise AssertionError(bad)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_steps_and_checkpoints_are_counted_as_the_trainer_counts_them():
    from talker_rl.train.arguments import TalkerArguments

    fixed = TrainConfig(args={"max_steps": 120})
    assert (fixed.fixed_steps, fixed.steps(7), fixed.checkpoints(0)) == (120, 120, 3)  # every 50, and the last
    by_pairs = TrainConfig(args={"num_train_epochs": 2, "per_device_train_batch_size": 4,
                                 "gradient_accumulation_steps": 2, "save_steps": 10})
    assert (by_pairs.fixed_steps, by_pairs.pairs_per_step) == (None, 8)
    assert (by_pairs.steps(100), by_pairs.checkpoints(100)) == (25, 3)
    assert TrainConfig(args={"save_steps": 0.25}).checkpoints(100) == 4
    assert [TrainConfig(args={"save_strategy": s}).checkpoints(9) for s in ("epoch", "no")] == [3, 1]
    assert TalkerArguments.save_steps == SAVE_STEPS
