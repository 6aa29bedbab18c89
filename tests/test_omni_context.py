"""Contexts with sound, images and video equal transformers' own processor and ``generate``, on the micro model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import save_file
from said import sequence

from talker_rl.base.errors import CheckpointError, PromptError
from talker_rl.base.ids import stable_hash
from talker_rl.records.messages import check_messages, identity, resolve_media
from talker_rl.records.prompt import Prompt
from talker_rl.speech.cache import ConditioningCache
from talker_rl.speech.config import ConditioningConfig, ModelConfig, SamplingConfig
from talker_rl.speech.media import thinker_inputs
from talker_rl.speech.prompt_text import prompt_messages
from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni
from talker_rl.speech.qwen2_5_omni.conditioning import (
    Conditioning,
    compute_conditioning,
    conditioning_key,
)
from talker_rl.speech.qwen2_5_omni.context import encode
from talker_rl.speech.qwen2_5_omni.layout import collate
from talker_rl.speech.qwen2_5_omni.logps import token_logps
from talker_rl.speech.qwen2_5_omni.rollouts import sample_candidates
from talker_rl.speech.sound_files import processor as processor_part

TOLERANCE = 1e-4
GENERATE = ConditioningConfig(mode="generate", max_reply_tokens=10, max_reply_wer=None)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    for name, seconds, rate in (("a.wav", 0.9, 24_000), ("b.flac", 1.37, 16_000)):
        soundfile.write(folder / name, rng.normal(0, 0.1, (int(seconds * rate), 2)), rate)
    for name, size in (("a.png", (90, 60)), ("b.png", (56, 140))):
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(folder / name)
    turned = Image.Exif()
    turned[0x0112] = 6  # lies on its side, as telephones store upright photos
    Image.open(folder / "a.png").save(folder / "c.jpg", exif=turned)
    grid = torch.tensor([[3, 4, 6]])
    pixels = torch.from_numpy(rng.normal(size=(72, 1176)).astype(np.float32))
    save_file({"pixel_values_videos": pixels, "video_grid_thw": grid, "video_second_per_grid": torch.tensor([0.48])},
              folder / "v.safetensors")
    return {p.name: str(p) for p in folder.iterdir()}


@pytest.fixture(scope="module")
def omni() -> Any:
    return load_omni(ModelConfig(path="micro"), parts=("thinker", "talker"))


def prompt(files: dict[str, str], *content: str, text: str = "river garden.") -> Prompt:
    """A user message of files and texts; the kind of a part follows from its suffix."""
    kinds = {".wav": "audio", ".flac": "audio", ".png": "image", ".jpg": "image", ".mp4": "video",
             ".safetensors": "video"}
    parts = [{"type": kinds[Path(c).suffix], kinds[Path(c).suffix]: files[c]} if c in files
             else {"type": "text", "text": c} for c in content]
    return Prompt(text, "Chelsie", messages=[{"role": "user", "content": parts}])


def prompts(files: dict[str, str]) -> list[Prompt]:
    return [
        prompt(files, "a.png", "red", "a.wav", "two", "b.png"),
        prompt(files, "b.flac", "one", "v.safetensors", "a.png", "blue"),
        prompt(files, "a.wav", "b.flac", "green"),
        prompt(files, "v.safetensors", text="window, river."),
    ]


@pytest.fixture
def processor(omni: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """transformers' whole processor, with no video processor in it: that one alone needs torchvision."""
    from transformers import Qwen2_5OmniProcessor
    from transformers.processing_utils import ProcessorMixin

    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    video = SimpleNamespace(merge_size=2, temporal_patch_size=2, model_input_names=["pixel_values_videos"])
    image, audio = (processor_part(kind, omni.path) for kind in ("image", "audio"))
    return Qwen2_5OmniProcessor(image, video, audio, omni.tokenizer, chat_template=omni.tokenizer.chat_template)


def test_tokens_and_tensors_are_the_whole_processors(omni: Any, processor: Any, files: dict[str, str]) -> None:
    from transformers.image_utils import load_image

    from talker_rl.base.sound import resample

    for spoken in (prompts(files)[0], prompts(files)[2], prompt(files, "c.jpg", "b.png", "two")):
        messages = prompt_messages(omni.settings, spoken)
        parts = [p for m in messages if isinstance(m["content"], list) for p in m["content"]]
        sounds = [soundfile.read(p["audio"], dtype="float32") for p in parts if p["type"] == "audio"]
        images = [load_image(p["image"]) for p in parts if p["type"] == "image"]
        expected = processor(
            text=processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False),
            audio=[resample(x.mean(axis=1), rate, 16_000) for x, rate in sounds] or None,
            images=images or None, return_tensors="pt",
        )  # fmt: skip
        ours = encode(omni, messages, "here")
        assert ours.ids == expected["input_ids"][0].tolist()
        given = thinker_inputs([ours], "cpu")
        assert len(ours.audio) == len(sounds)
        if sounds:
            frames = given["input_features"].shape[2]
            mask = expected["feature_attention_mask"].bool()
            theirs = [mel[:, m] for mel, m in zip(expected["input_features"], mask, strict=True)]
            for got, want in zip(ours.audio, theirs, strict=True):
                assert got.shape == want.shape and float((got - want).abs().max()) <= 1e-5
            assert given["feature_attention_mask"].sum(-1).tolist() == [x.shape[1] for x in theirs]
            assert frames == max(x.shape[1] for x in theirs)
        for name in ("pixel_values", "image_grid_thw"):
            assert (name in given) == bool(images) and (not images or torch.equal(given[name], expected[name]))
    assert given["image_grid_thw"].tolist() == [[1, 6, 4], [1, 10, 4]]  # c.jpg: 60 wide, 90 high, once it is turned


