"""Recordings to codes: real classes at random weights, and what cannot be used is told in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from qwen3_factory import write_checkpoint
from safetensors.torch import save_file
from transformers import MimiConfig, MimiModel

from talker_rl import cli
from talker_rl.base.errors import CheckpointError, ConfigError
from talker_rl.data.completions import import_completions
from talker_rl.micro.mel import log_mel
from talker_rl.micro.qwen3.codes import Books, fit
from talker_rl.records.codec import codec_named
from talker_rl.records.prompt import Prompt
from talker_rl.speech.config import ModelConfig
from talker_rl.speech.qwen3_omni.codec import CODEC, of_size
from talker_rl.speech.qwen3_omni.encoder import Residual, load_encoder
from talker_rl.speech.registry import family_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = write_checkpoint(tmp_path_factory.mktemp("qwen3"))
    return found


@pytest.fixture(scope="module")
def mimi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = MimiConfig(num_filters=4, hidden_size=32, codebook_dim=16, vector_quantization_hidden_dimension=16,
                        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
                        intermediate_size=32, upsample_groups=32)
    found = MimiModel(config)
    for name, buffer in found.named_buffers():
        if name.endswith("embed_sum"):
            buffer.normal_()
    folder = tmp_path_factory.mktemp("mimi")
    found.save_pretrained(folder)
    return folder


def tone(seconds: float, rate: int, pitch: float = 220.0) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * pitch * t * (1 + 0.2 * t))).astype(np.float32)


def test_recordings_become_rows_that_a_training_imitates(model: Path, mimi: Path, tmp_path: Path, capsys: Any) -> None:
    for i, (seconds, rate) in enumerate([(1.0, 24_000), (0.71, 16_000), (1.3, 44_100)]):
        soundfile.write(tmp_path / f"{i}.wav", np.stack([tone(seconds, rate)] * 2, 1), rate)
        (tmp_path / f"{i}.txt").write_text("stop, go.\n" if i else "blue.")
    (tmp_path / "damaged.wav").write_bytes((tmp_path / "0.wav").read_bytes()[:30])
    soundfile.write(tmp_path / "silent.flac", np.zeros(24_000), 24_000)
    soundfile.write(tmp_path / "short.wav", tone(0.1, 24_000), 24_000)
    for name in ("damaged", "silent", "short"):
        (tmp_path / f"{name}.txt").write_text("red.")
    out = tmp_path / "codes.jsonl"
    files = sorted(str(f) for f in [*tmp_path.glob("*.wav"), *tmp_path.glob("*.flac")])
    assert cli.main(["encode", *files, "--model", str(model), "--encoder", str(mimi), "--speaker", "Ann", "--out",
                     str(out), "--device", "cpu"]) == 0
    told = capsys.readouterr()
    assert "3 recordings" in told.out and "3 left out" in told.out
    for line in ("damaged.wav: it cannot be read as sound", "silent.flac: it is silent",
                 "short.wav: it is 0.10 s long"):
        assert told.err.count(line) == 1
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["seconds"] for row in rows] == [0.96, 0.64, 1.28] and all(row["codes"][-1] == 2150 for row in rows)
    assert all(CODEC.invalid(row["codes"][:-1]) is None and len(row["codes"]) % 16 == 1 for row in rows)
    prompts = [Prompt("stop, go.", "Ann"), Prompt("blue.", "Ann")]
    found, reasons = import_completions(out, prompts, CODEC)
    assert len(found) == 3 and not reasons and {c.speech.codec.name for c in found} == {"qwen3_omni"}


def test_codes_of_a_mimi_are_its_first_books(mimi: Path) -> None:
    encoder = load_encoder(ModelConfig(device="cpu"), CODEC, str(mimi))
    sound = tone(2.0, 24_000)
    [codes] = encoder.encode([sound])
    whole = MimiModel.from_pretrained(mimi).eval().encode(torch.from_numpy(sound)[None, None]).audio_codes[0]
    assert torch.equal(torch.tensor(codes).view(-1, 16), whole[:16].T) and len(codes) == 25 * 16
    assert len({*codes}) > 20
    with pytest.raises(CheckpointError, match="the model speaks 8 of 256"):
        load_encoder(ModelConfig(device="cpu"), of_size(8, 256), str(mimi))


def test_residual_books_take_what_the_ones_before_have_left(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)  # noise whose level changes from frame to frame
    sounds = [(torch.randn(600, 1920, generator=draw) * torch.rand(600, 1, generator=draw)).flatten() / 4
              for _ in range(2)]
    books, errors = fit([log_mel(sound) for sound in sounds])
    assert len(errors) == 8 and errors == sorted(errors, reverse=True) and errors[-1] < 0.9 * errors[0]
    books.save(tmp_path / "books.safetensors")
    codec = codec_named("qwen3_omni-8x256")
    again = load_encoder(ModelConfig(device="cpu"), codec, str(tmp_path / "books.safetensors"))
    assert isinstance(again, Residual)
    assert torch.equal(again.centroids, Books.load(tmp_path / "books.safetensors").centroids)
    codes = again.encode_mel(log_mel(sounds[0]))
    spoken = sum(book[codes[:, k]] for k, book in enumerate(again.centroids))
    for k in range(1, 8):  # by hand: the nearest to what is left
        left = again.features(log_mel(sounds[0])) - sum(again.centroids[j][codes[:, j]] for j in range(k))
        apart = torch.cdist(left, again.centroids[k])
        assert float((apart.gather(1, codes[:, k : k + 1])[:, 0] - apart.min(1).values).max()) < 1e-3
    assert float((spoken - again.features(log_mel(sounds[0]))).abs().mean()) < errors[-1] + 2e-3  # stored in halves
    assert again.encode([sounds[0].numpy()])[0] == codes.flatten().tolist()
    save_file({"centroids": torch.zeros(2, 3, 640)}, tmp_path / "other.safetensors")
    for file, message in (("other", "holds no 8 books of 256"), ("nobody", "no such file of books")):
        with pytest.raises(CheckpointError, match=message):
            load_encoder(ModelConfig(device="cpu"), codec, str(tmp_path / f"{file}.safetensors"))


@pytest.mark.parametrize(("given", "message"), [
    (["nobody.wav"], "no such recording"), (["a.wav"], "What does this recording say?"),
    (["a.jsonl"], "The line names no recording"), (["b.jsonl"], "'Cid' is no speaker of the model"),
])
def test_a_mistake_is_told_before_anything_is_encoded(
    given: list[str], message: str, model: Path, tmp_path: Path, capsys: Any
) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1.0, 24_000), 24_000)
    (tmp_path / "a.jsonl").write_text('{"text": "stop."}\n')
    (tmp_path / "b.jsonl").write_text('{"audio": "a.wav", "text": "stop.", "speaker": "Cid"}\n')
    out = tmp_path / "out.jsonl"
    files = [str(tmp_path / name) for name in given]
    assert cli.main(["encode", *files, "--model", str(model), "--out", str(out)]) != 0
    assert message in capsys.readouterr().err and not out.exists()


def test_a_codec_without_an_encoder_says_so(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(ConfigError, match="no encoder of Qwen2.5-Omni's codec was released"):
        family_of("micro").encoder(ModelConfig(), None)
    assert cli.main(["encode", "a.wav", "--out", str(tmp_path / "o")]) != 0
    assert "Whose codes?" in capsys.readouterr().err
