"""The configuration: shipped files load, files merge, mistakes are answered with the right key."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from talker_rl.base.errors import ConfigError
from talker_rl.config import known_keys, load_config, load_data, parse_config
from talker_rl.rounds import stage_kinds

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted(p for p in ROOT.glob("configs/**/*.yaml") if p.parent.name != "sweeps")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_configs_load_and_survive_a_round_trip(path: Path) -> None:
    config = load_config([path])
    assert parse_config(yaml.safe_load(config.to_yaml())) == config


def test_the_demo_and_a_real_model_are_shipped() -> None:
    assert {"demo", "smoke", "qwen2.5-omni-7b-dpo"} <= {p.stem for p in SHIPPED}


def test_files_merge_left_to_right_and_overrides_win(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("pairs: {margin: 0.2, max_pairs_per_prompt: 3}\nseed: 1\n")
    (tmp_path / "b.yaml").write_text("pairs: {margin: 0.3}\n")
    config = load_config([tmp_path / "a.yaml", tmp_path / "b.yaml"], ["seed=7", "rollouts.sampling.top_k=5"])
    assert (config.pairs.margin, config.pairs.max_pairs_per_prompt, config.seed) == (0.3, 3, 7)
    assert config.rollouts.sampling.top_k == 5


def test_another_loss_replaces_the_old_one_whole(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train: {loss: {type: dpo, beta: 0.3, label_smoothing: 0.1}}\n")
    (tmp_path / "b.yaml").write_text("train: {loss: {type: simpo, gamma: 1.0}}\n")
    assert load_config([tmp_path / "a.yaml", tmp_path / "b.yaml"]).variants["default"].loss == {
        "type": "simpo", "gamma": 1.0}
    same = load_config([tmp_path / "a.yaml"], ["train.loss.beta=0.5"])
    assert same.variants["default"].loss == {"type": "dpo", "beta": 0.5, "label_smoothing": 0.1}
    by_name = load_config([tmp_path / "a.yaml"], ["variants.default.loss.beta=0.5"])
    assert by_name.variants == same.variants


def test_a_preset_replaces_what_came_before_it_and_yields_to_what_comes_after(tmp_path: Path) -> None:
    file, later = tmp_path / "a.yaml", tmp_path / "b.yaml"
    file.write_text("token2wav: {num_steps: 10, guidance_scale: 0.5, batch_size: 3}\n")
    later.write_text("token2wav: {preset: reward}\n")

    def values(*overrides: str, files: Sequence[Path] = (file,)) -> tuple[int, float, int]:
        found = load_config(files, overrides).token2wav
        return found.num_steps, found.guidance_scale, found.batch_size

    assert values() == (10, 0.5, 3)
    assert values(files=(file, later)) == values("token2wav.preset=reward") == (2, 0.0, 3)
    assert values(files=(later, file)) == (10, 0.5, 3)
    assert values("token2wav.preset=reward", "token2wav.num_steps=4") == (4, 0.0, 3)


def test_numbers_without_a_dot_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train: {loss: {type: dpo}, args: {learning_rate: 5e-6, warmup_ratio: 1E+0}}\n")
    config = load_config([tmp_path / "a.yaml"], ["train.args.weight_decay=1e-2"])
    args = config.variants["default"].args
    assert (args["learning_rate"], args["warmup_ratio"], args["weight_decay"]) == (5e-6, 1.0, 0.01)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("pair.margin=1", "did you mean `pairs`?"),
        ("rollouts.sampling.temprature=1", "did you mean `rollouts.sampling.temperature`?"),
        ("temperature=1", "did you mean `rollouts.sampling.temperature`?"),
        ("train.lora.rank=3", "did you mean"),
        ("variants.mine.los={type: dpo}", "did you mean `variants.mine.loss`?"),
        ("train.loss={type: dpo, bta: 1}", "did you mean `beta`?"),
        ("train.args.beta=0.2", '"type": "dpo"'),
        ("rollouts.sampling.num_beams=4", "beam search is not supported"),
        ("pairs.margin=wide", "`pairs.margin`"),
        ("variants.base={loss: {type: dpo}}", "'base' cannot name a variant"),
        ("variants={}", "`variants`: at least one is needed"),
        ("checkpoint.metrc=wer", "did you mean `checkpoint.metric`?"),
        ("checkpoint.selct=best", "did you mean `checkpoint.select`?"),
        ("name=a/b", "`name`"),
        ("eval.talkers={base: x}", "taken by the model before training"),
    ],
)
def test_a_mistake_is_answered_with_what_is_right(override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([], [override])
    assert told in str(caught.value)
    assert caught.value.exit_code == 2


def test_what_is_set_for_all_variants_holds_where_they_say_nothing_else() -> None:
    named = {"variants": {"dpo": {"args": {"max_steps": 3}}, "ld": {}}}
    found = load_data(named, ["train.lora.r=4", "train.args.max_steps=5"]).variants
    assert [v.lora.r for v in found.values() if v.lora] == [4, 4]
    assert [v.args["max_steps"] for v in found.values()] == [3, 5]
    with pytest.raises(ConfigError, match="changes nothing: every variant has its own") as caught:
        load_data(named, ["variants.ld.args.max_steps=4", "train.args.max_steps=5"])
    assert caught.value.fix == "write variants.dpo.args.max_steps=..."


def test_a_mistake_of_all_variants_is_told_once_and_one_of_a_variant_by_its_name() -> None:
    with pytest.raises(ConfigError) as caught:
        load_data({"train": {"lora": {"r": 0}}, "checkpoint": {"select": "first"}, "variants": {"a": {}, "b": {}}})
    assert "`train.lora.r`" in caught.value.what and "`checkpoint.select`" in caught.value.what
    assert "variants." not in caught.value.what
    with pytest.raises(ConfigError) as caught:
        load_data({"variants": {"a": {}, "b": {"lora": {"r": 0}, "checkpoint": {"select": "first"}}}})
    assert "`variants.b.lora.r`" in caught.value.what and "`variants.b.checkpoint.select`" in caught.value.what
    with pytest.raises(ConfigError, match="variants.b.loss"):
        load_data({"variants": {"a": {}, "b": {"loss": {"type": "dpo", "bta": 1}}}})


def test_every_mistake_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("sed: 1\npairs: {margn: 2}\n")
    with pytest.raises(ConfigError) as caught:
        load_config([tmp_path / "a.yaml"])
    for told in ("`sed`", "`pairs.margn`", "did you mean `seed`?", "did you mean `pairs.margin`?", str(tmp_path)):
        assert told in str(caught.value)


@pytest.mark.parametrize(("text", "told"), [("a: [", "Cannot read"), ("- 1\n", "mapping"), (None, "no such")])
def test_files_that_are_no_configuration(tmp_path: Path, text: str | None, told: str) -> None:
    file = tmp_path / "x.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        load_config([file])


def test_a_file_name_nearly_right_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="demo.yaml"):
        load_config([tmp_path / "dmo.yaml"])


def test_rounds_and_selection_that_cannot_work_are_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="need LoRA"):
        load_data({"iterations": 2, "train": {"lora": None}})
    with pytest.raises(ConfigError, match="held_out_share"):
        load_data({"checkpoint": {"select": "best"}})
    load_data({"checkpoint": {"select": "best", "held_out_share": 0.1}})


def test_every_key_has_a_description() -> None:
    from pydantic import BaseModel

    from talker_rl.sweep_config import SweepConfig

    silent: list[str] = []

    def walk(model: type[BaseModel], at: str) -> None:
        import typing

        for name, info in model.model_fields.items():
            if not info.description:
                silent.append(f"{at}{name}")
            for part in (info.annotation, *typing.get_args(info.annotation)):
                if isinstance(part, type) and issubclass(part, BaseModel):
                    walk(part, f"{at}{name}.")

    walk(SweepConfig, "")  # holds a whole run's
    assert not silent
    assert "variants.*.lora.r" in known_keys()


def test_loading_a_config_imports_no_model_library() -> None:
    code = ("import sys; from talker_rl.config import load_config; load_config([sys.argv[1]]); "
            "bad = {'torch', 'transformers', 'funasr', 'trl'} & set(sys.modules); assert not bad, bad")
    subprocess.run([sys.executable, "-c", code, str(ROOT / "configs" / "demo.yaml")], check=True, cwd=ROOT)


def test_names_of_stages_may_name_variants_but_for_those_that_would_share_a_folder() -> None:
    names = ["train", "round2", "a-s1-s2", "default"]
    kinds = dict(stage_kinds(names, 2))
    assert len(kinds) == 5 * (1 + len(names)) + 2 * 2 * len(names)
    assert (kinds["round2/train/rollouts"], kinds["round2/train/train"]) == ("rollouts", "train")
    assert kinds["round2/round2/completions/file"] == "completions" and kinds["round1/choice/train"] == "choice"
    data = {"iterations": 2, "variants": {"train": {}, "pairs": {}}}
    with pytest.raises(ConfigError, match="would share the folder round2/train/pairs: rename the variant pairs"):
        load_data(data)
    assert list(load_data(data | {"iterations": 1}).variants) == ["train", "pairs"]
