"""The forecast: parameters of the real classes, FLOPs by hand and by torch's own counter, growth, measured rates."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omni_factory import omni_config, random_conditionings, speakers, tiny_omni
from said import sequence
from torch.utils.flop_counter import FlopCounterMode

from talker_rl import cli
from talker_rl.config import RunConfig, load_config, load_data
from talker_rl.planning import cost, memory
from talker_rl.planning.command import duration, size
from talker_rl.planning.cost import Lengths
from talker_rl.planning.forecast import Job, forecast
from talker_rl.planning.hardware import HARDWARE, Work, hardware
from talker_rl.speech.cache import ConditioningCache
from talker_rl.speech.config import LoraSettings, Token2WavConfig
from talker_rl.speech.lora import attach_lora
from talker_rl.speech.qwen2_5_omni.layout import collate
from talker_rl.speech.qwen2_5_omni.logps import token_logps
from talker_rl.speech.qwen2_5_omni.shapes import SHIPPED, measure
from talker_rl.speech.qwen2_5_omni.token2wav import decode
from talker_rl.speech.registry import read_geometry
from talker_rl.speech.shapes import Geometry
from talker_rl.stages.plan import parts
from talker_rl.store.shards import ShardFolder

ROOT = Path(__file__).resolve().parents[1]
LORA = LoraSettings(r=4, lora_alpha=8)
AT = Lengths(codes=40, prefix=10, reply=6)
MATRIX = ("aten.mm", "aten.addmm", "mkldnn._linear_pointwise")


def packed_linear(x: torch.Size, weight: torch.Size, *_: object, out_shape: torch.Size, **__: object) -> int:
    """FLOPs of oneDNN's linear layers, which torch's counter does not know."""
    return 2 * math.prod(x) * out_shape[-1]


PACKED = {torch.ops.mkldnn._linear_pointwise: packed_linear}


@pytest.fixture(scope="module")
def tiny() -> Geometry:
    return measure("tiny", omni_config())


def flops(counter: FlopCounterMode, *names: str) -> int:
    found = counter.get_flop_counts()["Global"]
    return sum(count for op, count in found.items() if str(op).removesuffix(".default") in names)


def pair_batch(prompts: int = 2, sides: int = 2) -> Any:
    """Pairs of AT's lengths, both sides of each behind one prefix; completions have one."""
    generator = torch.Generator().manual_seed(0)
    return collate([
        sequence(c, [*torch.randint(0, 8000, (int(AT.codes) - 1,), generator=generator).tolist(), 8294])
        for c in random_conditionings([(int(AT.prefix), int(AT.reply))] * prompts) for _ in range(sides)
    ])  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_parameters_equal_those_of_the_whole_model(name: str) -> None:
    from importlib import resources

    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

    geometry = read_geometry(f"Qwen/{name.upper()}")  # as a hub name
    data = json.loads(resources.files("talker_rl.speech.qwen2_5_omni").joinpath("geometry", f"{name}.json").read_text())
    with torch.device("meta"):
        model = Qwen2_5OmniForConditionalGeneration(Qwen2_5OmniConfig.from_dict(data))
    whole = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in geometry.parameters}
    assert geometry.parameters == whole
    assert sum(whole.values()) == sum(p.numel() for p in model.parameters())
    outside = {"qwen2.5-omni-7b": 8448 * 3584 + 896, "qwen2.5-omni-3b": 8448 * 2048 + 896}[name]  # codes, a bias
    inside = geometry.talker.weights + geometry.head + geometry.projection
    assert whole["talker"] - inside - outside == pytest.approx(0, abs=2e5)  # norms and biases
    assert geometry.dit.weights == 22 * (4 * 1024**2 + 2 * 1024 * 2048) + 2 * 80 * 1024
    assert geometry.dit.keys == 24 * (22 + 2 + 1)  # two layers look back, one ahead


