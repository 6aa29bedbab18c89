"""The published checkpoints: names, shapes and sizes of the real configs, LoRA on the Talker alone, and a folder in
their layout of which only the asked part's shards are opened."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from sharded_checkpoint import (
    INDEX,
    parts_by_shard,
    random_model,
    record_opens,
    reduced_config,
    stored_tensors,
    write_sharded,
)

from talker_rl.base import file_hash
from talker_rl.base.errors import CheckpointError, ConfigError
from talker_rl.speech import files
from talker_rl.speech.config import ConditioningConfig, LoraSettings, ModelConfig
from talker_rl.speech.lora import attach_lora
from talker_rl.speech.quantization import UNQUANTIZED
from talker_rl.speech.quiet import quiet_transformers
from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni, read_config
from talker_rl.speech.qwen2_5_omni.conditioning import conditioning_key
from talker_rl.speech.qwen2_5_omni.published import ROTARY, meta_parts, stored_dtype, stored_name, stored_shapes

GEOMETRY = Path(files.__file__).parent / "qwen2_5_omni" / "geometry"
PUBLISHED = {
    "7b": {"thinker": 8_931_813_888, "talker": 1_351_360_256, "token2wav": 449_051_264,
           "bytes": 22_362_553_472, "shards": [1041, 131, 131, 270, 875],
           "widths": {"thinker": 3584, "talker": 896}},
    "3b": {"thinker": 4_703_464_448, "talker": 384_604_928, "token2wav": 449_051_264,
           "bytes": 11_972_343_936, "shards": [1148, 521, 875], "widths": {"thinker": 2048, "talker": 896}},
}  # fmt: skip
"""Parameters, bytes of tensors and tensors of each shard, as the publisher's files have them (greedily filled up to
5,000,000,000 bytes)."""
BYTES = {"F32": 4, "BF16": 2}


@pytest.fixture(scope="module", params=["7b", "3b"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(size, its Qwen2_5OmniConfig, its parts on the meta device)."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "config.json").write_text((GEOMETRY / f"qwen2.5-omni-{request.param}.json").read_text())
    config = read_config(folder)
    return request.param, config, meta_parts(config)


def test_names_shapes_and_sizes_are_the_published_ones(published) -> None:
    size, config, parts = published
    known = PUBLISHED[size]
    for part, module in parts.items():
        assert sum(p.numel() for p in module.parameters()) == known[part]
        assert all(p.device.type == "meta" for p in module.parameters())
    shapes = stored_shapes(config)
    nbytes = {name: torch.Size(shape).numel() * BYTES[stored_dtype(name)] for name, shape in shapes.items()}
    assert sum(nbytes.values()) == known["bytes"]
    counts, room = [0], 5_000_000_000
    for name in shapes:
        if nbytes[name] > room:
            counts, room = [*counts, 0], 5_000_000_000
        counts[-1] += 1
        room -= nbytes[name]
    assert counts == known["shards"]
    width, inner = known["widths"]["thinker"], known["widths"]["talker"]
    assert shapes["thinker.model.embed_tokens.weight"][1] == width
    assert shapes["talker.model.embed_tokens.weight"] == (8448, width)  # embedding_size, not hidden_size
    assert shapes["talker.thinker_to_talker_proj.weight"] == (inner, width)
    assert shapes["talker.codec_head.weight"] == (8448, inner)
    assert {name.split(".")[1] for name in shapes if name.startswith("thinker.")} == {
        "audio_tower", "visual", "model", "lm_head"}


def test_lora_attaches_to_the_talker_alone(published) -> None:
    size, _, parts = published
    with torch.device("meta"):
        model = attach_lora(parts["talker"], LoraSettings(), base_model=f"Qwen/Qwen2.5-Omni-{size.upper()}")
    adapted = {name.rsplit(".lora_A", 1)[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    names = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    assert adapted == {f"base_model.model.model.layers.{i}.{name}" for i in range(24) for name in names}
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())
    model.unload()


def test_no_module_of_the_whole_model_but_the_talkers_is_adapted(published) -> None:
    """Also where the targets' names are the Thinker's, or token2wav's, as well."""
    from transformers import Qwen2_5OmniForConditionalGeneration

    _, config, _ = published
    with torch.device("meta"), quiet_transformers():
        whole = Qwen2_5OmniForConditionalGeneration(config)
    whole.requires_grad_(False)
    everywhere = r".*\.(q_proj|k_proj|to_q|fc1|up_proj)"
    for targets in (LoraSettings().target_modules, everywhere):
        others = [name for name, _ in whole.named_modules() if not name.startswith("talker")]
        match = targets if isinstance(targets, str) else rf".*\.({'|'.join(targets)})"
        assert any(re.fullmatch(match, name) for name in others if name.startswith("thinker."))
        with torch.device("meta"):
            adapted = attach_lora(whole.talker, LoraSettings(target_modules=targets), base_model="Qwen/Qwen2.5-Omni")
        told = {name for name, _ in [*whole.named_modules(), *whole.named_parameters()] if "lora_" in name}
        assert told and all(name.startswith("talker.") for name in told)
        assert {name for name, p in whole.named_parameters() if p.requires_grad} <= told
        adapted.unload()
        assert not any("lora_" in name for name, _ in whole.named_modules())


def test_four_bits_are_for_the_language_model_of_the_thinker(published) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    size, _, parts = published
    linear = [name for name, x in parts["thinker"].named_modules() if isinstance(x, torch.nn.Linear)]
    converted = [name for name in linear if should_convert_module(name, UNQUANTIZED)]
    assert len(converted) == 7 * {"7b": 28, "3b": 36}[size] and all(".layers." in name for name in converted)
    assert not any("audio_tower" in name or "visual" in name for name in converted)


