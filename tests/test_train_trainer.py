"""The trainer: learns, resumes exactly, survives kill -9, refuses to go on with NaN, and saves what peft loads."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from losses_helpers import ALL_LOSSES
from safetensors.torch import load_file
from train_helpers import StopAt, curve, losses, make_config, make_generator, make_pairs, weights
from transformers import TrainerCallback

from talker_rl.base.errors import CheckpointError, ConfigError, StageError, TrainingError
from talker_rl.train.callbacks import best_step, evaluations
from talker_rl.train.checkpoints import list_checkpoints, newest_complete, promote_checkpoint
from talker_rl.train.run import train_variant

LOSSES = [
    {"type": "dpo", "beta": 0.1, "label_smoothing": 0.1},
    {"type": "dpo_norm", "beta": 0.5},
    {"type": "ipo", "beta": 0.1, "normalize": "mean"},
    {"type": "ipo", "beta": 0.1, "normalize": "sum"},
    {"type": "hinge", "beta": 0.1},
    {"type": "r_dpo", "beta": 0.1, "alpha": 0.01},
    {"type": "sampo", "beta": 0.1},
    {"type": "sampo", "beta": 0.1, "mode": "top_k"},
    {"type": "ld_dpo", "beta": 0.1, "alpha": 0.5},
    {"type": "simpo", "beta": 2.0, "gamma": 0.5},
    {"type": "sft"},
    {"type": "mix", "terms": [{"weight": 1.0, "loss": {"type": "dpo", "beta": 0.1}},
                              {"weight": 0.2, "loss": {"type": "sft"}}]},
]  # fmt: skip
LOSSES += [loss for loss in ALL_LOSSES if loss["type"] not in {known["type"] for known in LOSSES}]


@pytest.fixture(scope="module")
def generator():
    return make_generator()


@pytest.fixture(scope="module")
def data():
    return make_pairs(16)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("reference")


class Watch(TrainerCallback):
    """Counts the steps that this process took, and looks at the model as training begins."""

    def __init__(self) -> None:
        self.steps = 0
        self.checkpointing = False

    def on_train_begin(self, args, state, control, model=None, **_):
        self.checkpointing = any(getattr(m, "gradient_checkpointing", False) for m in model.modules())

    def on_step_end(self, args, state, control, **_):
        self.steps += 1


def same(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora": None},
        {"loss": {"type": "sampo", "beta": 0.1}},
        # a window of two steps that the checkpoint of step 3 cuts in half
        {"args": {"logging_steps": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}},
    ],
    ids=["lora", "full", "sampo", "window"],
)
def test_resume_is_bit_identical(generator, data, cache, tmp_path, changes):
    pairs, conditionings = data
    cfg = make_config(**changes)
    run = dict(eval_pairs=pairs[12:], progress=False, reference_cache=cache)
    train_variant(generator, pairs[:12], conditionings, cfg, tmp_path / "whole", **run)
    with pytest.raises(KeyboardInterrupt):
        train_variant(generator, pairs[:12], conditionings, cfg, tmp_path / "cut", extra_callbacks=[StopAt(5)], **run)
    assert not (tmp_path / "cut" / "result.json").exists()
    watch = Watch()
    result = train_variant(generator, pairs[:12], conditionings, cfg, tmp_path / "cut", extra_callbacks=[watch], **run)
    assert result["steps"] == 6 and watch.steps == 3
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")
    assert len(losses(tmp_path / "cut")) == (3 if changes.get("args") else 6)


CHILD = """
import os, signal, sys
from train_helpers import make_config, make_generator, make_pairs
from talker_rl.train import trainer
from talker_rl.train.run import train_variant

seal = trainer.seal
def kill_in_the_middle_of_saving(folder):
    if folder.name == "checkpoint-6":
        os.kill(os.getpid(), signal.SIGKILL)
    seal(folder)

