"""Qwen3-Omni behind the house's protocol, on a random tiny checkpoint in the published layout: loaded part by part,
conditioned, decoded, and taken through a whole run by the same verbs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_helpers import write_world
from qwen3_factory import GROUPS, MARK_IDS, SPEAKERS, random_conditionings, tiny_qwen3, tokenizer, write_checkpoint
from transformers import Qwen3OmniMoeForConditionalGeneration

import talker_rl
from talker_rl import cli
from talker_rl.base.errors import CheckpointError, ConfigError, DataError, PromptError
from talker_rl.records.candidate import Candidate
from talker_rl.records.codec import codec_named
from talker_rl.records.pair import Pair
from talker_rl.records.prompt import Prompt
from talker_rl.speech.config import LoraSettings, ModelConfig, SamplingConfig
from talker_rl.speech.prompt_text import prompt_messages
from talker_rl.speech.protocol import SampleRequest, TalkerSequence, Utterance
from talker_rl.speech.qwen3_omni import checkpoint, shapes
from talker_rl.speech.qwen3_omni.code2wav import decode, frames_before, samples_trimmed
from talker_rl.speech.qwen3_omni.codec import CODEC, codec_of, of_size
from talker_rl.speech.qwen3_omni.conditioning import user_turns
from talker_rl.speech.qwen3_omni.layout import talker_inputs
from talker_rl.speech.qwen3_omni.policy import TalkerPolicy
from talker_rl.speech.registry import codec_of as codec_of_model
from talker_rl.speech.registry import family_of, read_geometry
from talker_rl.store.shards import ShardFolder


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_qwen3()


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("qwen3"), model)


@pytest.fixture(scope="module")
def generator(folder: Path) -> Any:
    return talker_rl.load(ModelConfig(path=str(folder), device="cpu", system_prompt="", instruction="{text}"))


# Loading


def test_a_talker_alone_has_the_experts_that_are_stored(model: Any, folder: Path) -> None:
    """transformers leaves them uninitialized memory: it fuses what the whole class loads, and warns of a Talker."""
    found = talker_rl.load(ModelConfig(path=str(folder), device="cpu"), parts=("talker",)).part("talker")
    want, have = dict(model.talker.named_parameters()), dict(found.named_parameters())
    assert want.keys() == have.keys() and all(torch.equal(want[name], have[name]) for name in want)
    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert "talker.model.layers.1.mlp.experts.7.up_proj.weight" in names
    back = checkpoint.split(found.state_dict())
    assert {f"talker.{name}" for name in back} == {name for name in names if name.startswith("talker.")}
    again = checkpoint.fused({name: value for name, value in back.items()}, torch.float32)
    assert all(torch.equal(again[name], value) for name, value in found.state_dict().items())


def test_no_other_parts_files_are_read(folder: Path, tmp_path: Path) -> None:
    import shutil

    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    partial = tmp_path / "partial"
    shutil.copytree(folder, partial)
    needed = {file for name, file in names.items() if name.startswith("talker.") or name == checkpoint.TABLE}
    for file in set(names.values()) - needed:
        (partial / file).unlink()
    found = talker_rl.load(ModelConfig(path=str(partial), device="cpu"), parts=("conditioner", "talker"))
    assert found.condition([Prompt("stop, go.", speaker="Ann")])[0].rows == (9 + 9, 4)
    with pytest.raises(CheckpointError):
        talker_rl.load(ModelConfig(path=str(partial), device="cpu"), parts=("decoder",))


def test_an_expert_that_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    index = json.loads((broken / "model.safetensors.index.json").read_text())
    name = "talker.model.layers.0.mlp.experts.3.gate_proj.weight"
    del index["weight_map"][name]
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.experts\.3\.gate_proj\.weight is not stored"):
        talker_rl.load(ModelConfig(path=str(broken), device="cpu"), parts=("talker",))


@pytest.mark.parametrize(("change", "message"), [
    ({"model_type": "qwen3_vl"}, "Qwen2.5-Omni"),
    ({"talker_config": {"num_code_groups": 8}}, "differ in codebooks"),
    ({"code2wav_config": {"codebook_size": 1024}}, "differ in codes of a book"),
    ({"auto_map": {"AutoModel": "x.Y"}}, "asks for code of its own"),
])
def test_a_config_that_cannot_be_is_refused(folder: Path, tmp_path: Path, change: Any, message: str) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    config = json.loads((broken / "config.json").read_text())
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) and key in config else value
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        talker_rl.load(ModelConfig(path=str(broken), device="cpu"), parts=("talker",))


def test_settings_of_another_family_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="this family"):
        talker_rl.load(ModelConfig(path=str(folder), device="cpu", thinker_quantization="4bit"), parts=("talker",))


# Codec


def test_the_codec_is_the_checkpoints(folder: Path) -> None:
    assert codec_of_model(ModelConfig(path=str(folder))) == CODEC == codec_named("qwen3_omni")
    assert (CODEC.groups, CODEC.stop, CODEC.seconds([0] * 16 * 25)) == (16, 2150, 2.0)
    small = of_size(8, 256)
    assert small.name == "qwen3_omni-8x256" and codec_named(small.name) == small and small.stop == 358
    config = {"talker_config": {"num_code_groups": 8, "code_predictor_config": {"vocab_size": 256}}}
    assert codec_of(config) == small and family_of(folder).NAME == "qwen3_omni"
    for wrong in ("qwen3_omni-8", "qwen3_omni-0x5", "qwen2_5_omni-8x256", "nobody-8x256"):
        with pytest.raises(DataError, match="Unknown codec"):
            codec_named(wrong)


# Conditioning


def test_the_talker_reads_what_upstream_gives_it(model: Any, generator: Any) -> None:
    """Behind a system turn and an earlier answer, which never reach it."""
    messages = [{"role": "system", "content": "three four"}, {"role": "user", "content": "stop, go"},
                {"role": "assistant", "content": "left"}, {"role": "user", "content": "right. red"}]
    [seen] = generator.condition([Prompt("blue green.", speaker="Bob", messages=messages)])
    ids = tokenizer().apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt",
                                          return_dict=True)["input_ids"]
    given: list[torch.Tensor] = []
    generate = model.talker.generate
    model.talker.generate = lambda **options: given.append(options["inputs_embeds"]) or generate(**options)
    try:
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), speaker="Bob", thinker_max_new_tokens=4,
                       thinker_eos_token_id=199, thinker_pad_token_id=0, talker_max_new_tokens=3)
    finally:
        model.talker.generate = generate
    with generator.policy() as policy:
        batch = policy.collate([TalkerSequence(seen, CODEC.speech([2150]))])
        ours = talker_inputs(policy.module, batch)[0]
    assert ours.shape[0] == given[0].shape[1] == seen.rows[0]
    torch.testing.assert_close(ours[:-1], given[0][0, :-1], atol=1e-6, rtol=0)  # the last is the reply's first token
    text = tokenizer().decode(ids[0][user_turns(ids[0].tolist(), model.config)])
    assert "three" not in text and "left" not in text and "stop" in text and "red" in text


def test_the_thinkers_own_replies_are_upstreams(model: Any, folder: Path) -> None:
    """Read from its files when it is first asked; a reply that was cut loses its last token, as upstream's does."""
    settings = ModelConfig(path=str(folder), device="cpu", system_prompt="")
    generator: Any = talker_rl.load(settings, parts=("conditioner",))
    prompts = [Prompt("stop, go.", speaker="Ann"), Prompt("blue.", speaker="Bob")]
    assert generator.model.thinker is None
    cfg = talker_rl.speech.config.ConditioningConfig(mode="generate", max_reply_tokens=5, max_reply_wer=None)
    seen = generator.condition(prompts, cfg)
    table = model.thinker.get_input_embeddings().weight
    for one, prompt in zip(seen, prompts, strict=True):
        ids = tokenizer().apply_chat_template(prompt_messages(settings, prompt), add_generation_prompt=True,
                                              return_tensors="pt", return_dict=True)["input_ids"]
        said = model.thinker.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False,
                                      eos_token_id=MARK_IDS["im_end"], pad_token_id=0)[0, ids.shape[1] :].tolist()
        end = said.index(MARK_IDS["im_end"]) if MARK_IDS["im_end"] in said else len(said) - 1
        assert torch.equal(one.reply, table[torch.tensor(said[:end])])
    with pytest.raises(PromptError, match="does not read the text aloud"):
        generator.condition(prompts, cfg.model_copy(update={"max_reply_wer": 0.0}))