def test_a_tiny_talker_by_hand(tiny: Geometry) -> None:
    # a layer: q 32x64, k and v 32x32, o 64x32, three feed-forwards 32x48
    weights = 2 * (2048 + 2 * 1024 + 2048 + 3 * 1536)
    assert (tiny.talker.weights, tiny.head, tiny.projection) == (weights, 32 * 8448, 48 * 32)
    assert tiny.talker.kv_width == 2 * 2 * 2 * 16
    prefill, sampled = cost.rollouts(tiny, 3, 5, AT, 6, "bfloat16")
    assert prefill.flops == 3 * (2 * (weights + 1536) * 10 + 4 * 64 * 2 * 55)
    pairs = 39 * 10 + 39 * 40 / 2
    assert sampled.flops == 15 * (40 * 2 * (weights + 1536 + 32 * 8448) + 4 * 64 * 2 * pairs)
    assert sampled.moved == 2 * (100 * (weights + 1536 + 32 * 8448) + 15 * pairs * 128)  # 100 steps of 6 rows
    assert sampled.launches == 100 * 2
    assert tiny.adapters(LoraSettings(r=4, target_modules=["q_proj", "o_proj"])) == 2 * 4 * (96 + 96)
    assert tiny.adapters(LoraSettings(r=1, target_modules=r".*layers\.1\.mlp\.up_proj")) == 32 + 48


@pytest.mark.parametrize(("lora", "sides"), [(LORA, 2), (None, 2), (LORA, 1)])
def test_training_costs_what_torch_counts(tiny: Geometry, lora: LoraSettings | None, sides: int) -> None:
    talker = tiny_omni().talker.train()
    model = attach_lora(talker, lora, base_model="tiny") if lora else talker.requires_grad_(True)
    if lora:
        assert tiny.adapters(lora) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    batch = pair_batch(sides=sides)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        token_logps(model, batch)
    with FlopCounterMode(display=False) as both:
        token_logps(model, batch).sum().backward()

    attention = 2 * cost.attention(tiny.talker, cost.causal(10) + sides * cost.tail(10, 40))  # the counter has it dense
    (once,) = cost.reference(tiny, 2, AT, 2, "float32", sides)
    (trained,) = cost.training(tiny, 2, AT, 2, "float32", lora, False, sides)
    adapters = 2 * tiny.adapters(lora) * 2 * (10 + sides * 39) if lora else 0
    assert flops(forward, *MATRIX) == once.flops - attention + adapters
    # with LoRA nothing is trained before the first layer, so its inputs need no gradient: 2 % here, less in deep ones
    assert flops(both, *MATRIX) == pytest.approx(trained.flops - 3 * attention, rel=0.03 if lora else 1e-9)


def test_decoding_costs_what_torch_counts(tiny: Geometry) -> None:
    token2wav, codes = tiny_omni().token2wav, [7] * 80
    counted = []
    for steps in (2, 4):
        cfg = Token2WavConfig(num_steps=steps, guidance_scale=0.5)
        with FlopCounterMode(display=False, custom_mapping=PACKED) as counter:
            decode(token2wav, [codes], [speakers()["Ann"]], [0], cfg)
        counted.append((flops(counter, *MATRIX), flops(counter, "aten.convolution"), cfg))
    flow, sound = cost.decode(tiny, 1, Lengths(81, 0, 0), counted[0][2])
    twice, same = cost.decode(tiny, 1, Lengths(81, 0, 0), counted[1][2])
    attention = 4 * tiny.dit.width * tiny.dit.keys * 160 * (counted[1][2].passes - counted[0][2].passes)
    # the modulations of 8 more times come on top
    assert counted[1][0] - counted[0][0] == pytest.approx(twice.flops - flow.flops - attention, rel=0.05)
    mel = torch.zeros(1, 80, 160)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        token2wav.code2wav_bigvgan_model(mel)
    assert flops(counter, "aten.convolution") == pytest.approx(sound.flops, rel=0.03)
    assert same == sound


