"""Two processes of one training give what one process gives: losses, metrics, weights, held-out means."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train_helpers import StopAt, apart, curve, make_config, make_generator, make_pairs, weights

from talker_rl.base.disk import read_json
from talker_rl.base.errors import ConfigError, StageError
from talker_rl.losses import config as losses
from talker_rl.records.pair import Completion
from talker_rl.train import processes
from talker_rl.train.run import train_variant

PAIRS, CONDITIONINGS = make_pairs(19, prompts=6)
COMPLETIONS = [Completion(p.prompt_id, p.pair_id, p.text, p.speaker, p.chosen, p.chosen_id) for p in PAIRS]
CLASSED = [replace(p, chosen_classes=[i % 3 for i in range(p.chosen.steps)],
                   rejected_classes=[i % 2 for i in range(p.rejected.steps)]) for p in PAIRS]
TRAINED = 15
TOKEN = {"type": "sft", "normalize": "token"}
CASES: dict[str, dict[str, Any]] = {
    "dpo": {},
    "full": {"lora": None, "args": {"learning_rate": 1e-4}},  # Adam makes a whole step of a gradient of nearly 0
    "ld_dpo": {"loss": {"type": "ld_dpo", "beta": 0.1, "alpha": 0.5}},
    "sampo": {"loss": {"type": "sampo", "beta": 0.5}},
    "sft_token": {"loss": TOKEN},
    "completions": {"data": "best_of_n", "loss": TOKEN},
    "mix": {"loss": {"type": "mix", "terms": [{"weight": 1.0, "loss": {"type": "sampo", "beta": 0.1}},
                                              {"weight": 0.5, "loss": TOKEN},
                                              {"weight": 0.3, "loss": {"type": "sampo", "beta": 0.2}}]}},
    "dpo_drop": {"loss": {"type": "dpo", "beta": 0.5, "stop": "drop", "label_smoothing": 0.1, "robust": True}},
    "dpo_norm": {"loss": {"type": "dpo_norm", "beta": 1.0}},
    "hinge": {"loss": {"type": "hinge", "beta": 0.5}},
    "ipo": {"loss": {"type": "ipo", "beta": 1.0, "normalize": "mean"}},
    "r_dpo": {"loss": {"type": "r_dpo", "beta": 0.5, "alpha": 0.1}},
    "sampo_top_k": {"loss": {"type": "sampo", "beta": 0.5, "mode": "top_k"}},
    "ld_dpo_keep": {"loss": {"type": "ld_dpo", "beta": 0.5, "alpha": 0.0, "stop": "keep"}},
    "simpo": {"loss": {"type": "simpo", "beta": 2.0, "gamma": 0.5}},
    "token_weights": {"loss": {"type": "dpo", "beta": 0.5, "token_weights": {"others": 0.2, "substituted": 1.0}}},
    "accumulation": {"args": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 2}},
}  # fmt: skip


def settings(case: dict[str, Any], **args: Any) -> Any:
    """Batches of 7 of 15 pairs: an epoch ends with a batch of one pair, so that one of two processes has none."""
    own = {"per_device_train_batch_size": 7, "max_steps": 4, "learning_rate": 5e-3, **case.get("args", {}), **args}
    return make_config(**{**case, "args": own})


def train(folder: Path, cfg: Any, **options: Any) -> dict[str, Any]:
    data: list[Any] = COMPLETIONS if cfg.data else CLASSED if "token_weights" in cfg.loss else PAIRS
    return train_variant(make_generator(), data[:TRAINED], CONDITIONINGS, cfg, folder, eval_pairs=data[TRAINED:],
                         progress=False, **options)  # fmt: skip


def ranks(function: Callable[[], Any], world: int = 2) -> list[Any]:
    """What the function returns, or raises, in each of several processes of one training, forked from this one."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    stay, go = os.pipe()  # each stays until all have answered: one that left early may be who the others connect to
    for rank in range(world):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            gc.freeze()  # or else the first collection copies all that came along
            os.close(go)
            with os.fdopen(write, "wb") as out:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
                signal.alarm(120)
                torch.set_num_threads(1)
                for state in (AcceleratorState, GradientState, PartialState):  # of trainings in this process
                    state._reset_state()
                try:
                    made = function()
                except BaseException as error:
                    made = error if isinstance(error, StageError | ConfigError) else traceback.format_exc()
                out.write(pickle.dumps(made))
            os.read(stay, 1)
            os._exit(0)
        os.close(write)
        children.append((pid, read))
    results = []
    for _, read in children:
        with os.fdopen(read, "rb") as source:
            content = source.read()
        results.append(pickle.loads(content) if content else "died")
    os.close(go)
    os.close(stay)
    for pid, _ in children:
        os.waitpid(pid, 0)
    return results


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """All cases in one process and in two: a folder with ``one/<case>`` and ``two/<case>``; what the two returned."""
    root = tmp_path_factory.mktemp("trained")

    def everything() -> dict[str, Any]:
        return {name: train(root / "two" / name, settings(case)) for name, case in CASES.items()}

    made = ranks(everything)
    for name, case in CASES.items():
        train(root / "one" / name, settings(case), reference_cache=root / "cache")
    return root, made


