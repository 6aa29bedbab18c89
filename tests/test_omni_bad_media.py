"""Files and messages that cannot be used: each prompt is told with its file, and stops no other prompt."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import save_file

from talker_rl.base.errors import PromptError
from talker_rl.records.prompt import Prompt
from talker_rl.speech.config import ConditioningConfig, ModelConfig
from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni
from talker_rl.speech.qwen2_5_omni.conditioning import compute_conditioning, conditioning_key

GENERATE = ConditioningConfig(mode="generate", max_reply_tokens=10, max_reply_wer=None)

VIDEO = {"pixel_values_videos": torch.zeros(24, 1176), "video_grid_thw": torch.tensor([[1, 4, 6]])}
NONE = torch.zeros(0, 1176)
VIDEO_FAULTS = {  # what to change in a video that is right, and what is then told
    "no grid": ({"video_grid_thw": None}, "no video_grid_thw"),
    "flat grid": ({"video_grid_thw": torch.tensor([1, 4, 6])}, r"video_grid_thw is \(3,\) int64"),
    "float grid": ({"video_grid_thw": torch.tensor([[1.0, 4, 6]])}, "1, 3. float32"),
    "negative": ({"video_grid_thw": torch.tensor([[1, -4, -6]])}, r"is \[1, -4, -6\]"),
    "zero": ({"video_grid_thw": torch.tensor([[0, 4, 6]]), "pixel_values_videos": NONE}, r"\[0, 4, 6\]"),
    "odd": ({"video_grid_thw": torch.tensor([[1, 3, 8]])}, r"is \[1, 3, 8\]"),
    "overflow": ({"video_grid_thw": torch.tensor([[2**62, 8, 6]]), "pixel_values_videos": NONE}, "0, 1176"),
    "number": ({"pixel_values_videos": torch.zeros(5, 1176)}, r"\(5, 1176\) float32 for a grid"),
    "width": ({"pixel_values_videos": torch.zeros(24, 588)}, r"\(24, 588\)"),
    "bytes": ({"pixel_values_videos": torch.zeros(24, 1176, dtype=torch.uint8)}, "uint8"),
    "nan": ({"pixel_values_videos": torch.full((24, 1176), torch.nan)}, "holds NaN or infinity"),
    "seconds 0-dim": ({"video_second_per_grid": torch.tensor(1.0)}, r"video_second_per_grid is \(\) float32"),
    "seconds of two": ({"video_second_per_grid": torch.ones(2)}, r"video_second_per_grid is \(2,\)"),
    "seconds 0": ({"video_second_per_grid": torch.zeros(1)}, "video_second_per_grid is 0"),
    "seconds nan": ({"video_second_per_grid": torch.tensor([torch.nan])}, "video_second_per_grid is nan"),
    "seconds 1e30": ({"video_second_per_grid": torch.tensor([1e30])}, "video_second_per_grid is 1e\\+30"),
}


def media_prompt(kind: str, file: Path | str) -> Prompt:
    return Prompt("red.", "Chelsie", messages=[{"role": "user", "content": [{"type": kind, kind: str(file)}]}])


@pytest.fixture(scope="module")
def omni() -> Any:
    return load_omni(ModelConfig(path="micro"), parts=("thinker",))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A PNG of several chunks of data."""
    pixels = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    return tmp_path / "whole.png"


def with_text(text: str, image: Path) -> Prompt:
    parts = [{"type": "text", "text": text}, {"type": "image", "image": str(image)}]
    return Prompt("red.", "Chelsie", messages=[{"role": "user", "content": parts}])


def only_the_first_is_left_out(omni: Any, bad: Prompt, told: str) -> PromptError:
    """It raises; or, as in a stage, is noted while the others are computed."""
    with pytest.raises(PromptError, match=told) as raised:
        compute_conditioning(omni, [bad])
    errors: dict[str, Any] = {}
    conditioning_key(omni, bad, GENERATE)
    (good,) = compute_conditioning(omni, [bad, Prompt("one two.", "Ethan")], errors=errors)
    assert list(errors) == [bad.prompt_id] and good.prefix.isfinite().all()
    return raised.value