class Heard(Exception):
    pass


def upstream(omni: Any, contexts: list[Any]) -> dict[str, Any]:
    """What upstream's ``generate`` gives its Talker, the positions and logits of it, and the codes it draws.

    Rows are left-padded so that none is without padding: transformers 5.23 drops codec-bos, codec-pad and TMRoPE
    from a batch that has none.
    """
    from transformers import Qwen2_5OmniForConditionalGeneration

    model = Qwen2_5OmniForConditionalGeneration.from_pretrained(str(omni.path), dtype=torch.float32).eval()
    width = max(len(c.ids) for c in contexts) + 1
    ids = torch.full((len(contexts), width), 620)
    mask = torch.zeros_like(ids)
    for i, c in enumerate(contexts):
        ids[i, width - len(c.ids) :], mask[i, width - len(c.ids) :] = torch.tensor(c.ids), 1
    seen: dict[str, Any] = {"positions": [], "lengths": mask.sum(-1)}
    generate = model.talker.generate
    model.talker.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen["positions"].append(kwargs["position_ids"].clone()), with_kwargs=True)

    def talker(**kwargs: Any) -> None:
        for name in ("pixel_values", "pixel_values_videos"):
            kwargs.pop(name, None)  # upstream hands them on, and its own Talker refuses arguments that it does not use
        seen.update({k: v.clone() if torch.is_tensor(v) else v for k, v in kwargs.items()})
        out = generate(**kwargs, output_logits=True, return_dict_in_generate=True)
        seen["codes"], seen["logits"] = out.sequences[:, width + 2 :], torch.stack(out.logits, dim=1)
        raise Heard

    model.talker.generate = talker
    torch.manual_seed(0)
    with pytest.raises(Heard):
        model.generate(
            input_ids=ids, attention_mask=mask, speaker="Chelsie", thinker_max_new_tokens=10, thinker_do_sample=False,
            thinker_eos_token_id=622, thinker_pad_token_id=620, talker_max_new_tokens=25,
            **thinker_inputs(contexts, "cpu"),
        )  # fmt: skip
    return seen


def completion(codes: torch.Tensor) -> list[int]:
    out: list[int] = []
    for code in codes.tolist():
        out.append(code)
        if code in (8292, 8294):
            break
    return out


def test_prefix_positions_and_logps_equal_upstreams(omni: Any, files: dict[str, str]) -> None:
    given = prompts(files)
    contexts = [encode(omni, prompt_messages(omni.settings, p), "here") for p in given]
    seen = upstream(omni, contexts)
    ours = compute_conditioning(omni, given, GENERATE)
    placeholders = torch.tensor([623, 632, 633])
    embed = omni.thinker.get_input_embeddings().weight
    for i, (c, context) in enumerate(zip(ours, contexts, strict=True)):
        rows = len(context.ids) + 2
        assert c.prefix.shape[0] == rows
        assert float((c.prefix - seen["inputs_embeds"][i, -rows:]).abs().max()) <= TOLERANCE
        stream = seen["thinker_reply_part"][i, : len(c.reply_stream)]
        assert float((c.reply_stream - stream).abs().max()) <= TOLERANCE
        positions = seen["positions"][0][:, i, -rows:]
        assert torch.equal(torch.arange(rows).expand(3, -1) if c.position_ids is None else c.position_ids, positions)
        assert int(seen["positions"][1][0, i]) == c.next_position  # of the first code
        assert torch.isin(torch.tensor(context.ids), placeholders).sum() >= 8
    assert [c.position_ids is None for c in ours] == [False, False, True, False]
    # the media matter: another image, another conditioning
    (other,) = compute_conditioning(omni, [prompt(files, "b.png", "red", "a.wav", "two", "b.png")], GENERATE)
    assert not torch.allclose(other.prefix[-8:], ours[0].prefix[-8:], atol=1e-3)
    assert float(embed.abs().max()) > 0.1

    codes = [completion(row) for row in seen["codes"]]
    examples = [sequence(c, row) for c, row in zip(ours, codes, strict=True)]
    logps = token_logps(omni.talker, collate(examples)).detach()
    for i, row in enumerate(codes):
        expected = seen["logits"][i, : len(row)].log_softmax(-1)[range(len(row)), row]
        assert len(row) > 5
        assert float((logps[i, : len(row)] - expected).abs().max()) <= TOLERANCE
    flat = [sequence(Conditioning(c.prompt_id, c.prefix, c.reply_stream, "Chelsie"), row)
            for c, row in zip(ours, codes, strict=True)]  # fmt: skip
    wrong = token_logps(omni.talker, collate(flat)).detach()
    assert float((wrong - logps)[0].abs().max()) > 10 * TOLERANCE  # without their positions they would differ


