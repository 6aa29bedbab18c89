"""Rows shared by processes (Ulysses), and weights that lie in parts (FSDP2): the same log-probs and gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from omni_factory import omni_config
from test_omni_packing import sequences
from test_train_processes import CASES, ranks, settings, train
from train_helpers import StopAt, apart

from talker_rl.base.errors import ConfigError
from talker_rl.speech.config import LoraSettings
from talker_rl.speech.lora import attach_lora
from talker_rl.speech.packing import Packing
from talker_rl.speech.qwen2_5_omni.layout import collate
from talker_rl.speech.qwen2_5_omni.policy import TalkerPolicy
from talker_rl.speech.sequence import SequenceGroup, check_heads, shared

HEADS = [(12, 4, 2), (12, 4, 4), (14, 2, 2)]
"""(heads, heads of keys, processes that share a row): the 7B's by 2 and 4, the 3B's by 2."""


def talker_with(heads: int, key_heads: int, lora: bool) -> Any:
    """A random Talker with so many heads, and something to train."""
    from transformers import Qwen2_5OmniTalkerForConditionalGeneration as Talker

    torch.manual_seed(3)
    config = copy.deepcopy(omni_config().talker_config)
    config.num_attention_heads = heads
    config.num_key_value_heads = key_heads
    talker = Talker(config).float().eval()
    for value in talker.parameters():
        value.data.normal_(0, 0.2) if value.ndim == 2 else None
    if not lora:
        return talker.requires_grad_(True)
    model = attach_lora(talker.requires_grad_(False), LoraSettings(r=4), base_model="tiny", seed=1)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data.normal_(0, 0.1)
    return model


def logps_and_gradients(policy: TalkerPolicy, module: Any = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Of a loss that weighs every step otherwise."""
    logps = policy.logps(policy.collate(sequences()[:-1]), module)
    weight = torch.linspace(-1, 1, logps.numel()).reshape(logps.shape)
    (logps * weight).sum().backward()
    return logps.detach(), {k: p.grad for k, p in policy.module.named_parameters() if p.requires_grad}


