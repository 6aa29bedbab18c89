"""The shipped micro checkpoint: layout, tokenizer, names and shapes, and that plain transformers can use it."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest
import torch

from talker_rl.micro import checkpoint_dir
from talker_rl.micro.lexicon import VOICES, WORDS, random_sentence, sentence_text
from talker_rl.micro.prompts import SPLITS, prompt_sentences
from talker_rl.micro.thinker import prompt_text, read_aloud
from talker_rl.micro.tokenizer import SPEECH_SYSTEM_PROMPT, text_ids
from talker_rl.records.prompt import Prompt

OMNI = checkpoint_dir() / "omni"
PUBLISHED_FILES = (
    "config.json generation_config.json preprocessor_config.json chat_template.json added_tokens.json "
    "special_tokens_map.json tokenizer_config.json tokenizer.json vocab.json merges.txt spk_dict.pt model.safetensors"
).split()


@pytest.fixture(scope="module")
def model():
    from transformers import Qwen2_5OmniForConditionalGeneration

    return Qwen2_5OmniForConditionalGeneration.from_pretrained(OMNI, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(OMNI)


def test_files_of_the_published_layout() -> None:
    missing = [f for f in [*PUBLISHED_FILES, "words.txt", "talker_clean/model.safetensors"] if not (OMNI / f).is_file()]
    assert not missing
    assert (OMNI / "words.txt").read_text("utf-8").split() == list(WORDS)
    assert sum(not w.isascii() for w in WORDS) >= 8


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, talker_rl.micro as m; m.checkpoint_dir(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_environment_names_another_folder(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TALKER_RL_MICRO_DIR", str(tmp_path))
    assert checkpoint_dir() == tmp_path


def test_every_word_is_one_token(tokenizer) -> None:
    for word in WORDS:
        assert len(tokenizer(word).input_ids) == 1, word
        assert len(tokenizer(" " + word).input_ids) == 1, word
    rng = random.Random(5)
    for _ in range(200):
        clauses = random_sentence(rng)
        text = sentence_text(clauses)
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text
        assert len(ids) == sum(len(c.words) + 1 for c in clauses), text


def test_added_tokens_and_ids_agree_with_the_config(tokenizer) -> None:
    ids = text_ids()
    config = json.loads((OMNI / "config.json").read_text())
    thinker, talker = config["thinker_config"], config["talker_config"]
    assert {t: tokenizer.convert_tokens_to_ids(t) for t in ids.added} == ids.added
    assert json.loads((OMNI / "added_tokens.json").read_text()) == ids.added
    assert tokenizer("user").input_ids == [thinker["user_token_id"]]
    assert tokenizer.eos_token_id == thinker["eos_token_id"] == ids.added["<|im_end|>"]
    assert thinker["vision_start_token_id"] == talker["vision_start_token_id"] == ids.added["<|vision_bos|>"]
    assert thinker["audio_token_index"] == talker["audio_token_index"] == ids.added["<|AUDIO|>"]
    assert [talker[f"tts_codec_{k}_token_id"] for k in ("pad", "start", "end", "mask")] == [8292, 8293, 8294, 8296]
    tts = {talker[f"tts_text_{k}_token_id"] for k in ("pad", "start", "end")} | set(ids.speakers.values())
    # As in the published checkpoint, rows of the embedding that the tokenizer does not know.
    assert len(tts) == 5 and min(tts) >= len(tokenizer) and max(tts) < thinker["text_config"]["vocab_size"]


def test_dit_layers_lie_within_its_depth() -> None:
    dit = json.loads((OMNI / "config.json").read_text())["token2wav_config"]["dit_config"]
    assert max(*dit["look_ahead_layers"], *dit["look_backward_layers"]) < dit["num_hidden_layers"]


def test_chat_template_is_the_speech_prompt(tokenizer) -> None:
    messages = [{"role": "system", "content": SPEECH_SYSTEM_PROMPT}, {"role": "user", "content": "river garden."}]
    want = prompt_text("river garden.", SPEECH_SYSTEM_PROMPT)
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == want
    parts = [{"role": "user", "content": [{"type": "text", "text": "river garden."}]}]
    want = prompt_text("river garden.", None)
    assert tokenizer.apply_chat_template(parts, add_generation_prompt=True, tokenize=False) == want


def test_feature_extractor_and_image_processor_load() -> None:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor.from_pretrained(OMNI)
    assert (extractor.sampling_rate, extractor.feature_size, extractor.hop_length) == (16_000, 128, 160)
    assert json.loads((OMNI / "preprocessor_config.json").read_text())["patch_size"] == 14


def test_every_weight_is_loaded_and_none_is_left_over(model) -> None:
    from safetensors.torch import load_file

    from talker_rl.micro.assemble import stored_name

    stored = load_file(OMNI / "model.safetensors")
    loaded = {stored_name(k): v for k, v in model.state_dict().items()}
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[k].float(), loaded[k]) for k in stored)
    assert {v.dtype for k, v in stored.items() if not k.startswith("token2wav.")} == {torch.bfloat16}
    assert {v.dtype for k, v in stored.items() if k.startswith("token2wav.")} == {torch.float32}
    clean = load_file(OMNI / "talker_clean" / "model.safetensors")
    assert {k: v.shape for k, v in clean.items()} == {k: v.shape for k, v in model.talker.state_dict().items()}
    assert not torch.equal(clean["codec_head.weight"], stored["talker.codec_head.weight"])


def test_speakers(model) -> None:
    assert set(model.speaker_map) == set(VOICES)
    for name, entry in model.speaker_map.items():
        assert entry["bos_token"] == text_ids().speakers[name]
        assert entry["cond"].shape == (1, 192) and entry["cond"].dtype == torch.float32
        assert entry["ref_mel"].ndim == 3 and entry["ref_mel"].shape[::2] == (1, 80)


def test_the_thinker_reads_aloud(model, tokenizer) -> None:
    rng = random.Random(77)
    sentences = [sentence_text(random_sentence(rng)) for _ in range(24)]
    assert read_aloud(model.thinker, tokenizer, sentences) == sentences
    assert read_aloud(model.thinker, tokenizer, sentences[:12], system=None) == sentences[:12]


@pytest.mark.parametrize("speaker", sorted(VOICES))
def test_plain_generate_speaks(model, tokenizer, speaker) -> None:
    text = "garden window, music bottle."
    batch = tokenizer(prompt_text(text, SPEECH_SYSTEM_PROMPT), return_tensors="pt")
    torch.manual_seed(1)
    ids, wave = model.generate(**batch, speaker=speaker, token2wav_num_steps=3, talker_max_new_tokens=300)
    assert tokenizer.decode(ids[0, batch.input_ids.shape[1] :], skip_special_tokens=True) == text
    assert wave.ndim == 1 and torch.isfinite(wave).all() and len(wave) % 480 == 0
    assert 0.8 < len(wave) / 24_000 < 4.0  # ends by itself: 300 codes would be 6 s
    assert wave.square().mean().sqrt() > 0.01


def test_shipped_prompts_are_those_of_the_seed() -> None:
    for split, count in SPLITS.items():
        lines = (checkpoint_dir() / "prompts" / f"{split}.jsonl").read_text("utf-8").splitlines()
        prompts = [Prompt(**json.loads(line)) for line in lines]
        assert len({p.prompt_id for p in prompts}) == count
        assert [p.text for p in prompts] == [sentence_text(list(c)) for c in prompt_sentences()[split]]
        assert all(p.reference_seconds and 0.5 < p.reference_seconds < 12 for p in prompts)
        assert {p.speaker for p in prompts} == set(VOICES)