# -- a folder in the real layout ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["7b", "3b"])
def sharded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sharded(tmp_path_factory.mktemp("sharded") / request.param, request.param)


def load(folder: Path, *parts: str, **settings: object):
    return load_omni(ModelConfig(path=str(folder), device="cpu", **settings), parts=parts)


def test_only_the_shards_of_the_asked_parts_are_opened(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = record_opens(monkeypatch)
    held = parts_by_shard(sharded)
    assert len(held) >= 3 and {"thinker"} in held.values() and {"talker", "thinker"} in held.values()
    for parts in (("talker",), ("talker", "token2wav"), ("token2wav",), ("thinker",)):
        opened.clear()
        load(sharded, *parts, dtype="bfloat16")
        assert set(opened) == {file for file, inside in held.items() if inside & set(parts)}


def test_what_is_not_needed_may_be_garbage_or_gone(sharded: Path, tmp_path: Path) -> None:
    """Talker and token2wav load, to the last bit, from a folder whose Thinker is neither whole nor there."""
    folder = tmp_path / "omni"
    folder.mkdir()
    useless = {file for file, inside in parts_by_shard(sharded).items() if inside == {"thinker"}}
    for i, file in enumerate(sorted(sharded.iterdir())):
        if file.name not in useless:
            (folder / file.name).symlink_to(file)
        elif i % 2:
            (folder / file.name).write_bytes(b"not a tensor in sight")
    expected = stored_tensors(random_model(reduced_config(sharded.name)))
    omni = load(folder, "talker", "token2wav", dtype="bfloat16")
    for part in omni.parts:
        for name, value in getattr(omni, part).state_dict().items():
            stored = expected[stored_name(f"{part}.{name}")]
            assert value.dtype == (torch.float32 if part == "token2wav" else torch.bfloat16)
            assert torch.equal(value, stored), name
    with pytest.raises(CheckpointError):
        load(folder, "thinker")


def test_stored_names_are_the_published_ones(sharded: Path) -> None:
    listed = json.loads((sharded / INDEX).read_text())["weight_map"]
    assert listed.keys() == stored_shapes(read_config(sharded)).keys() and ROTARY in listed


def test_a_large_file_is_hashed_once_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hash, "LARGE", 1000)
    read: list[str] = []
    real = file_hash._read
    monkeypatch.setattr(file_hash, "_read", lambda path, told: read.append(path.name) or real(path, told))
    large, small = tmp_path / "large.safetensors", tmp_path / "config.json"
    large.write_bytes(b"x" * 5000)
    small.write_bytes(b"{}")
    first = files.content_hash(tmp_path)
    assert sorted(read) == ["config.json", "large.safetensors"]
    assert files.content_hash(tmp_path) == first and len(read) == 2
    monkeypatch.setattr(file_hash, "_known", {})  # as another process, or a later start
    assert files.content_hash(tmp_path) == first and read[2:] == ["config.json"]
    large.write_bytes(b"y" * 5000)  # the same size
    assert files.content_hash(tmp_path) != first and read[3:] == ["large.safetensors"]
    (tmp_path / "cache" / "talker-rl" / "file_hashes.json").write_text("[damaged")
    monkeypatch.setattr(file_hash, "_known", {})
    large.write_bytes(b"x" * 5000)
    assert files.content_hash(tmp_path) == first
    blob = tmp_path / "hub" / "blobs" / ("ab" * 32)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"z" * 5000)
    assert file_hash.cached_hash(blob) == "ab" * 32  # named by its hash, as in the hub's cache


def test_a_recognizers_hash_is_of_names_and_contents(tmp_path: Path) -> None:
    """Runs that were scored before know this digest."""
    from talker_rl.reward.asr.base import hash_files

    (tmp_path / "sub").mkdir()
    (tmp_path / "model.pt").write_bytes(b"abc")
    (tmp_path / "sub" / "tokens.txt").write_bytes(b"")
    expected = hashlib.sha256()
    for name, content in (("model.pt", b"abc"), ("sub/tokens.txt", b"")):
        expected.update(name.encode() + hashlib.sha256(content).digest())
    assert hash_files(tmp_path) == expected.hexdigest()


def test_an_attention_that_is_not_installed_is_named(sharded: Path) -> None:
    with pytest.raises(ConfigError, match="model.attn_implementation"):
        load(sharded, "talker", attn_implementation="flash_attention_2")


def test_a_thinker_in_four_bits_is_another_conditioning(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from talker_rl.records.prompt import Prompt

    with pytest.raises(ConfigError, match=r"bitsandbytes is not installed.*\n.*\n.*talker-rl\[4bit\]"):
        load(sharded, "thinker", thinker_quantization="4bit")
    omni = load(sharded, "talker", thinker_quantization="4bit")  # needs no Thinker, so no bitsandbytes either
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "bitsandbytes" or found(name))
    with pytest.raises(ConfigError, match="a 4-bit Thinker needs CUDA, and the device is cpu"):
        load(sharded, "thinker", thinker_quantization="4bit")
    prompt = Prompt("river garden.", "f1")
    quantized = conditioning_key(omni, prompt, ConditioningConfig())
    omni.settings = ModelConfig(path=str(sharded))
    assert conditioning_key(omni, prompt, ConditioningConfig()) != quantized