@pytest.mark.parametrize("fault", VIDEO_FAULTS)
def test_a_malformed_video_is_told(omni: Any, tmp_path: Path, fault: str) -> None:
    change, told = VIDEO_FAULTS[fault]
    tensors = {name: tensor for name, tensor in (VIDEO | change).items() if tensor is not None}
    save_file(tensors, tmp_path / "v.safetensors")
    error = only_the_first_is_left_out(omni, media_prompt("video", tmp_path / "v.safetensors"), told)
    assert "v.safetensors" in str(error.where) and "(t*h*w, 1176)" in str(error.fix)


def test_a_videos_suffix_may_be_in_capitals(omni: Any, tmp_path: Path) -> None:
    save_file(VIDEO | {"pixel_values_videos": VIDEO["pixel_values_videos"].half()}, tmp_path / "V.SAFETENSORS")
    (c,) = compute_conditioning(omni, [media_prompt("video", tmp_path / "V.SAFETENSORS")])
    assert c.position_ids is not None and c.prefix.isfinite().all()


def test_films_are_checked_too(omni: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    class Processor:
        video_token = "<|VIDEO|>"
        made: Any = {**VIDEO, "video_second_per_grid": [1.0]}

        @classmethod
        def from_pretrained(cls, *_: Any, **__: Any) -> Any:
            return cls()

        def __call__(self, **_: Any) -> Any:
            if isinstance(self.made, Exception):
                raise self.made
            return self.made

    monkeypatch.setattr("transformers.utils.is_torchvision_available", lambda: True)
    monkeypatch.setattr(transformers, "Qwen2_5OmniProcessor", Processor)
    (tmp_path / "film.mp4").write_bytes(b"film")
    film = media_prompt("video", tmp_path / "film.mp4")
    (c,) = compute_conditioning(omni, [film])
    save_file(VIDEO, tmp_path / "v.safetensors")
    (same,) = compute_conditioning(omni, [media_prompt("video", tmp_path / "v.safetensors")])
    assert torch.equal(c.prefix, same.prefix)
    Processor.made = {**Processor.made, "pixel_values_videos": torch.full((24, 1176), torch.nan)}
    assert "film.mp4" in str(only_the_first_is_left_out(omni, film, "NaN or infinity").where)
    Processor.made = IndexError()  # no frame could be decoded
    assert "film.mp4" in str(only_the_first_is_left_out(omni, film, "video cannot be read: IndexError").where)


def wav(rate: int) -> bytes:
    """Half a second at 16 kHz, said to be of another rate."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 0, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", 16_036, b"WAVE") + form + struct.pack("<4sI", b"data", 16_000) + bytes(16_000)


def test_sound_that_cannot_be_used_is_told(omni: Any, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    hole = noise.copy()
    hole[4000] = np.nan
    for name, samples in (("nan", hole), ("inf", noise * np.float32(np.inf)), ("loud", noise * np.float32(1e25))):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "double.wav", noise.astype(np.float64) * 1e300, 16_000, subtype="DOUBLE")
    soundfile.write(tmp_path / "short.wav", np.zeros(80), 16_000)
    soundfile.write(tmp_path / "long.flac", np.zeros(301 * 4000, dtype=np.int16), 4000)
    (tmp_path / "rate.wav").write_bytes(wav(2_000_000_011))
    (tmp_path / "none.raw").write_bytes(bytes(16_000))
    (tmp_path / "empty.wav").write_bytes(b"")
    cases = {"nan.wav": "NaN or infinite", "inf.wav": "NaN or infinite", "double.wav": "NaN or infinite",
             "loud.wav": "too loud", "short.wav": "lasts 0.01 s", "long.flac": "lasts 301.00 s",
             "rate.wav": "rate is 2000000011 Hz", "none.raw": "cannot be read: samplerate",
             "empty.wav": "cannot be read"}  # fmt: skip
    for name, told in cases.items():
        assert name in str(only_the_first_is_left_out(omni, media_prompt("audio", tmp_path / name), told).where)


def test_hours_of_sound_are_refused_without_being_read(
    omni: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "long.flac", np.zeros(1000 * 4000, dtype=np.int16), 4000)
    read, frames = soundfile.SoundFile.read, []
    monkeypatch.setattr(soundfile.SoundFile, "read",
                        lambda self, *a, **k: frames.append(read(self, *a, **k)) or frames[-1])
    with pytest.raises(PromptError, match="lasts 1000.00 s"):
        compute_conditioning(omni, [media_prompt("audio", tmp_path / "long.flac")])
    assert [len(f) for f in frames] == [300 * 4000 + 1]


def test_images_that_cannot_be_used_are_told(omni: Any, tmp_path: Path, image: Path) -> None:
    (tmp_path / "no.png").write_text("no image")
    whole = image.read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    at = whole.rindex(b"IDAT")
    (tmp_path / "broken.png").write_bytes(whole[:at] + b"\xda\xb6b\xe2" + whole[at + 4 :])  # Pillow: a SyntaxError
    Image.new("RGB", (201, 1)).save(tmp_path / "thin.png")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    cases = {"no.png": "image cannot be read", "cut.png": "image cannot be read", "broken.png": "broken PNG",
             "thin.png": "aspect ratio", "bomb.png": "decompression bomb"}
    for name, told in cases.items():
        error = only_the_first_is_left_out(omni, media_prompt("image", tmp_path / name), told)
        assert name in str(error.where)
    for size in ((1, 1), (1, 3), (3, 1), (200, 1)):  # below the least that the processor takes: it enlarges them
        Image.new("RGB", size, (9, 99, 199)).save(tmp_path / "small.png")
        (c,) = compute_conditioning(omni, [media_prompt("image", tmp_path / "small.png")])
        assert c.prefix.isfinite().all()


def test_messages_that_cannot_be_used_are_told(omni: Any, image: Path, monkeypatch: Any) -> None:
    cases: dict[str, Any] = {
        "begins a sound": with_text("<|audio_bos|>", image).messages,
        "lone surrogate": with_text("one \ud800 two", image).messages,
        "half a character": [{"role": "user", "content": "one \ud800"}],
        "not a list of": "one two", "is not a list": [7],
        "no such audio file(?s:.)*aaa": media_prompt("audio", "a" * 300).messages,  # longer than names may be
        "no such audio file(?s:.)*~nobody": media_prompt("audio", "~nobody-of-this-name/a.wav").messages,
        "no such audio file": media_prompt("audio", "a\0b").messages,
    }  # fmt: skip
    for told, messages in cases.items():
        only_the_first_is_left_out(omni, Prompt("red.", "Chelsie", messages=messages), f"(?i){told}")
    monkeypatch.setattr(omni, "settings", omni.settings.model_copy(update={"system_prompt": ""}))
    only_the_first_is_left_out(omni, Prompt("red.", "Chelsie", messages=[]), "no message before the reply")

    def denied(file: Path) -> str:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("talker_rl.records.messages.cached_hash", denied)
    only_the_first_is_left_out(omni, media_prompt("image", image), "Cannot read the image file: Permission denied")


@pytest.mark.parametrize("token", ["<|IMAGE|>", "<|AUDIO|>", "<|VIDEO|>", "<|audio_bos|>", "<|vision_bos|>"])
def test_an_answer_of_media_tokens_is_told(
    omni: Any, image: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    answers = [omni.tokenizer(f"one {token}", add_special_tokens=False)["input_ids"], [5, 6]]
    monkeypatch.setattr("talker_rl.speech.qwen2_5_omni.conditioning.generate_replies", lambda *_: answers)
    errors: dict[str, Any] = {}
    spoken = [media_prompt("image", image), Prompt("one two.", "Ethan")]
    assert len(compute_conditioning(omni, spoken, GENERATE, errors=errors)) == 1
    assert "stand for media" in errors[spoken[0].prompt_id].what and token in errors[spoken[0].prompt_id].where
