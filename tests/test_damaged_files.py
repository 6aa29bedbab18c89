"""Files of a checkpoint that are no JSON, of wrong types, or hostile: one refusal, which names the file."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from talker_rl import micro
from talker_rl.base.errors import CheckpointError
from talker_rl.speech.files import INDEX, shards_of
from talker_rl.speech.qwen2_5_omni.checkpoint import load_speakers, load_tokenizer, read_config
from talker_rl.speech.qwen2_5_omni.model_check import check_model
from talker_rl.speech.qwen2_5_omni.published import meta_parts

MICRO = Path(micro.checkpoint_dir()) / "omni"
TEXT, TALKER = "thinker_config.text_config", "talker_config"
DEEP = '{"model_type": "qwen2_5_omni", "a":'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The micro model without its weights."""
    for file in MICRO.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    return tmp_path


def refused(call: Callable[[Path], Any], folder: Path, file: str) -> str:
    """The one refusal, which names the file and its place."""
    with warnings.catch_warnings(), pytest.raises(CheckpointError) as raised:
        warnings.simplefilter("error", UserWarning)
        call(folder)
    error = raised.value
    assert file in error.what and str(folder) in str(error.where) and error.fix and "\n" not in error.what
    return error.what


def change(folder: Path, place: str, value: Any) -> None:
    """Set a key of config.json; ... removes it."""
    file = folder / "config.json"
    data = section = json.loads(file.read_text())
    *path, key = place.split(".")
    for part in path:
        section = section[part]
    section.pop(key, None)
    if value is not ...:
        section[key] = value
    file.write_text(json.dumps(data))


@pytest.mark.parametrize(("place", "value", "told"), [
    (f"{TEXT}.num_hidden_layers", "three", "num_hidden_layers"),
    ("talker_config", [1], "talker_config"),
    (f"{TALKER}.tts_text_end_token_id", None, "tts_text_end_token_id"),
    (f"{TEXT}.num_attention_heads", 0, "num_attention_heads is 0"),
    (f"{TALKER}.num_key_value_heads", 0, "num_key_value_heads is 0"),
    (f"{TALKER}.num_key_value_heads", 3, "4 is no multiple of num_key_value_heads 3"),
    (f"{TALKER}.hidden_act", "magic", "talker_config.hidden_act is 'magic'"),
    ("thinker_config.audio_config.activation_function", "magic", "audio_config.activation_function is 'magic'"),
    (f"{TEXT}.rope_scaling.rope_type", "spiral", "'spiral'"),
    (f"{TALKER}.hidden_size", -3, "talker_config.hidden_size is -3"),
    (f"{TALKER}.num_hidden_layers", 0, "talker_config.num_hidden_layers is 0"),
    (f"{TALKER}.rope_scaling", ..., "talker_config.rope_scaling.mrope_section is None"),
    (f"{TEXT}.rope_scaling.mrope_section", [4, 6, 7], "whose sum is 16"),
    (f"{TALKER}.quantization_config", {"quant_method": "gptq"}, "a talker_config.quantization_config"),
    (f"{TEXT}.quantization_config", {"quant_method": "bitsandbytes"}, "text_config.quantization_config"),
    ("attn_implementation", "kernels-community/flash-attn2", "attn_implementation is 'kernels-community"),
    (f"{TALKER}._attn_implementation", "me/kernel", "talker_config._attn_implementation is 'me/kernel'"),
    (f"{TEXT}._attn_implementation_internal", {"": "me/kernel"}, "_attn_implementation_internal"),
    ("experts_implementation", "me/kernel", "experts_implementation"),
])  # fmt: skip
def test_a_config_that_no_model_can_be_built_from(folder: Path, place: str, value: Any, told: str) -> None:
    change(folder, place, value)
    assert told in refused(read_config, folder, "config.json")


@pytest.mark.parametrize("text", ["[]", '"x"', "", "{", DEEP * 5000, DEEP * 900 + "1" + "}" * 900])
def test_a_config_that_is_no_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(read_config, folder, "config.json cannot be used")


def test_an_attention_that_a_config_names_is_not_used(folder: Path) -> None:
    change(folder, "attn_implementation", "flash_attention_2")
    change(folder, f"{TALKER}._attn_implementation", "eager")
    config = read_config(folder)
    assert config._attn_implementation is None and config.talker_config._attn_implementation is None
    assert meta_parts(config).keys() == {"thinker", "talker", "token2wav"}