def furthest(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    assert one.keys() == two.keys() and any(float(x.abs().max()) > 1e-3 for x in one.values())
    return max(float((one[k] - two[k]).abs().max() / one[k].abs().max().clamp(min=1e-3)) for k in one)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize(("heads", "key_heads", "size"), HEADS, ids=str)
def test_a_shared_row_gives_the_same_log_probs_and_gradients(heads, key_heads, size, lora):
    whole, gradients = logps_and_gradients(TalkerPolicy(talker_with(heads, key_heads, lora)))
    length = len(collate(sequences()[:-1]).thinker_LE)
    assert length % size  # the row has to be filled up

    def of_one() -> Any:
        torch.distributed.init_process_group("gloo")
        policy = TalkerPolicy(talker_with(heads, key_heads, lora))
        policy.share_rows(size)
        logps, own = logps_and_gradients(policy)
        for gradient in own.values():  # the mean over processes, as DDP takes it
            torch.distributed.all_reduce(gradient)
            gradient /= size
        return logps, own

    made = ranks(of_one, size)
    assert all(isinstance(one, tuple) for one in made), made
    for logps, own in made:
        assert torch.equal(logps, whole) or float((logps - whole).abs().max()) <= 1e-6
        assert furthest(gradients, own) <= 1e-5


def test_what_a_process_exchanges_falls_with_their_number_and_stays_where_rows_grow_with_them(monkeypatch):
    """4 N h / P elements a layer where keys have as many heads as queries (Jacobs et al. 2023, 3.2): three exchanges to
    heads and one back, each of N / P rows; with fewer heads of keys less."""
    sent: list[int] = []

    class Row:
        def __init__(self, positions: int) -> None:
            self.q, self.k, self.v = (torch.zeros(1, heads, positions, 16) for heads in (12, 4, 4))

    def counted(size: int, positions: int) -> int:
        def exchange(got: torch.Tensor, out: torch.Tensor, group: Any) -> None:
            sent.append(out.numel())

        monkeypatch.setattr("torch.distributed.all_to_all_single", exchange)
        monkeypatch.setattr(Packing, "attend", lambda self, q, k, v, *_: q.transpose(1, 2))
        sent.clear()
        own, row = SequenceGroup(None, 0, size), Row(positions // size)
        out = shared(Packing([(positions, [])]), positions, own)[0].attend(row.q, row.k, row.v, 1.0)
        assert out.shape == (1, positions // size, 12, 16)
        return sum(sent)

    assert counted(2, 960) == (12 + 4 + 4 + 12) * 16 * 960 // 2
    assert counted(4, 960) == counted(2, 960) // 2
    assert counted(4, 1920) == counted(2, 960)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_weights_in_parts_give_the_same_log_probs_and_gradients(lora):
    """torch's fully_shard: the codec's embeddings are whole within the forward alone, where they are added."""
    whole, gradients = logps_and_gradients(TalkerPolicy(talker_with(4, 2, lora)))

    def of_one() -> Any:
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor

        torch.distributed.init_process_group("gloo")
        mesh = torch.distributed.init_device_mesh("cpu", (2,))
        policy = TalkerPolicy(talker_with(4, 2, lora))
        talker = policy.module.get_base_model() if lora else policy.module
        for layer in talker.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(talker, mesh=mesh)
        logps, own = logps_and_gradients(policy)
        assert all(isinstance(gradient, DTensor) for gradient in own.values())
        return logps, {k: g.full_tensor() for k, g in own.items()}

    made = ranks(of_one)
    assert all(isinstance(one, tuple) for one in made), made
    for logps, own in made:
        assert float((logps - whole).abs().max()) <= 1e-6
        assert furthest(gradients, own) <= 1e-5


SHARED = {2: ("dpo", "full", "sampo", "sft_token", "accumulation"), 4: ("dpo", "mix", "completions")}
"""Processes -> cases; every row is shared by two."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, list[Any]]]:
    root = tmp_path_factory.mktemp("shared")

    def everything(world: int) -> Any:
        return {name: train(root / str(world) / name, settings({**CASES[name], "engine": {"sequence_parallel": 2}}))
                for name in SHARED[world]}

    made = {world: ranks(lambda world=world: everything(world), world) for world in SHARED}
    for name in {name for names in SHARED.values() for name in names}:
        train(root / "one" / name, settings(CASES[name]), reference_cache=root / "cache")
    return root, made


@pytest.mark.parametrize(("world", "name"), [(w, n) for w, names in SHARED.items() for n in names])
def test_a_training_that_shares_rows_equals_one_process(trained, world, name):
    root, made = trained
    assert len(made[world]) == world and all(isinstance(one, dict) for one in made[world]), made[world]
    assert all(one[name] == made[world][0][name] for one in made[world])
    logged, weight = apart(root / "one" / name, root / str(world) / name)
    print(f"{name}, {world} processes: logged {logged:.1e}, weights {weight:.1e}")
    assert logged <= 1e-5 and weight <= 1e-5


def test_with_zero3_and_gradient_checkpointing_and_cut_and_resumed(tmp_path):
    """Two groups of two processes, weights in parts; recomputed layers exchange heads once more."""
    case = {"engine": {"name": "zero3", "sequence_parallel": 2}}
    more = {"gradient_checkpointing": True, "save_steps": 2}

    def both() -> Any:
        from accelerate.state import AcceleratorState, GradientState

        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", settings(case, **more), extra_callbacks=[StopAt(3)])
        for state in (AcceleratorState, GradientState):
            state._reset_state()
        return train(tmp_path / "cut", settings(case, **more))["steps"]

    pytest.importorskip("deepspeed")
    assert ranks(both, 4) == [4] * 4
    train(tmp_path / "one", settings({}, save_steps=2))
    assert max(apart(tmp_path / "one", tmp_path / "cut")) <= 1e-5


@pytest.mark.parametrize(("heads", "key_heads", "size", "fitting"), [(14, 2, 4, "1, 2"), (12, 4, 3, "1, 2, 4")])
def test_heads_that_cannot_be_shared_are_refused(heads, key_heads, size, fitting):
    check_heads(12, 4, 2)
    with pytest.raises(ConfigError, match=f"{heads} heads with {key_heads} of keys cannot be shared by") as caught:
        check_heads(heads, key_heads, size)
    assert caught.value.fix == f"one of {fitting}"


def test_processes_that_cannot_share_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="1 processes cannot share rows by 2"):
        SequenceGroup.of(2)
    with pytest.raises(ConfigError, match="4 heads with 2 of keys cannot be shared by 3 processes"):
        train(tmp_path / "run", settings({"engine": {"sequence_parallel": 3}}))