trainer.seal = kill_in_the_middle_of_saving
pairs, conditionings = make_pairs(16)
cfg = make_config(args={"max_steps": 8})
train_variant(make_generator(), pairs, conditionings, cfg, sys.argv[1], progress=False)
"""


def test_kill_9_while_saving(generator, data, tmp_path):
    pairs, conditionings = data
    cfg = make_config(args={"max_steps": 8})
    train_variant(generator, pairs, conditionings, cfg, tmp_path / "whole", progress=False)
    folder = tmp_path / "killed"
    root = Path(__file__).resolve().parents[1]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(root), str(root / "tests")]))
    child = subprocess.run([sys.executable, "-c", CHILD, str(folder)], env=env, capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    # It had logged six steps and was saving the sixth: only the third can be resumed from.
    assert list(list_checkpoints(folder)) == [3] and len(losses(folder)) == 6
    assert (folder / ".saving" / "checkpoint-6").is_dir()
    watch = Watch()
    train_variant(generator, pairs, conditionings, cfg, folder, progress=False, extra_callbacks=[watch])
    assert watch.steps == 5 and not (folder / ".saving").exists()
    whole, killed = losses(tmp_path / "whole"), losses(folder)
    assert [step for step, _ in killed] == list(range(1, 9))
    assert max(abs(a[1] - b[1]) for a, b in zip(whole, killed, strict=True)) <= 1e-5
    assert same(tmp_path / "whole", folder)


def test_an_incomplete_checkpoint_is_removed_and_the_one_before_taken(generator, data, cache, tmp_path):
    pairs, conditionings = data
    with pytest.raises(KeyboardInterrupt):
        train_variant(generator, pairs, conditionings, make_config(args={"save_steps": 2}), tmp_path, progress=False,
                      reference_cache=cache, extra_callbacks=[StopAt(5)])  # fmt: skip
    optimizer = tmp_path / "checkpoint-4" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-10])
    with pytest.warns(UserWarning, match="incomplete"):
        found = newest_complete(tmp_path)
    assert found is not None and found.name == "checkpoint-2" and not optimizer.exists()


@pytest.mark.parametrize("loss", LOSSES, ids=[f"{i}-{loss['type']}" for i, loss in enumerate(LOSSES)])
def test_two_steps_of_every_loss(generator, data, cache, tmp_path, loss):
    pairs, conditionings = data
    cfg = make_config(loss=loss, args={"max_steps": 2})
    result = train_variant(generator, pairs[:12], conditionings, cfg, tmp_path,
                           eval_pairs=pairs[12:], progress=False, reference_cache=cache)  # fmt: skip
    (_, first), (_, second) = losses(tmp_path)
    # Two is no multiple of save_steps: the last step is saved and evaluated all the same.
    assert result["checkpoints"] == [2] and result["eval"]["step"] == 2
    assert first != second and all(map(torch.isfinite, torch.tensor([first, second])))
    assert any(bool(v.any()) for k, v in weights(tmp_path).items() if "lora_B" in k)
    for name in ("rewards/accuracies", "rewards/margins", "logps/chosen", "logps/chosen_eos", "logps/chosen_drift",
                 "length/chosen", "length/rejected", "length/chosen_seconds", "length/diff",
                 "length/reward_corr"):  # fmt: skip
        assert name in result["train"], name
    if loss["type"] == "dpo":
        assert first == pytest.approx(0.693147, abs=1e-6)


def test_training_separates_the_pairs_and_held_out_metrics_are_logged(generator, data, cache, tmp_path):
    pairs, conditionings = data
    cfg = make_config(args={"max_steps": 12, "learning_rate": 5e-3, "save_steps": 6})
    result = train_variant(generator, pairs, conditionings, cfg, tmp_path, eval_pairs=pairs[:6], progress=False,
                           reference_cache=cache)  # fmt: skip
    assert result["train"]["loss"] < 0.4 and result["train"]["rewards/accuracies"] == 1.0
    held_out = losses(tmp_path, "eval_loss")
    assert [step for step, _ in held_out] == [6, 12] and held_out[1][1] < held_out[0][1]
    # 6 held-out pairs in batches of 3: the means are over the pairs.
    shorter = [p.chosen.steps < p.rejected.steps for p in pairs[:6]]
    ties = [p.chosen.steps == p.rejected.steps for p in pairs[:6]]
    assert result["eval"]["eval_length/chosen"] == pytest.approx(sum(p.chosen.steps for p in pairs[:6]) / 6)
    assert result["eval"]["eval_length/chosen_shorter"] == pytest.approx((sum(shorter) + sum(ties) / 2) / 6)


def test_accumulation_equals_a_larger_batch(generator, data, cache, tmp_path):
    pairs, conditionings = data
    for name, batch, steps in (("large", 4, 1), ("small", 2, 2)):
        args = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 3}
        train_variant(generator, pairs, conditionings, make_config(args=args), tmp_path / name, progress=False,
                      reference_cache=cache)  # fmt: skip
    for (_, a), (_, b) in zip(losses(tmp_path / "large"), losses(tmp_path / "small"), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize("args", [{"gradient_checkpointing": True}, {"bf16": True}], ids=["checkpointing", "bf16"])
def test_memory_savers_change_little(generator, data, cache, tmp_path, args):
    pairs, conditionings = data
    for name, extra in (("plain", {}), ("saver", args)):
        cfg = make_config(args={"max_steps": 3, **extra})
        watch = Watch()
        train_variant(generator, pairs, conditionings, cfg, tmp_path / name, progress=False, reference_cache=cache,
                      extra_callbacks=[watch])  # fmt: skip
        assert watch.checkpointing == ("gradient_checkpointing" in extra)
    tolerance = 0.05 if "bf16" in args else 1e-6
    for (_, a), (_, b) in zip(losses(tmp_path / "plain"), losses(tmp_path / "saver"), strict=True):
        assert a == pytest.approx(b, abs=tolerance)


def test_the_base_talker_is_left_as_it_was(generator, data, cache, tmp_path):
    pairs, conditionings = data
    before = {k: v.clone() for k, v in generator.omni.talker.state_dict().items()}
    for lora in ({"r": 2}, None):
        cfg = make_config(lora=lora, args={"max_steps": 2, "bf16": True})
        train_variant(generator, pairs, conditionings, cfg, tmp_path / str(bool(lora)), progress=False,
                      reference_cache=cache)  # fmt: skip
        talker = generator.omni.talker
        after = talker.state_dict()
        assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)
        assert not talker.training and not any(p.requires_grad for p in talker.parameters())


def test_peft_loads_the_adapter_and_the_card_tells_its_story(data, cache, tmp_path):
    from peft import PeftModel

    pairs, conditionings = data
    cfg = make_config(args={"max_steps": 2, "learning_rate": 1e-2})
    train_variant(make_generator(), pairs, conditionings, cfg, tmp_path, progress=False, reference_cache=cache)
    model = PeftModel.from_pretrained(make_generator().omni.talker, str(tmp_path))
    loaded = {k: v for k, v in model.state_dict().items() if "lora_" in k}
    saved = weights(tmp_path)
    assert len(loaded) == len(saved) > 0
    assert all(torch.equal(v, saved[k.replace(".default", "")]) for k, v in loaded.items())
    assert not list(tmp_path.rglob("*.bin"))  # no pickled arguments
    card = (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "variant.json").read_text())["pairs_hash"] in card
    assert '"type": "dpo"' in card and "reference: the base" in card


def test_full_weights_load_into_a_talker(data, cache, tmp_path):
    pairs, conditionings = data
    generator = make_generator()
    cfg = make_config(lora=None, args={"max_steps": 2})
    train_variant(generator, pairs, conditionings, cfg, tmp_path, progress=False, reference_cache=cache)
    talker = make_generator(1).omni.talker
    talker.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert not torch.equal(talker.codec_head.weight, generator.omni.talker.codec_head.weight)


def test_nan_stops_with_step_and_pairs(data, cache, tmp_path):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            if state.global_step == 2:
                with torch.no_grad():
                    next(p for n, p in model.named_parameters() if "lora_B" in n).fill_(float("nan"))

    pairs, conditionings = data
    cfg = make_config(args={"save_steps": 1})
    with pytest.raises(TrainingError) as error:
        train_variant(make_generator(), pairs, conditionings, cfg, tmp_path, progress=False, reference_cache=cache,
                      extra_callbacks=[Poison()])  # fmt: skip
    assert "after step 2" in str(error.value)
    assert any(pair.pair_id in str(error.value) for pair in pairs)
    assert 1 in list_checkpoints(tmp_path)


def test_a_full_disk_is_named_and_training_goes_on_afterwards(generator, data, cache, tmp_path, monkeypatch):
    from talker_rl.speech.qwen2_5_omni.policy import TalkerPolicy

    def full(policy, folder, state=None):
        raise OSError(errno.ENOSPC, "No space left on device")

    class FillTheDisk(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 4:
                monkeypatch.setattr(TalkerPolicy, "save", full)

    pairs, conditionings = data
    run = dict(progress=False, reference_cache=cache)
    with pytest.raises(TrainingError, match="disk is full"):
        train_variant(generator, pairs, conditionings, make_config(), tmp_path, extra_callbacks=[FillTheDisk()], **run)
    monkeypatch.undo()
    watch = Watch()
    train_variant(generator, pairs, conditionings, make_config(), tmp_path, extra_callbacks=[watch], **run)
    assert watch.steps == 3


def test_best_checkpoint_is_kept_and_another_can_be_promoted(generator, data, cache, tmp_path):
    pairs, conditionings = data
    cfg = make_config(select="best", args={"max_steps": 8, "save_steps": 2, "learning_rate": 2e-2})
    result = train_variant(generator, pairs[:12], conditionings, cfg, tmp_path, eval_pairs=pairs[12:], progress=False,
                           reference_cache=cache)  # fmt: skip
    values = dict(losses(tmp_path, "eval_loss"))
    assert result["step"] == min(values, key=lambda s: (values[s], s))
    assert result["step"] != 8, "the fixture should overfit, or this test cannot fail"
    assert same(tmp_path, tmp_path / f"checkpoint-{result['step']}")
    assert result["checkpoints"] == [2, 4, 6, 8] and not list(tmp_path.rglob("optimizer.pt"))
    promote_checkpoint(tmp_path, 8)
    assert same(tmp_path, tmp_path / "checkpoint-8")
    with pytest.raises(StageError, match="2, 4, 6, 8"):
        promote_checkpoint(tmp_path, 5)


def test_early_stopping_and_alarm(generator, data, cache, tmp_path):
    pairs, conditionings = data
    args = {"max_steps": 40, "save_steps": 2, "learning_rate": 5e-2}
    cfg = make_config(patience=2, select="best", chosen_drop_alarm=None, args=args)
    result = train_variant(generator, pairs[:12], conditionings, cfg, tmp_path / "patience", eval_pairs=pairs[12:],
                           progress=False, reference_cache=cache)  # fmt: skip
    assert result["steps"] == result["step"] + 4 < 40
    # Preferring what the reference finds likelier by pushing both down: a high rate makes the chosen fall too.
    cfg = make_config(loss={"type": "simpo", "beta": 10.0, "gamma": 5.0}, chosen_drop_alarm=0.01, chosen_drop_stop=True,
                      args=args | {"learning_rate": 0.3})  # fmt: skip
    with pytest.warns(UserWarning, match="nats per code"):
        result = train_variant(generator, pairs, conditionings, cfg, tmp_path / "alarm", progress=False,
                               reference_cache=cache)  # fmt: skip
    assert result["alarm_step"] is not None and result["steps"] == result["alarm_step"] < 40
    assert result["checkpoints"][-1] == result["steps"]


def test_best_step_reads_the_direction_from_the_name():
    history = [{"step": s, "eval_loss": a, "eval_rewards/accuracies": b} for s, a, b in ((1, 0.6, 0.5), (2, 0.5, 0.9))]
    history += [{"step": 3, "eval_loss": float("nan"), "eval_rewards/accuracies": 0.9}, {"step": 3, "loss": 0.0}]
    assert best_step(evaluations(history, "eval_loss"), "eval_loss") == 2
    assert best_step(evaluations(history, "eval_rewards/accuracies"), "eval_rewards/accuracies") == 2
    assert best_step({}, "eval_loss") is None


def test_a_finished_folder_is_returned_and_another_setting_refused(generator, data, cache, tmp_path):
    pairs, conditionings = data
    cfg = make_config(args={"max_steps": 2})
    run = dict(progress=False, reference_cache=cache)
    first = train_variant(generator, pairs, conditionings, cfg, tmp_path, **run)
    stamp = (tmp_path / "adapter_model.safetensors").stat().st_mtime_ns
    assert train_variant(generator, pairs, conditionings, cfg, tmp_path, **run) == first
    assert (tmp_path / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    other = make_config(args={"max_steps": 3})
    with pytest.raises(StageError, match="max_steps: 2 -> 3"):
        train_variant(generator, pairs, conditionings, other, tmp_path, **run)
    with pytest.raises(StageError, match="pairs_hash"):
        train_variant(generator, pairs[:-1], conditionings, cfg, tmp_path, **run)
    assert train_variant(generator, pairs, conditionings, other, tmp_path, resume=False, **run)["steps"] == 3


def test_bad_input_is_named(generator, data, tmp_path):
    pairs, conditionings = data
    with pytest.raises(StageError, match="no pair to train on"):
        train_variant(generator, [], conditionings, make_config(), tmp_path / "a")
    with pytest.raises(StageError, match="chosen_too_long"):
        train_variant(generator, pairs, conditionings, make_config(args={"max_length": 2}), tmp_path / "b")
    with pytest.raises(StageError, match="no conditioning"):
        train_variant(generator, pairs, conditionings[1:], make_config(), tmp_path / "c")
    with pytest.raises(ConfigError, match="held-out pairs"):
        train_variant(generator, pairs, conditionings, make_config(select="best"), tmp_path / "d")
    with pytest.raises(CheckpointError, match="adapter_model.safetensors"):
        train_variant(generator, pairs, conditionings, make_config(), tmp_path / "e", start_adapter=tmp_path)
    with pytest.raises(ConfigError, match="target_modules|LoRA cannot"):
        bad = make_config(lora={"target_modules": ["nothing_like_it"]})
        train_variant(generator, pairs, conditionings, bad, tmp_path / "f")


def test_seeds_differ_and_repeat(generator, data, cache, tmp_path):
    pairs, conditionings = data
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        cfg = make_config(args={"max_steps": 2, "seed": seed})
        train_variant(generator, pairs, conditionings, cfg, tmp_path / name, progress=False, reference_cache=cache)
    assert same(tmp_path / "a", tmp_path / "b") and not same(tmp_path / "a", tmp_path / "c")
    assert curve(tmp_path / "a")[0]["length/chosen"] != curve(tmp_path / "c")[0]["length/chosen"]  # other pairs first