def test_rollouts_record_what_training_computes(omni: Any, files: dict[str, str], tmp_path: Path) -> None:
    given = prompts(files)
    made = compute_conditioning(omni, given)
    ConditioningCache(tmp_path).put([(c, "key") for c in made])
    stored = ConditioningCache(tmp_path, strict=True).load([p.prompt_id for p in given])
    for c in made:
        kept = stored[c.prompt_id].position_ids
        assert (kept is None) == (c.position_ids is None) and (kept is None or torch.equal(kept, c.position_ids))
    conditionings = list(stored.values())
    candidates = sample_candidates(omni.talker, conditionings, [[1, 2]] * len(given), SamplingConfig(max_new_tokens=30),
                                   batch_size=3)
    examples = [sequence(stored[c.prompt_id], c.speech.ids) for c in candidates]
    logps = token_logps(omni.talker, collate(examples)).detach()
    for row, candidate in zip(logps, candidates, strict=True):
        recorded = torch.tensor(candidate.token_logps)
        assert float((row[: len(recorded)] - recorded).abs().max()) <= TOLERANCE


def test_batching_changes_nothing(omni: Any, files: dict[str, str]) -> None:
    given = [*prompts(files), Prompt("one two.", "Ethan")]
    together = compute_conditioning(omni, given)
    for one, a in zip(given, together, strict=True):
        (b,) = compute_conditioning(omni, [one])
        assert torch.allclose(a.prefix, b.prefix, atol=TOLERANCE)
        assert torch.allclose(a.reply_stream, b.reply_stream, atol=TOLERANCE)


def test_keys_of_prompts_without_media_stay_as_they_were(omni: Any, files: dict[str, str]) -> None:
    """Those with media changed when images began to be turned."""
    chat = [{"role": "user", "content": [{"type": "text", "text": "one"}]}]
    for messages, same in ((None, True), (chat, True), (prompt(files, "a.png", "one").messages, False)):
        spoken = Prompt("one two.", "Ethan", messages=messages)
        cfg = ConditioningConfig()
        noted = prompt_messages(omni.settings, spoken)
        if not same:
            noted = resolve_media(check_messages(noted, ""), Path.cwd(), "")
        before = stable_hash("conditioning", 1, omni.hash_of("thinker"), omni.settings.dtype, cfg.mode, None,
                             identity(noted), spoken.text, spoken.speaker)
        assert (conditioning_key(omni, spoken, cfg) == before) == same


def test_what_cannot_be_used_is_told(omni: Any, files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"film")
    with pytest.raises(PromptError, match="torchvision") as raised:
        compute_conditioning(omni, [prompt({"film.mp4": str(tmp_path / "film.mp4")}, "film.mp4")])
    assert "film.mp4" in str(raised.value)
    with pytest.raises(PromptError, match="1 image placeholders for 0 image parts"):
        compute_conditioning(omni, [Prompt("red.", "Chelsie", messages=[{"role": "user", "content": "<|IMAGE|>"}])])
    first = prompts(files)[3]
    assert conditioning_key(omni, first, GENERATE) != conditioning_key(omni, prompt(files, "a.png"), GENERATE)
    noted = resolve_media(first.messages or [], tmp_path, "here")
    assert conditioning_key(omni, Prompt(first.text, "Chelsie", messages=noted), GENERATE) == conditioning_key(
        omni, first, GENERATE)  # by content, whether it was read from a prompt file or not
    changed = [{**m, "content": [{**p, "sha256": "0"} for p in m["content"]]} for m in noted]
    with pytest.raises(PromptError, match="file changed"):
        compute_conditioning(omni, [Prompt(first.text, "Chelsie", messages=changed)])


def test_thinker_and_talker_must_agree_on_positions(files: dict[str, str], omni: Any) -> None:
    omni.config.talker_config.position_id_per_seconds = 13
    try:
        with pytest.raises(CheckpointError, match="position_id_per_seconds is 25 in thinker_config and 13"):
            compute_conditioning(omni, [prompts(files)[3]])
    finally:
        omni.config.talker_config.position_id_per_seconds = 25