def test_every_loss_of_pairs_is_among_the_cases():
    own = {cls.model_fields["type"].default for cls in losses._REGISTRY.values() if cls.__module__ == losses.__name__}
    assert {make_config(**case).loss["type"] for case in CASES.values()} == own - {"custom"}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(trained, name):
    root, (first, second) = trained
    assert isinstance(first, dict) and isinstance(second, dict), (first, second)
    alone, together = (root / where / name for where in ("one", "two"))
    result = read_json(alone / "result.json")
    assert first[name] == second[name] == read_json(together / "result.json")
    assert first[name]["data"] == result["data"]
    assert first[name]["reference"]["computed"] == len(PAIRS) * settings(CASES[name]).sides
    logged, weight = apart(alone, together)
    print(f"{name}: logged {logged:.1e}, weights {weight:.1e}")
    assert logged <= 1e-5 and weight <= 1e-5
    assert any(bool(v.any()) for k, v in weights(alone).items() if "lora_B" in k or "lora" not in k)


def test_held_out_means_count_each_pair_once(trained):
    row = next(row for row in curve(trained[0] / "two" / "dpo") if "eval_loss" in row)
    held_out = PAIRS[TRAINED:]
    assert len(held_out) == 4  # in batches of 3: one process of two has nothing of the last
    assert row["eval_length/chosen"] == sum(p.chosen.steps for p in held_out) / 4
    assert row["eval_length/diff"] == sum(p.chosen.steps - p.rejected.steps for p in held_out) / 4


def test_cut_and_resumed_in_two_processes_is_bit_identical_and_in_one_equal(tmp_path):
    cfg = settings(CASES["accumulation"], save_steps=3, logging_steps=2, max_steps=5)  # a checkpoint within a window

    def cut(folder: Path) -> Any:
        with pytest.raises(KeyboardInterrupt):
            train(folder, cfg, extra_callbacks=[StopAt(4)], reference_cache=tmp_path / "cache")
        return sorted(p.name for p in folder.glob("checkpoint-*"))

    def whole_and_resumed() -> Any:
        names = cut(tmp_path / "cut"), cut(tmp_path / "moved")
        for name in ("whole", "cut"):
            train(tmp_path / name, cfg, reference_cache=tmp_path / "cache")
        return names

    for names in ranks(whole_and_resumed):
        assert names == (["checkpoint-3"], ["checkpoint-3"])
    assert apart(tmp_path / "whole", tmp_path / "cut") == (0.0, 0.0)
    train(tmp_path / "moved", cfg, reference_cache=tmp_path / "cache")  # begun in two processes, ended in one
    assert max(apart(tmp_path / "whole", tmp_path / "moved")) <= 1e-5


def test_what_the_main_process_finds_wrong_is_raised_in_all(trained):
    folder = trained[0] / "two" / "dpo"

    def other_settings() -> Any:
        return train(folder, settings({}, max_steps=9))

    errors = ranks(other_settings)
    assert all(isinstance(error, StageError) and "max_steps: 4 -> 9" in error.what for error in errors), errors
    assert errors[0].fix == errors[1].fix is not None
    few = ranks(lambda: train(folder, settings({}, per_device_train_batch_size=1)))
    assert all(isinstance(error, ConfigError) and "batches of 1" in error.what for error in few), few


def test_what_cannot_be_sent_is_told_by_its_name():
    class Local(Exception):
        pass

    def fails() -> Any:
        torch.distributed.init_process_group("gloo")

        def broken() -> None:
            raise Local("no class to load it by")

        try:
            processes.on_main(broken)
        except RuntimeError as error:
            return str(error), processes.gather(processes.index())

    assert ranks(fails) == [("Local: no class to load it by", [0, 1])] * 2
