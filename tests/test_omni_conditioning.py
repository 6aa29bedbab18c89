"""Conditioning equals what Qwen2_5OmniForConditionalGeneration.generate feeds its Talker; the cache keeps it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conditioning_helpers import ensure_conditioning
from omni_factory import random_conditionings, tokenizer, write_checkpoint

from talker_rl.base.errors import CheckpointError, DataError, PromptError, StageError
from talker_rl.base.seals import sealed, unseal
from talker_rl.records.prompt import Prompt
from talker_rl.speech.cache import ConditioningCache
from talker_rl.speech.config import SPEECH_SYSTEM_PROMPT, ConditioningConfig, ModelConfig
from talker_rl.speech.prompt_text import prompt_messages
from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni
from talker_rl.speech.qwen2_5_omni.conditioning import compute_conditioning, conditioning_key
from talker_rl.speech.qwen2_5_omni.generator import OmniGenerator

TOLERANCE = 1e-5
GENERATE = ConditioningConfig(mode="generate", max_reply_tokens=12, max_reply_wer=None)
PROMPTS = [
    Prompt("stop go left.", "Ann"),
    Prompt("red, green one two three four, go.", "Bob"),
    Prompt("blue", "Ann"),
    Prompt("left right", "Bob", messages=[{"role": "user", "content": "one two"}]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("omni"))


@pytest.fixture(scope="module")
def omni(folder):
    return load_omni(ModelConfig(path=str(folder)), parts=("thinker", "talker"))


class Captured(Exception):
    pass


def upstream(folder, omni, prompts, speaker):
    """The arguments that upstream's ``generate`` gives its Talker for these prompts, as one left-padded batch."""
    from transformers import Qwen2_5OmniForConditionalGeneration

    model = Qwen2_5OmniForConditionalGeneration.from_pretrained(str(folder), dtype=torch.float32).eval()
    texts = [tokenizer().apply_chat_template(prompt_messages(omni.settings, p), tokenize=False,
                                             add_generation_prompt=True) for p in prompts]  # fmt: skip
    inputs = tokenizer()(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    seen = {}

    def capture(**kwargs):
        seen.update(kwargs)
        raise Captured

    model.talker.generate = capture
    with pytest.raises(Captured):
        model.generate(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, speaker=speaker,
            thinker_max_new_tokens=12, thinker_do_sample=False,
        )  # fmt: skip
    return seen, inputs.attention_mask.sum(-1)


@pytest.mark.parametrize("speaker", ["Ann", "Bob"])
@pytest.mark.parametrize("count", [1, 4])
def test_equal_to_what_upstream_feeds_its_talker(folder, omni, speaker, count):
    prompts = [Prompt(p.text, speaker, messages=p.messages) for p in PROMPTS[:count]]
    seen, lengths = upstream(folder, omni, prompts, speaker)
    ours = compute_conditioning(omni, prompts, GENERATE)
    for i, c in enumerate(ours):
        prefix = seen["inputs_embeds"][i, -(int(lengths[i]) + 2) :]
        assert c.prefix.shape == prefix.shape
        assert float((c.prefix - prefix).abs().max()) <= TOLERANCE
        stream = seen["thinker_reply_part"][i]
        assert float((c.reply_stream - stream[: len(c.reply_stream)]).abs().max()) <= TOLERANCE
        rest = stream[len(c.reply_stream) :]
        assert not len(rest) or float((rest - c.reply_stream[-1]).abs().max()) <= TOLERANCE
    assert count == 1 or len({len(c.reply_stream) for c in ours}) > 1  # rows ended at different times


def test_teacher_forced_equals_generated(omni):
    """The Thinker's own answer, given as the reply, conditions the Talker in the same way."""
    generated = compute_conditioning(omni, PROMPTS, GENERATE)
    forced_prompts = [
        Prompt(c.reply_text, p.speaker, messages=prompt_messages(omni.settings, p))
        for p, c in zip(PROMPTS, generated, strict=True)
    ]
    forced = compute_conditioning(omni, forced_prompts, ConditioningConfig(batch_size=3))
    for a, b in zip(generated, forced, strict=True):
        assert a.prefix.shape == b.prefix.shape and a.reply_stream.shape == b.reply_stream.shape
        assert float((a.prefix - b.prefix).abs().max()) <= TOLERANCE
        assert float((a.reply_stream - b.reply_stream).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("cfg", [ConditioningConfig(), GENERATE], ids=["teacher_forced", "generate"])
def test_batching_changes_nothing(omni, cfg):
    together = compute_conditioning(omni, PROMPTS, cfg)
    for one, a in zip(PROMPTS, together, strict=True):
        (b,) = compute_conditioning(omni, [one], cfg)
        assert a.reply_text == b.reply_text
        assert torch.allclose(a.prefix, b.prefix, atol=TOLERANCE)
        assert torch.allclose(a.reply_stream, b.reply_stream, atol=TOLERANCE)


def test_shape_of_a_one_word_reply(omni):
    (c,) = compute_conditioning(omni, [Prompt("blue", "Ann", messages=[{"role": "user", "content": "go"}])])
    embed = omni.thinker.get_input_embeddings().weight
    # the system prompt; <|im_start|> user go <|im_end|> <|im_start|> assistant; bos, first token
    assert c.prefix.shape[0] == 3 + len(SPEECH_SYSTEM_PROMPT.replace(",", " , ").replace(".", " . ").split()) + 6 + 2
    assert torch.equal(c.prefix[-2], embed[100])
    assert torch.equal(c.reply_stream, embed[[121, 122]])  # nothing left but text-eos, text-pad


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("  ", "Ann"), "empty"),
        (Prompt("...", "Ann"), "nothing to speak"),
        (Prompt(7, "Ann"), "not a string"),  # type: ignore[arg-type]
        (Prompt("go\x00left", "Ann"), "control characters"),
        (Prompt("go elephant", "Ann"), "vocabulary does not cover"),
        (Prompt("go <|im_end|> left", "Ann"), "control token"),
        (Prompt("go", "Cid"), "unknown speaker 'Cid'[\\s\\S]*Ann, Bob"),
        (Prompt("go", "Ann", messages=[{"role": "user", "content": [{"type": "audio"}]}]), "Not a part"),
    ],
)
def test_prompts_that_cannot_be_spoken(omni, prompt, message):
    with pytest.raises(PromptError, match=message) as raised:
        compute_conditioning(omni, [PROMPTS[0], prompt])
    assert prompt.prompt_id in str(raised.value)
    errors = {}
    good = compute_conditioning(omni, [PROMPTS[0], prompt, PROMPTS[1]], errors=errors)
    assert [c.prompt_id for c in good] == [PROMPTS[0].prompt_id, PROMPTS[1].prompt_id]
    assert list(errors) == [prompt.prompt_id]