def test_activations_are_near_what_autograd_keeps(tiny: Geometry) -> None:
    talker = tiny_omni().talker.train()
    model = attach_lora(talker, LORA, base_model="tiny")
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    held = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(x)  # or else another tensor may get its place
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        token_logps(model, pair_batch())
    logits = 4 * 8448 * 2 * 2 * 40
    expected = memory.activations(tiny, LORA, "float32", False) * 2 * (10 + 78)
    assert sum(kept.values()) - logits == pytest.approx(expected, rel=0.35)
    assert memory.activations(tiny, LORA, "float32", True) < 0.7 * memory.activations(tiny, LORA, "float32", False)


@pytest.fixture
def job(tiny: Geometry) -> Job:
    data = {"iterations": 2, "audio": {"keep": "none"}, "train": {"args": {"num_train_epochs": 1}}}
    config = RunConfig.model_validate(data)
    return Job(config, tiny, HARDWARE["cpu"], {"train": 64, "dev": 16, "eval": 32}, AT, 2.0, 1)


def test_cost_grows_linearly_with_prompts(job: Job) -> None:
    twice = replace(job, sizes={name: 2 * n for name, n in job.sizes.items()})
    for one, two in zip(forecast(job, parts), forecast(twice, parts), strict=True):
        if one.stage.kind == "choice":  # twice as many prompts and, of a whole epoch, checkpoints
            continue
        assert two.device_seconds == pytest.approx(2 * one.device_seconds)
        assert one.stage.kind == "training" or two.stage.disk == pytest.approx(2 * one.stage.disk)
        assert two.stage.memory == one.stage.memory


def test_cost_grows_linearly_with_length_but_for_the_talkers_attention(job: Job) -> None:
    def counted(codes: float) -> dict[str, float]:
        found = parts(replace(job, lengths=replace(AT, codes=codes)))
        return {f"{s.kind} {s.label}": sum(w.flops for w in s.works) for s in found}

    first, second, third = (counted(n) for n in (101, 201, 301))
    bend = cost.tail(10, 301) - 2 * cost.tail(10, 201) + cost.tail(10, 101)
    sampled = {"rollouts": 64 * 8, "scores": 0, "conditioning": 0}
    for name in first:
        kind = name.split()[0]
        if kind in sampled:
            curve = third[name] - 2 * second[name] + first[name]
            attention = cost.attention(job.geometry.talker, bend) * sampled[kind]
            assert curve == pytest.approx(attention, abs=first[name] / 1e9)
    at = next(name for name in first if name.startswith("scores"))
    assert second[at] == pytest.approx(2 * first[at])


def write_run(folder: Path) -> dict[str, list[float]]:
    """A finished run of the micro model as its manifest tells it; returns seconds by stage of the plan."""

    config = load_data({"workers": 2, "prompts": {"limit": {"train": 300, "dev": 30, "eval": 200}},
                        "variants": {"a": {"args": {"max_steps": 30}}, "b": {"args": {"max_steps": 30}}}})
    counts = {"prompts": {"train": 300, "dev": 30, "eval": 200}, "pairs": {"pairs": 450, "prompts": 300}}
    seconds = {"prompts": 1, "conditioning": 3, "rollouts": 50, "scores": 200, "pairs": 1, "eval/base": 40,
               "eval/a": 50, "eval/b": 60, "round1/train/a": 90, "round1/train/b": 70, "round1/choice/a": 20,
               "round1/choice/b": 30}
    entries = {name: {"state": "done", "seconds": s, "counts": counts.get(name, {})} for name, s in seconds.items()}
    (folder / "rollouts").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(
        {"stages": entries, "commands": [{"device": "cpu"}], "config": config.resolved()}))
    ShardFolder(folder / "rollouts", "key").write(0, [{"codes": [1] * 100}, {"codes": [1] * 200}])
    ConditioningCache(folder / "conditioning").put([(c, "key") for c in random_conditionings([(40, 8), (60, 12)])])
    return {"conditioning": [3], "rollouts": [50], "scores": [200], "training": [80], "choice": [50],
            "evaluation": [150]}


