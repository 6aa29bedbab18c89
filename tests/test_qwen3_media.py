"""Sound, images and video in a user's turn: the Talker of a Qwen3-Omni reads what upstream gives it, in its places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from qwen3_factory import tiny_qwen3, tokenizer, write_checkpoint
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2VLImageProcessorPil, WhisperFeatureExtractor
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as qwen

import talker_rl
from talker_rl.base.errors import PromptError
from talker_rl.records.prompt import Prompt
from talker_rl.speech.config import ConditioningConfig, ModelConfig, SamplingConfig
from talker_rl.speech.media import Media, encode, thinker_inputs
from talker_rl.speech.protocol import SampleRequest, TalkerSequence
from talker_rl.speech.qwen3_omni.codec import CODEC
from talker_rl.speech.qwen3_omni.family import conditioning
from talker_rl.speech.qwen3_omni.layout import talker_inputs

RATE = 16_000
IMAGES = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=4096)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_qwen3()


@pytest.fixture(scope="module")
def generator(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_checkpoint(tmp_path_factory.mktemp("qwen3"), model)
    settings = {**WhisperFeatureExtractor(feature_size=16).to_dict(), **IMAGES.to_dict()}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return talker_rl.load(ModelConfig(path=str(folder), device="cpu", system_prompt="", instruction="{text}"))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("sound"), np.random.default_rng(0)
    files = [folder / f"{i}.wav" for i in range(3)]
    for file, seconds in zip(files, (0.9, 2.3, 0.4), strict=True):
        soundfile.write(file, rng.normal(0, 0.1, int(seconds * RATE)), RATE)
    return files


def asked(*parts: Path | str, earlier: Path | None = None) -> list[dict[str, Any]]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "audio", "audio": str(part)}
               for part in parts]
    before = [] if earlier is None else [*asked(earlier), {"role": "assistant", "content": "left"}]
    return [*before, {"role": "user", "content": content}]


def upstreams(model: Any, generator: Any, messages: list[dict[str, Any]], files: list[Path]) -> dict[str, Any]:
    """What generate gives the Talker, and what the Thinker answered."""
    # each sound alone: upstream's processor pads the shorter ones of a call, whose ends then hear the silence
    extractor = WhisperFeatureExtractor(feature_size=16)
    each = [extractor(soundfile.read(file, dtype="float32")[0], sampling_rate=RATE, padding=True, truncation=False,
                      return_attention_mask=True, return_tensors="pt") for file in files]
    frames = torch.cat([one["attention_mask"].sum(1) for one in each])
    features = pad_sequence([one["input_features"][0].T for one in each], batch_first=True)
    mask = pad_sequence([one["attention_mask"][0] for one in each], batch_first=True)
    text = tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    for length in qwen._get_feat_extract_output_lengths(frames, model.config.thinker_config.audio_config.n_window):
        text = text.replace("<|audio_pad|>", "<|heard|>" * int(length), 1)
    ids = torch.tensor([tokenizer()(text.replace("<|heard|>", "<|audio_pad|>"))["input_ids"]])
    given: dict[str, Any] = {}
    generate = model.talker.generate

    def talked(**options: Any) -> Any:
        given["inputs"] = options["inputs_embeds"]
        return generate(**options)

    model.talker.generate = talked
    try:
        sequences, _ = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), input_features=features.transpose(1, 2),
            feature_attention_mask=mask, speaker="Bob", thinker_max_new_tokens=5,
            thinker_eos_token_id=15, thinker_pad_token_id=0, thinker_do_sample=False, talker_max_new_tokens=3)
    finally:
        model.talker.generate = generate
    return given | {"reply": sequences[0, ids.shape[1] :]}


@pytest.mark.parametrize("earlier", [False, True])
def test_the_talker_reads_what_upstream_gives_it(
    model: Any, generator: Any, sounds: list[Path], earlier: bool
) -> None:
    messages = asked("stop, ", sounds[0], "go", sounds[1], earlier=sounds[2] if earlier else None)
    files = [*([sounds[2]] if earlier else []), sounds[0], sounds[1]]
    given = upstreams(model, generator, messages, files)
    prompt = Prompt("blue green.", speaker="Bob", messages=messages)
    [seen] = generator.condition([prompt])
    assert seen.heard is not None and 0 < int(seen.heard.sum()) < len(seen.heard)
    with generator.policy() as policy:
        batch = policy.collate([TalkerSequence(seen, CODEC.speech([2150]))])
        ours = talker_inputs(policy.module, batch)[0]
    assert ours.shape[0] == given["inputs"].shape[1] == seen.rows[0]
    torch.testing.assert_close(ours[:-1], given["inputs"][0, :-1], atol=2e-5, rtol=0)  # the last is the reply's first
    cfg = ConditioningConfig(mode="generate", max_reply_tokens=5, max_reply_wer=None)
    [answered] = generator.condition([prompt], cfg)
    end = len(answered.reply)
    table = model.thinker.get_input_embeddings().weight
    assert torch.equal(answered.reply, table[given["reply"][:end]])


def test_sampled_log_probs_are_the_policys_own(generator: Any, sounds: list[Path]) -> None:
    """With and without sound, in one batch; and as they are stored."""
    prompts = [Prompt("stop.", speaker="Ann", messages=asked(sounds[0])), Prompt("go left.", speaker="Bob"),
               Prompt("red.", speaker="Bob", messages=asked("blue", sounds[1]))]
    seen = generator.condition(prompts)
    stored = [conditioning(s.prompt_id, s.speaker, s.reply_text, s.tensors()) for s in seen]
    assert [s.heard is None for s in seen] == [False, True, False]
    with generator.policy() as policy:
        said = policy.sample([SampleRequest(s, [1, 2]) for s in seen],
                             SamplingConfig(max_new_tokens=8, top_k=0, top_p=1.0, temperature=1.0))
        by_id = {s.prompt_id: s for s in stored}
        batch = policy.collate([TalkerSequence(by_id[c.prompt_id], c.speech) for c in said])
        with torch.no_grad():
            rows = policy.logps(batch)
    for row, one in zip(rows, said, strict=True):
        assert float((row[: one.speech.steps] - torch.tensor(one.token_logps)).abs().max()) <= 1e-5
    assert batch.heard_R is not None and len(batch.heard_R) == len(batch.text_RE)


def test_the_key_knows_the_sound(generator: Any, sounds: list[Path], tmp_path: Path) -> None:
    cfg = ConditioningConfig()
    (copy := tmp_path / "copy.wav").write_bytes(sounds[0].read_bytes())
    keys = [generator.conditioning_key(Prompt("stop.", speaker="Ann", messages=asked(file)), cfg)
            for file in (sounds[0], sounds[1], copy)]
    assert keys[0] == keys[2] != keys[1]


def test_what_cannot_be_heard_is_told(generator: Any, sounds: list[Path], tmp_path: Path) -> None:
    (damaged := tmp_path / "damaged.wav").write_bytes(b"RIFF0000WAVE")
    twice = asked("<|audio_pad|>", sounds[0])
    for messages, told in ((asked(damaged), "damaged.wav"), (twice, "2 audio placeholders")):
        with pytest.raises(PromptError) as caught:
            generator.condition([Prompt("stop.", speaker="Ann", messages=messages)])
        assert told in str(caught.value)


# Images and video


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for name, size in (("a.png", (24, 16)), ("b.png", (16, 32))):
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(folder / name)
    values = 3 * 2 * 4**2
    save_file({"pixel_values_videos": torch.from_numpy(rng.normal(size=(2 * 4 * 6, values)).astype(np.float32)),
               "video_grid_thw": torch.tensor([[2, 4, 6]]), "video_second_per_grid": torch.tensor([0.48])},
              folder / "v.safetensors")
    return {file.stem: file for file in folder.iterdir()}


def shown(*parts: Path | str) -> list[dict[str, Any]]:
    kinds = {".png": "image", ".safetensors": "video", ".wav": "audio"}
    content = [{"type": "text", "text": part} if isinstance(part, str) else
               {"type": kinds[part.suffix], kinds[part.suffix]: str(part)} for part in parts]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("which", ["image", "two images", "video"])
def test_images_stand_where_upstream_puts_them(
    model: Any, generator: Any, pictures: dict[str, Path], which: str
) -> None:
    messages = {"image": shown("stop, ", pictures["a"], "go"), "video": shown(pictures["v"], "go"),
                "two images": shown(pictures["a"], "red", pictures["b"])}[which]
    prompt = Prompt("blue green.", speaker="Bob", messages=messages)
    [seen] = generator.condition([prompt])
    media = Media(Path(generator.settings.path), model.config.thinker_config,
                  {"audio": 195, "image": 196, "video": 197},
                  lambda n: int(qwen._get_feat_extract_output_lengths(n, 50)), False, "", 1.0)
    context = encode(media, tokenizer(), messages, "here")
    ids, heard, calls = torch.tensor([context.ids]), {}, []
    generate = model.talker.generate

    def talked(**options: Any) -> Any:
        heard["inputs"] = options["inputs_embeds"]
        return generate(**options)

    hook = model.talker.model.register_forward_pre_hook(
        lambda _m, _args, kwargs: calls.append(kwargs["position_ids"][-3:, 0].float()), with_kwargs=True)
    model.talker.generate = talked
    try:
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), speaker="Bob", thinker_max_new_tokens=3,
                       thinker_eos_token_id=15, thinker_pad_token_id=0, thinker_do_sample=False,
                       talker_max_new_tokens=4, talker_min_new_tokens=4, **thinker_inputs([context], "cpu"))
    finally:
        model.talker.generate = generate
        hook.remove()
    with generator.policy() as policy:
        batch = policy.collate([TalkerSequence(seen, CODEC.speech([1] * 32 + [2150]))])
        ours = talker_inputs(policy.module, batch)[0]
    width = seen.rows[0]
    assert heard["inputs"].shape[1] == width
    torch.testing.assert_close(ours[: width - 1], heard["inputs"][0, :-1], atol=2e-5, rtol=0)
    assert seen.position_ids is not None and torch.equal(seen.position_ids, calls[0])
    assert torch.equal(batch.position_ids_3L, torch.cat(calls[:3], dim=1)) and seen.next_position != width


def test_images_and_sound_together(
    model: Any, generator: Any, pictures: dict[str, Path], sounds: list[Path]
) -> None:
    """Upstream's Talker asks its configuration for the audio tower's, which it has not (transformers 5.23), and cannot
    speak then; positions are the Thinker's, whose rule is the same."""
    messages = shown(pictures["a"], "red", sounds[0], "blue", pictures["b"])
    [seen] = generator.condition([Prompt("blue green.", speaker="Bob", messages=messages)])
    assert seen.position_ids is not None and seen.heard is not None
    places, jumps = seen.position_ids, seen.position_ids.diff(dim=1)
    images = (places != places[0]).any(0)  # height or width differ from time
    assert 0 < int(images.sum()) < int(seen.heard.sum())  # sound's are 1, 2, 3, ... on each axis
    alone = ~images[1:] & ~images[:-1]
    assert alone.any() and bool((jumps[:, alone] == 1).all())
    ids, grid = torch.tensor([[198, 196, 193, 199, 195, 194]]), torch.tensor([[1, 2, 2]])
    with pytest.raises(AttributeError, match="audio_config"):
        model.talker.get_rope_index(ids, grid, None, None, False, torch.tensor([10]))