def test_key_depends_on_content_only(omni):
    cfg = ConditioningConfig()
    base = conditioning_key(omni, PROMPTS[0], cfg)
    renamed = Prompt(PROMPTS[0].text, "Ann", prompt_id="other")
    assert base == conditioning_key(omni, renamed, ConditioningConfig(batch_size=1))
    others = [
        conditioning_key(omni, Prompt("stop go left", "Ann"), cfg),
        conditioning_key(omni, Prompt(PROMPTS[0].text, "Bob"), cfg),
        conditioning_key(omni, Prompt(PROMPTS[0].text, "Ann", messages=[]), cfg),
        conditioning_key(omni, PROMPTS[0], GENERATE),
    ]
    assert len({base, *others}) == 5


def count_forwards(omni, monkeypatch):
    import talker_rl.speech.qwen2_5_omni.conditioning as module

    calls = []
    original = module._hidden_plus_embedding
    monkeypatch.setattr(module, "_hidden_plus_embedding", lambda t, s: calls.append(len(s)) or original(t, s))
    return calls


def test_cache_computes_only_what_is_missing(omni, tmp_path, monkeypatch):
    calls = count_forwards(omni, monkeypatch)
    cfg = ConditioningConfig()
    first = ensure_conditioning(OmniGenerator(omni), PROMPTS[:3], cfg, tmp_path, shard_size=2)
    assert sum(calls) == 3
    again = ensure_conditioning(OmniGenerator(omni), PROMPTS, cfg, tmp_path, shard_size=2)
    assert sum(calls) == 4 and list(again) == [p.prompt_id for p in PROMPTS]
    for prompt_id, c in first.items():
        stored = again[prompt_id]
        assert torch.equal(c.prefix, stored.prefix) and torch.equal(c.reply_stream, stored.reply_stream)
        assert (c.speaker, c.reply_text) == (stored.speaker, stored.reply_text)
    ensure_conditioning(OmniGenerator(omni), PROMPTS, GENERATE, tmp_path)
    assert sum(calls) == 8  # other content
    assert set(sealed(tmp_path)) == {shard.name for shard in tmp_path.glob("*.safetensors")}
    assert not list(tmp_path.glob("*.tmp*"))