def test_measured_rates_reproduce_the_run_and_carry_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = write_run(tmp_path / "run")

    def plan(*options: str) -> dict[str, Any]:
        assert cli.main(["plan", "--json", *options]) == 0
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    resolved = json.loads((tmp_path / "run" / "manifest.json").read_text())["config"]
    file = tmp_path / "same.yaml"
    file.write_text(json.dumps(resolved))
    same = plan("-c", str(file), "--rates", str(tmp_path / "run"))
    assert same["lengths"] == {"codes": 151, "prefix": 50, "reply": 10, "seconds": 3, "rate": 50}
    for stage in same["stages"]:  # two trainings of 80 s each on two workers
        assert stage["seconds"] == pytest.approx(sum(measured[stage["stage"]])) and stage["rate"] == "measured"
    (tmp_path / "rates.json").write_text(json.dumps(same))
    more = plan("-c", str(file), "--rates", str(tmp_path / "rates.json"), "--prompts", "600", "workers=1")
    seconds = {s["stage"]: s["seconds"] for s in more["stages"]}
    assert seconds["scores"] == pytest.approx(4 * 200) and seconds["evaluation"] == pytest.approx(2 * 150)
    assert cli.main(["plan", "-c", str(file), "--rates", str(tmp_path / "rates.json"), "--hardware", "a100"]) == 2
    assert "measured on cpu" in capsys.readouterr().err


def test_the_table_names_what_is_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--prompts", "10", "--tflops", "0.5", "--gpus", "1", "prompts.limit.eval=20"]) == 0
    out = capsys.readouterr().out
    assert "talker 3.3 M" in out and "(100% of the peak)" in out and out.count("assumed\n") == 6
    assert cli.main(["plan", "--geometry", "qwen2.5-omni-3b", "--prompts", "10", "rollouts.batch_size=40000",
                     "rollouts.shard_size=40000"]) == 0
    assert "too much: " in capsys.readouterr().out
    assert hardware("h200", tflops=100).seconds([Work(1e14, "bfloat16")]) == pytest.approx(1)
    assert HARDWARE["h200"].bound([Work(1e9, "bfloat16", moved=1e12)]) == "memory"