@pytest.mark.parametrize(("prompt", "message"), [
    (Prompt("", speaker="Ann"), "empty"), (Prompt("stop.", speaker="cid"), "unknown speaker 'cid'"),
    (Prompt("stop nobody.", speaker="Ann"), "vocabulary does not cover"),
    (Prompt("stop.", speaker="Ann", messages=[{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}]),
     "a.wav"),
    (Prompt("stop.", speaker="Ann", messages=[{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]),
     "a.png"),
])
def test_what_cannot_be_spoken_is_told(generator: Any, prompt: Prompt, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        generator.condition([prompt])
    errors: dict[str, Any] = {}
    assert len(generator.condition([prompt, Prompt("go.", speaker="Ann")], errors=errors)) == 1 and len(errors) == 1


def test_the_key_of_a_conditioning_knows_what_it_depends_on(generator: Any) -> None:
    cfg = talker_rl.speech.config.ConditioningConfig()
    prompts = [Prompt("stop.", speaker="Ann"), Prompt("go.", speaker="Ann"), Prompt("stop.", speaker="Bob"),
               Prompt("stop.", speaker="Ann", messages=[{"role": "user", "content": "go"}])]
    assert len({generator.conditioning_key(p, cfg) for p in prompts}) == 4


# Sound


def test_pieces_and_batches_are_the_whole(model: Any, generator: Any) -> None:
    code2wav = generator.part("decoder")
    assert (samples_trimmed(code2wav), code2wav.total_upsample) == (555, 1920) and frames_before(code2wav) < 16
    draw = np.random.default_rng(0)
    codes = [draw.integers(0, 2048, GROUPS * frames).tolist() for frames in (1, 30, 3, 130)]
    whole = [model.code2wav(torch.tensor(one).view(1, -1, GROUPS).transpose(1, 2))[0, 0].numpy() for one in codes]
    assert 0.01 < float(np.abs(whole[3]).mean()) and float(np.abs(whole[1]).max()) < 1
    for piece, batch in ((1000, 1), (16, 4), (5, 2)):
        made = decode(code2wav, codes, CODEC, batch, piece=piece)
        for ours, theirs in zip(made, whole, strict=True):
            assert len(ours) == len(theirs) and float(np.abs(ours - theirs).max()) <= 1e-4
    upstream = model.code2wav.chunked_decode(torch.tensor(codes[3]).view(1, -1, GROUPS).transpose(1, 2), chunk_size=60)
    assert upstream.shape[-1] == len(whole[3]) - 2 * 555, "which loses samples at every boundary"


def test_codes_that_are_none_are_refused_before_they_are_looked_up(generator: Any) -> None:
    for codes, message in (([], "no codes"), ([0] * 17, "no whole frames"), ([2150] + [0] * 15, "invalid code 2150")):
        with pytest.raises(DataError, match=message):
            generator.decode([Utterance(codes, "Ann")])
    with pytest.raises(CheckpointError, match="unknown speaker"):
        generator.decode([Utterance([0] * 16, "cid")])


# A whole run


SAMPLING = {"max_new_tokens": 12, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "min_new_tokens": 2,
            "sequence_bias": [[[2150], 9.0]]}


def test_the_same_run(folder: Path, tmp_path: Path, capsys: Any) -> None:
    config = write_world(
        tmp_path, model={"path": str(folder), "device": "cpu", "instruction": "{text}", "system_prompt": ""},
        rollouts={"num_candidates": 3, "batch_size": 6, "shard_size": 4, "sampling": SAMPLING},
        train={"loss": {"type": "dpo", "beta": 0.1}, "lora": {"r": 2, "lora_alpha": 4},
               "args": {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-3,
                        "per_device_train_batch_size": 2}})
    run = tmp_path / "run"
    assert cli.main(["run", "-c", str(config), "--run-dir", str(run), "-q", "--debug", "prompts.speaker=Ann"]) == 0
    candidates = ShardFolder(run / "rollouts").read_all(Candidate)
    assert {c.codec for c in candidates} == {"qwen3_omni"} and all(len(c.codes) % 16 == 0 for c in candidates)
    pairs = ShardFolder(run / "pairs").read_all(Pair)
    assert pairs and all(p.chosen.codec == CODEC and p.chosen_seconds == 0.08 * p.chosen.frames for p in pairs)
    log = [json.loads(line) for line in (run / "train/default/log.jsonl").read_text().splitlines()]
    assert abs(log[0]["loss"] - np.log(2)) < 1e-3 and all(np.isfinite(row["loss"]) for row in log if "loss" in row)
    adapter = json.loads((run / "train/default/adapter_config.json").read_text())
    assert "shared_expert" in adapter["target_modules"] and "code_predictor" not in adapter["target_modules"]
    assert (run / "report/index.html").is_file()
    card = (run / "train/default/README.md").read_text()
    assert "- qwen3_omni\n" in card and "the Talker of Qwen3-Omni" in card
    capsys.readouterr()
    for verb in (["diagnose", "--run-dir", str(run)], ["parity", "-c", str(config), "prompts.speaker=Ann"],
                 ["doctor", "--model", str(folder)]):
        assert cli.main(verb) == 0, verb
    told = capsys.readouterr().out
    assert cli.main(["export", "--run-dir", str(run), "--merge", str(tmp_path / "merged")]) == 0
    whole = Qwen3OmniMoeForConditionalGeneration.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    settings = ModelConfig(path=str(folder), device="cpu")
    with talker_rl.load(settings, parts=("talker",)).policy(run / "train/default") as policy:
        by_hand = family_of(folder).exporter().merged_talker(run / "train/default", settings).state_dict()
        batch = policy.collate([TalkerSequence(one, pairs[0].chosen) for one in random_conditionings([(5, 3)])])
        adapted, merged = policy.logps(batch), TalkerPolicy(whole.talker).logps(batch)
    assert all(torch.equal(value, by_hand[name]) for name, value in whole.talker.state_dict().items())
    assert float((adapted - merged).detach().abs().max()) <= 1e-5
    assert "2 layers with 8 experts, 16 codebooks of 2048 codes, speakers Ann, Bob" in told


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_sampled_log_probs_are_the_policys_own(folder: Path, weight: float) -> None:
    settings = ModelConfig(path=str(folder), device="cpu", system_prompt="", residual_weight=weight)
    generator: Any = talker_rl.load(settings)
    prompts = [Prompt("stop, go left.", speaker="Ann"), Prompt("blue.", speaker="Bob")]
    seen = generator.condition(prompts)
    with generator.policy(train=LoraSettings(r=2)) as policy:
        names = [name for name, value in policy.module.named_parameters() if value.requires_grad]
        assert names and all(".experts." not in name for name in names)
        assert any("code_predictor" in name for name in names) == bool(weight)
        said = policy.sample([SampleRequest(one, [1, 2, 3]) for one in seen], SamplingConfig(max_new_tokens=10))
        by_id = {one.prompt_id: one for one in seen}
        rows = policy.logps(policy.collate([TalkerSequence(by_id[c.prompt_id], c.speech) for c in said]))
        for row, one in zip(rows, said, strict=True):
            apart = (row[: one.speech.steps].detach() - torch.tensor(one.token_logps)).abs()
            assert float(apart.max()) <= (2e-5 if weight else 1e-5)
    plain = settings.model_copy(update={"residual_weight": 0.0})
    assert (family_of(folder).identity(plain, "talker") == generator.identity("talker")) == (not weight)
    assert SPEAKERS["bob"] in {one.speaker_id for one in seen} and MARK_IDS["assistant"] == 13


# The published geometry


def test_the_published_model_has_as_many_parameters() -> None:
    """On the meta device: to the unit, of its parts, and of all."""
    config = shapes.shipped_config()
    found = {part: sum(p.numel() for p in shapes.meta_part(config, part).parameters())
             for part in ("thinker", "talker", "code2wav")}
    assert found == {"thinker": 31_719_205_488, "talker": 3_324_596_480, "code2wav": 216_016_577}
    assert sum(found.values()) == 35_259_818_545


def test_what_it_costs_is_counted_from_its_classes() -> None:
    geometry = read_geometry("Qwen/Qwen3-Omni-30B-A3B-Instruct")
    assert geometry.parameters["talker"] == 3_324_596_480 and geometry.codec == CODEC
    per_second = 12.5 / 1e9
    assert geometry.talker.weights * per_second == pytest.approx(3.6, rel=0.05)  # by hand
    assert geometry.frame_macs * per_second == pytest.approx(16.1, rel=0.03)
    assert geometry.vocoder.macs * per_second == pytest.approx(32.0, rel=0.1)
    adapters = geometry.adapters(LoraSettings(r=16))
    assert adapters == pytest.approx((2.79 + 1.72) * 1e6, rel=0.01), "attention and shared experts"
