"""DeepSpeed's ZeRO gives what one process gives, saves what it trained, and goes on where it was cut; what would lose
or change the weights without a word is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_train_processes import CASES, ranks, settings, train
from train_helpers import StopAt, apart, losses, make_omni, weights

from talker_rl.base.errors import ConfigError, TrainingError
from talker_rl.speech.qwen2_5_omni.generator import OmniGenerator
from talker_rl.train import fsdp, saved
from talker_rl.train.arguments import TalkerArguments
from talker_rl.train.engine_config import EngineConfig
from talker_rl.train.engines import deepspeed_settings, require

deepspeed = pytest.importorskip("deepspeed", reason="talker-rl[deepspeed] is not installed")

ENGINES = ("zero2", "zero3", "fsdp2")
IN_PARTS = ("zero3", "fsdp2")
RUN = ("dpo", "full", "mix", "accumulation")
GATHERED = "stage3_gather_16bit_weights_on_model_save"


@pytest.fixture(scope="module", autouse=True)
def _probed() -> None:
    """What can be compiled here, which DeepSpeed finds out by compiling: once, and not in every process."""
    assert deepspeed.ops.__compatible_ops__ is not None


def engine_of(name: str) -> dict[str, Any]:
    """ZeRO-3 as one's own configuration without the threshold below which it leaves a tensor whole: the tiny Talker is
    all below it."""
    if name != "zero3":
        return {"engine": {"name": name}}
    zero = {"stage": 3, GATHERED: True, "stage3_param_persistence_threshold": 0}
    return {"args": {"deepspeed": {"zero_optimization": zero, "train_micro_batch_size_per_gpu": "auto",
                                   "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
                                   "zero_allow_untested_optimizer": True}}}


def trained_with(name: str, folder: Path, case: dict[str, Any], **options: Any) -> dict[str, Any]:
    """A training of this process's with an engine; another one may have come before it."""
    from accelerate.state import AcceleratorState, GradientState

    for state in (AcceleratorState, GradientState):
        state._reset_state()
    own = engine_of(name)
    return train(folder, settings({**case, **own, "args": {**case.get("args", {}), **own.get("args", {})}}), **options)


def parts_of(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*optim_states.pt"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Any]]]:
    """All cases in one process, and with each engine in two; what the two returned, and whether their weights lay in
    parts while they trained."""
    root = tmp_path_factory.mktemp("engines")

    def everything(name: str) -> Any:
        from transformers import TrainerCallback

        sizes: list[int] = []

        class Look(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
                sizes.append(sum(p.numel() for p in model.parameters()))
                kind = str(args.distributed_state.distributed_type).rpartition(".")[2]
                assert kind == ("MULTI_CPU" if name == "fsdp2" else "DEEPSPEED") and args.world_size == 2
                if name == "fsdp2":  # half of every weight is here
                    assert fsdp.is_cut(model)
                    parts = [(p.to_local().numel(), p.numel()) for p in model.parameters() if p.shape[0] % 2 == 0]
                    assert parts and all(2 * here == whole for here, whole in parts)

        made = {case: trained_with(name, root / name / case, CASES[case], extra_callbacks=[Look()]) for case in RUN}
        return made, max(sizes)

    made = {name: ranks(lambda name=name: everything(name)) for name in ENGINES}
    for case in RUN:
        train(root / "one" / case, settings(CASES[case]), reference_cache=root / "cache")
    return root, made


@pytest.mark.parametrize("case", RUN)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_equals_one_process(trained, engine, case):
    root, made = trained
    assert all(isinstance(one, tuple) for one in made[engine]), made[engine]
    (first, whole), (second, _) = made[engine]
    assert first[case] == second[case]
    assert (whole == 0) == (engine == "zero3")  # whose weights lie in parts, each process's where nobody counts them
    logged, weight = apart(root / "one" / case, root / engine / case)
    print(f"{engine} {case}: logged {logged:.1e}, weights {weight:.1e}")
    assert logged <= 1e-5 and weight <= 1e-5
    assert not parts_of(root / engine / case) and not list((root / engine / case).rglob("zero_to*"))
    for step in (3, 4):
        shapes = {k: v.shape for k, v in weights(root / engine / case / f"checkpoint-{step}").items()}
        assert shapes == {k: v.shape for k, v in weights(root / "one" / case / f"checkpoint-{step}").items()}


@pytest.mark.parametrize("engine", ENGINES)
def test_cut_and_resumed_it_is_bit_identical_and_in_another_world_equal_or_refused(tmp_path, engine):
    case = {**CASES["accumulation"], "args": {**CASES["accumulation"]["args"], "save_steps": 3, "logging_steps": 2,
                                              "max_steps": 5}}  # a checkpoint within a window of the log

    def whole_and_resumed() -> Any:
        for name in ("cut", "moved"):
            with pytest.raises(KeyboardInterrupt):
                trained_with(engine, tmp_path / name, case, extra_callbacks=[StopAt(4)],
                             reference_cache=tmp_path / "cache")
        for name in ("whole", "cut"):
            trained_with(engine, tmp_path / name, case, reference_cache=tmp_path / "cache")

    assert ranks(whole_and_resumed) == [None, None]
    assert apart(tmp_path / "whole", tmp_path / "cut") == (0.0, 0.0)
    if engine == "fsdp2":  # whose checkpoints hold whole tensors
        train(tmp_path / "moved", settings(case), reference_cache=tmp_path / "cache")
        assert max(apart(tmp_path / "whole", tmp_path / "moved")) <= 1e-5
        return
    assert len(parts_of(tmp_path / "moved")) == 2
    (alone,) = ranks(lambda: trained_with(engine, tmp_path / "moved", case), world=1)
    assert isinstance(alone, ConfigError) and "in 2 parts" in alone.what, alone
    if engine == "zero2":  # whose settings are those of a training without an engine
        with pytest.raises(ConfigError, match="was written with DeepSpeed, and training would go on without it"):
            train(tmp_path / "moved", settings(case))


@pytest.mark.parametrize("engine", IN_PARTS)
def test_drift_is_measured_where_weights_lie_in_parts(tmp_path, engine):
    """Every process takes part in the forward; checkpoints by drift come at the same steps."""
    case = {"save_at_kl": [1e-5], "args": {"learning_rate": 2e-2}}

    def both() -> Any:
        return trained_with(engine, tmp_path / "two", case)["checkpoints"]

    steps = ranks(both)
    train(tmp_path / "one", settings(case))
    assert steps == [sorted(int(f.name[11:]) for f in (tmp_path / "one").glob("checkpoint-*"))] * 2
    assert max(apart(tmp_path / "one", tmp_path / "two")) <= 1e-5


def test_a_base_in_bfloat16_with_its_adapter_in_float32(tmp_path, monkeypatch):
    """Rounding hangs on how many rows a product has, so processes differ from one alone by more than float32 does; ways
    of spreading the same shares differ by nothing, or by ZeRO-3's own rounding."""
    def half() -> OmniGenerator:
        omni = make_omni()
        omni.talker = omni.talker.to(torch.bfloat16)
        return OmniGenerator(omni)

    monkeypatch.setattr("test_train_processes.make_generator", half)
    case = {"args": {"learning_rate": 1e-3, "max_steps": 2, "save_steps": 2}}

    assert all(isinstance(one, dict) for one in ranks(lambda: train(tmp_path / "ddp", settings(case))))
    for name in ENGINES:
        made = ranks(lambda name=name: trained_with(name, tmp_path / name, case))
        assert all(isinstance(one, dict) for one in made), made
    train(tmp_path / "one", settings(case))
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "zero3").values())
    for name in ENGINES:
        logged, weight = apart(tmp_path / "ddp", tmp_path / name)
        both = zip(losses(tmp_path / "one"), losses(tmp_path / name), strict=True)
        alone = max(abs(a - b) for (_, a), (_, b) in both)
        print(f"{name}: against ddp {logged:.1e}, {weight:.1e}; loss against one process {alone:.1e}")
        assert alone <= 2e-2 and weight <= (2e-3 if name == "zero3" else 1e-5)
    assert losses(tmp_path / "zero2")[0][1] == pytest.approx(0.693147, abs=1e-6)  # policy and reference are one