def test_truncated_shard_is_recomputed_or_refused(omni, tmp_path, monkeypatch):
    cfg = ConditioningConfig()
    expected = ensure_conditioning(OmniGenerator(omni), PROMPTS, cfg, tmp_path, shard_size=2)
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    damaged = shard.read_bytes()[:-10]
    shard.unlink()  # `expected` lies in this file
    shard.write_bytes(damaged)
    with pytest.raises(DataError, match="may be truncated") as raised:
        ConditioningCache(tmp_path, strict=True)
    assert shard.name in str(raised.value)
    calls = count_forwards(omni, monkeypatch)
    repaired = ensure_conditioning(OmniGenerator(omni), PROMPTS, cfg, tmp_path, shard_size=2)
    assert sum(calls) == 2
    for prompt_id, c in expected.items():
        assert torch.allclose(c.prefix, repaired[prompt_id].prefix, atol=TOLERANCE)
    assert len(ConditioningCache(tmp_path, strict=True)) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_tensors_stay_on_disk_and_are_what_was_stored(tmp_path, dtype):
    made = [replace(c, prefix=c.prefix.to(dtype), reply_stream=c.reply_stream.to(dtype))
            for c in random_conditionings([(300, 9), (5, 1)])]
    ConditioningCache(tmp_path).put([(c, f"key {c.prompt_id}") for c in made])
    cache = ConditioningCache(tmp_path, strict=True)
    found = cache.load()
    for c in made:
        assert torch.equal(found[c.prompt_id].prefix, c.prefix)
        assert torch.equal(found[c.prompt_id].reply_stream, c.reply_stream)
    [shard] = tmp_path.glob("*.safetensors")
    assert cache.size == shard.stat().st_size
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(shard))]
    assert mapped, "the tensors were copied"
    found["p0"].prefix.zero_()  # stays in this process
    assert torch.equal(cache.load()["p0"].prefix, made[0].prefix)
    unseal(tmp_path)  # as of a run from before there were lists
    cut = shard.read_bytes()[:-100]
    shard.unlink()
    shard.write_bytes(cut)
    with pytest.raises(DataError, match="shard cannot be read .*not fully covered"):
        cache.load()


def test_reading_without_the_model(omni, tmp_path):
    ensure_conditioning(OmniGenerator(omni), PROMPTS[:2], ConditioningConfig(), tmp_path)
    cache = ConditioningCache(tmp_path, strict=True)
    assert set(cache.load()) == {p.prompt_id for p in PROMPTS[:2]}
    with pytest.raises(DataError, match="no conditioning"):
        cache.load(["unheard-of"])


def test_bad_prompts_are_skipped_and_counted(omni, tmp_path):
    errors = {}
    prompts = [Prompt("", "Ann"), *PROMPTS]
    out = ensure_conditioning(OmniGenerator(omni), prompts, ConditioningConfig(), tmp_path, errors=errors)
    assert len(out) == 4 and len(errors) == 1


def test_unknown_speaker_of_the_model(omni):
    with pytest.raises(CheckpointError, match="Ann, Bob"):
        omni.speaker("Cid")


@pytest.mark.parametrize("name", ["prefix", "reply_stream"])
def test_what_is_not_finite_is_not_stored(omni, tmp_path, monkeypatch, name):
    import talker_rl.speech.qwen2_5_omni.conditioning as module

    original, bad = module._hidden_plus_embedding, PROMPTS[1]

    def hidden(omni, sequences):
        sums = original(omni, sequences)
        longest = max(range(len(sums)), key=lambda i: len(sums[i]))
        sums[longest][0 if name == "prefix" else -1] = torch.nan  # PROMPTS[1] is the longest
        return sums

    monkeypatch.setattr(module, "_hidden_plus_embedding", hidden)
    with pytest.raises(PromptError, match=f"{name} is not finite") as raised:
        compute_conditioning(omni, PROMPTS)
    assert bad.prompt_id in str(raised.value) and "model.dtype" in str(raised.value)
    errors = {}
    made = ensure_conditioning(OmniGenerator(omni), PROMPTS, ConditioningConfig(), tmp_path, errors=errors)
    assert list(errors) == [bad.prompt_id] and len(made) == 3
    assert all(c.prefix.isfinite().all() and c.reply_stream.isfinite().all() for c in made.values())


def test_a_full_disk_is_told_as_safetensors_tells_it(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(StageError, match="disk is full"):
        ConditioningCache(tmp_path).put([(c, "key") for c in random_conditionings([(3, 2)])])