def test_the_plan_page_shows_what_plan_computes(capsys: pytest.CaptureFixture[str]) -> None:
    """The table of "The two published sizes": time, memory and disk of the two shipped DPO runs."""
    rows: dict[str, list[str]] = {}
    for name in SHIPPED:
        assert cli.main(["plan", "-c", str(ROOT / f"configs/runs/{name}-dpo.yaml"), "--prompts", "5000",
                         "--seconds", "6", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["stages"]
        for label, kinds in (("conditioning", ["conditioning"]), ("rollouts, 40,000 candidates", ["rollouts"]),
                             ("scores", ["scores"]), ("training, 313 steps", ["training"]),
                             ("choice and evaluation", ["choice", "evaluation"]),
                             ("in all", [x["stage"] for x in found])):
            of = [x for x in found if x["stage"] in kinds]
            rows.setdefault(label, []).extend([duration(sum(x["seconds"] for x in of)),
                                               size(max(x["memory_bytes"] for x in of)),
                                               size(sum(x["disk_bytes"] for x in of))])
    table = "\n".join(f"| {label} | {' | '.join(cells)} |" for label, cells in rows.items())
    assert table in (ROOT / "docs" / "PLAN.md").read_text("utf-8"), table


def test_devices_divide_the_time_of_trainings(capsys: pytest.CaptureFixture[str]) -> None:
    def plan(*more: str) -> str:
        assert cli.main(["plan", "-c", "qwen2.5-omni-7b-dpo", *more]) == 0
        return capsys.readouterr().out

    one, four = (json.loads(plan("--json", *more))["stages"] for more in ([], ["devices=4"]))
    geometry, config = read_geometry("qwen2.5-omni-7b"), load_config(["qwen2.5-omni-7b-dpo"])
    cfg = next(iter(config.variants.values()))
    for before, after in zip(one, four, strict=True):
        if before["stage"] != "training":
            assert after["seconds"] == before["seconds"]
            continue
        # each step: the gradient of the adapter in float32, there and back, of which a ring sends 3/4; 60 % of NVLink
        steps = int(re.search(r"(\d+) steps", before["what"])[1])  # type: ignore[index]
        sent = steps * 2 * 4 * geometry.adapters(cfg.lora) * 3 / 4
        assert after["seconds"] == pytest.approx(before["seconds"] / 4 + sent / (0.6 * 450e9), rel=1e-9)
        assert after["memory_bytes"] < before["memory_bytes"]  # a quarter of the batch
    told = plan("devices=4")
    assert "4 GPUs" in told and "is spread over 4: its arithmetic is divided by 4" in told and "spread" not in plan()


@pytest.mark.parametrize(("engine", "weights"), [("ddp", 1.0), ("zero2", 1.0), ("zero3", 1 / 8), ("fsdp2", 1 / 8)])
def test_engines_hold_and_send_what_they_are_for(engine: str, weights: float) -> None:
    """Full weights in bfloat16 on 8 GPUs, by hand: what a process holds of them, and what it sends in a step."""
    geometry = read_geometry("qwen2.5-omni-7b")
    args = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "gradient_checkpointing": True}
    train = {"lora": None, "engine": {"name": engine}, "args": args}
    config = load_config(["qwen2.5-omni-7b-dpo"], ["devices=8", f"train={json.dumps(train)}"])
    cfg, at, whole = next(iter(config.variants.values())), Lengths.of_seconds(10), 2.0 * geometry.parameters["talker"]
    found = memory.training(geometry, config, cfg, at, on_cpu=False)
    single = {"lora": None, "args": {**args, "per_device_train_batch_size": 1}}
    alone = load_config(["qwen2.5-omni-7b-dpo"], [f"train={json.dumps(single)}"])
    other = memory.training(geometry, alone, next(iter(alone.variants.values())), at, on_cpu=False)
    parts = 1 if engine == "ddp" else 8
    held = whole * (1 + weights + 3 / parts) + (2 * whole / geometry.talker.layers if weights < 1 else 0)
    assert found - held == pytest.approx(other - 5 * whole, rel=1e-6)  # what is left is the batch: one pair each
    (work,) = cost.exchanged(geometry, 80, 8, at, "bfloat16", cfg, 8)
    assert work.sent == pytest.approx(7 * 10 * whole * (2 if weights == 1 else 4))


def test_shared_rows_send_heads() -> None:
    geometry, at = read_geometry("qwen2.5-omni-7b"), Lengths.of_seconds(60)
    config = load_config(["qwen2.5-omni-7b-dpo"], ["devices=4", "train.engine.sequence_parallel=4"])
    cfg = next(iter(config.variants.values()))
    _, heads = cost.exchanged(geometry, 8, 8, at, "bfloat16", cfg, 4)
    positions = 8 * (at.prefix + 2 * (at.codes - 1))
    assert heads.sent == pytest.approx(2 * positions * 24 * (2 * 12 + 2 * 4) * 128 * 2 * 3 / 4)


@pytest.mark.parametrize(("options", "told"), [
    (["--geometry", "qwen2.5-omni-7"], "did you mean qwen2.5-omni-7b?"),
    (["--hardware", "abacus"], "use h200, a100, cpu"),
    (["--seconds", "-1"], "give a positive number"),
    (["--rates", "/nowhere"], "There is no run here"),
])  # fmt: skip
def test_a_mistake_is_one_message(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *options]) in (1, 2)
    err = capsys.readouterr().err
    assert told in err and err.count("error:") == 1 and "Traceback" not in err


def test_help_needs_no_torch() -> None:
    code = ("import sys\nfrom talker_rl.cli import main\n"
            "try:\n    main(['plan', '--help'])\nexcept SystemExit:\n    pass\n"
            "assert not {'torch', 'transformers', 'pydantic', 'numpy'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=ROOT)
    assert "--rates" in done.stdout and "--geometry" in done.stdout