@pytest.mark.parametrize(("engine", "args", "told"), [
    ("auto", {"deepspeed": {"zero_optimization": {"stage": 3}}}, "would save nothing"),
    ("auto", {"deepspeed": {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}}, "casts everything"),
    ("auto", {"deepspeed": {"zero_optimization": {"stage": 2}, "fp16": {"enabled": "auto"}}}, "casts everything"),
    ("zero2", {"bf16": True}, "autocast"),
    ("zero2", {"use_cpu": True}, "makes plain DDP"),
    ("zero2", {"deepspeed": {}}, "both say"),
    ("auto", {"deepspeed": "nowhere.json"}, "cannot be read"),
])
def test_what_would_lose_or_change_the_weights_is_refused(engine, args, told):
    with pytest.raises(ConfigError, match=told) as caught:
        deepspeed_settings(EngineConfig(name=engine), args)
    assert caught.value.where.startswith("train.") and caught.value.fix


def test_parts_need_processes_that_know_of_each_other(tmp_path):
    with pytest.raises(ConfigError, match="this one was started alone"):
        train(tmp_path / "run", settings({"engine": {"name": "fsdp2"}}))


def test_an_engine_that_became_another_one_ends_the_training(monkeypatch):
    args = TalkerArguments(output_dir="nowhere")
    require(args, None, 1)
    with pytest.raises(TrainingError, match="would run as no and not with DeepSpeed"):
        require(args, {"zero_optimization": {"stage": 2}}, 1)
    with pytest.raises(TrainingError, match="2 processes were started, and this one sees 1"):
        require(args, None, 2)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ConfigError, match="makes plain DDP of DeepSpeed"):
        deepspeed_settings(EngineConfig(name="zero2"), {})


@pytest.mark.parametrize("lost", ["file", "tensor", "empty"])
def test_weights_that_were_not_saved_are_noticed(tmp_path, lost):
    expected = Counter([(2, 3), (3, 4)])
    tensors = {"a": torch.ones(2, 3), "b": torch.ones(0) if lost == "empty" else torch.ones(3, 4)}
    if lost != "file":
        save_file({k: v for k, v in tensors.items() if lost == "empty" or k == "a"},
                  tmp_path / "adapter_model.safetensors")
    with pytest.raises(TrainingError, match="no weights were saved" if lost == "file" else r"1 of shape \(3, 4\)"):
        saved.check(tmp_path, expected)
    save_file({"a": torch.ones(2, 3), "b": torch.ones(3, 4)}, tmp_path / "adapter_model.safetensors")
    saved.check(tmp_path, expected)