def test_what_only_building_shows_is_told_of_config_json(folder: Path) -> None:
    change(folder, "token2wav_config.dit_config.enc_channels", [16])
    config = read_config(folder)
    assert "the token2wav cannot be built" in refused(lambda at: meta_parts(config, str(at)), folder, "config.json")


@pytest.mark.parametrize("shard", ["", ".", "..", None, 5, "sub/model.safetensors", "/etc/passwd", "x" * 300, "a\0b"])
def test_an_index_that_names_no_file(folder: Path, shard: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"talker.codec_head.weight": shard}}))
    told = refused(shards_of, folder, INDEX)
    assert "places 'talker.codec_head.weight'" in told and "missing" not in told


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', '{"weight_map":' * 5000])
def test_an_index_that_is_none(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    refused(shards_of, folder, INDEX)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must never run",)


@pytest.mark.parametrize("content", [b"", b"garbage " * 9, pickle.dumps(Hostile(), 4), pickle.dumps({"a": 1}, 5)])
def test_speakers_that_are_no_tensors_are_refused_without_advice_to_run_them(
    folder: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "spk_dict.pt").write_bytes(content)
    told = refused(load_speakers, folder, "spk_dict.pt cannot be read as plain tensors")
    assert "weights_only" not in told and "never run" not in capsys.readouterr().out


@pytest.mark.parametrize(("key", "value", "told"), [
    ("cond", torch.ones(1, 192).to_sparse(), "cond is sparse or nested"),
    ("cond", torch.empty(1, 192, device="meta"), "cond has no values"),
    ("cond", torch.ones(1, 192, dtype=torch.int32), "cond is of int32"),
    ("cond", torch.ones(1, 192, dtype=torch.complex64), "cond is of complex64"),
    ("ref_mel", torch.ones(1, 9, 80).to_sparse(), "ref_mel is sparse or nested"),
    ("ref_mel", "loud", "ref_mel is of type str"),
    ("bos_token", True, "bos_token True"),
])  # fmt: skip
def test_speakers_need_dense_floats(folder: Path, key: str, value: Any, told: str) -> None:
    table = torch.load(folder / "spk_dict.pt", weights_only=True)
    next(iter(table.values()))[key] = value
    torch.save(table, folder / "spk_dict.pt")
    assert told in refused(load_speakers, folder, "spk_dict.pt")


@pytest.mark.parametrize("written", [
    "{", [], {}, {"chat_template": None}, {"chat_template": 5}, {"chat_template": ""}, {"chat_template": " \n"},
    {"chat_template": "{% for"}, {"chat_template": "{{ raise_exception('no') }}"}, {"chat_template": "nothing of it"},
    {"chat_template": "{{ messages.__class__.__mro__ }}"}, {"chat_template": "{{ 1 / 0 }}"},
])  # fmt: skip
def test_a_chat_template_that_writes_no_chat(folder: Path, written: Any) -> None:
    """In chat_template.json, as the published checkpoints have it; and doctor says what loading says."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.json").write_text(written if isinstance(written, str) else json.dumps(written))
    refused(load_tokenizer, folder, "chat_template.json")
    assert any(level == "fail" and "chat_template.json" in text for level, text in check_model(folder))


@pytest.mark.parametrize(("name", "text"), [
    ("tokenizer.json", "[]"), ("tokenizer.json", "{}"), ("tokenizer.json", "{"), ("tokenizer_config.json", "[]"),
    ("tokenizer_config.json", '{"added_tokens_decoder": [1]}'), ("tokenizer_config.json", '{"chat_template": 5}'),
    ("added_tokens.json", "[]"), ("vocab.json", DEEP * 5000),
])  # fmt: skip
def test_a_tokenizer_that_does_not_load(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    refused(load_tokenizer, folder, name)


@pytest.mark.parametrize("text", ["[]", "{", '{"eos_token_id":' * 5000])
def test_sampling_defaults_that_are_broken(folder: Path, text: str) -> None:
    (folder / "generation_config.json").write_text(text)
    assert any(level == "fail" and "generation_config.json" in text for level, text in check_model(folder))