def test_log_probs_with_images_are_those_of_sampling(
    generator: Any, pictures: dict[str, Path], sounds: list[Path]
) -> None:
    prompts = [Prompt("stop.", speaker="Ann", messages=shown(pictures["a"], "red")), Prompt("go.", speaker="Bob"),
               Prompt("left.", speaker="Bob", messages=shown(pictures["v"], sounds[2]))]
    seen = generator.condition(prompts)
    stored = {s.prompt_id: conditioning(s.prompt_id, s.speaker, s.reply_text, s.tensors()) for s in seen}
    with generator.policy() as policy:
        said = policy.sample([SampleRequest(s, [1, 2, 3]) for s in seen],
                             SamplingConfig(max_new_tokens=8, top_k=0, top_p=1.0, temperature=1.0), batch_size=4)
        with torch.no_grad():
            rows = policy.logps(policy.collate([TalkerSequence(stored[c.prompt_id], c.speech) for c in said]))
    for row, one in zip(rows, said, strict=True):
        assert float((row[: one.speech.steps] - torch.tensor(one.token_logps)).abs().max()) <= 1e-5


def test_media_in_other_turns_beside_images_is_refused(
    generator: Any, pictures: dict[str, Path], sounds: list[Path]
) -> None:
    before = [{"role": "system", "content": [{"type": "audio", "audio": str(sounds[0])}]}]
    with pytest.raises(PromptError, match="one of role system"):
        generator.condition([Prompt("stop.", speaker="Ann", messages=[*before, *shown(pictures["a"])])])
    assert len(generator.condition([Prompt("stop.", speaker="Ann", messages=[*before, *asked(sounds[1])])])) == 1
