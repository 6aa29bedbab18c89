"""Whisper behind the protocol, on a tiny one with random weights: pipeline, word times and guards are the real ones."""

import json

import numpy as np
import pytest
import torch

from talker_rl.base.errors import CheckpointError, ConfigError, DataError
from talker_rl.base.text.tokens import tokens_of
from talker_rl.reward.asr.base import Failure, GuardedRecognizer, Transcript, is_transient
from talker_rl.reward.asr.whisper_recognizer import WhisperRecognizer, parse, plausible
from talker_rl.reward.recognizer_config import RecognizerConfig

RATE = 16_000


def write_model(folder, alignment_heads=True, **generation_settings):
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

    folder.mkdir(parents=True)
    vocabulary = {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>", "<|translate|>", "<|transcribe|>"]
    special += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    tokenizer = WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens([f"<|{k * 0.02:.2f}|>" for k in range(1501)], special_tokens=True)
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in special}
    torch.manual_seed(1)
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_target_positions=64,
        pad_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"],
    )
    model = WhisperForConditionalGeneration(config)
    generation = model.generation_config
    settings: dict = dict(
        _from_model_config=False,  # else it is made anew from config.json when the folder is opened
        no_timestamps_token_id=ids["<|notimestamps|>"],
        is_multilingual=True,
        lang_to_id={"<|en|>": ids["<|en|>"], "<|zh|>": ids["<|zh|>"]},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        max_length=16,
        max_initial_timestamp_index=50,
        return_timestamps=False,
        suppress_tokens=[i for c, i in vocabulary.items() if not ("a" <= c <= "z" or c == "\u0120")]
        + list(ids.values()),  # it babbles letters until max_length
        begin_suppress_tokens=[ids["<|endoftext|>"]],
    )
    if alignment_heads:
        settings["alignment_heads"] = [[0, 0], [1, 1]]
    else:
        settings["suppress_tokens"] += range(ids["<|notimestamps|>"] + 1, len(tokenizer))
    for name, value in (settings | generation_settings).items():  # GenerationConfig.update ignores unknown names
        setattr(generation, name, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    return folder


def noise(seed: int, seconds: float = 1.0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def test_parse():
    chunks = [{"text": " River", "timestamp": (0.1, 0.4)}, {"text": " 苹果,", "timestamp": (0.4, None)}]
    result = parse({"text": " River 苹果,", "chunks": chunks}, 1.0)
    assert result.tokens == ["river", "苹", "果"]
    assert np.allclose(result.spans, [(0.1, 0.4), (0.4, 0.7), (0.7, 1.0)])
    assert parse({"text": "", "chunks": []}, 1.0) == Transcript([], [])
    lost = parse({"text": "a", "chunks": [{"text": "a", "timestamp": (None, 0.2)}]}, 1.0)
    assert lost.tokens == ["a"] and "no start time" in lost.spans_fault
    assert "alignment heads" in parse({"text": "river"}, 1.0, times=False).spans_fault


def test_tokens_are_those_of_the_text_however_whisper_cuts_it():
    """Its pieces end at marks: o'clock, 3.5 and 1,000 are one token each in a text, and so in what is heard."""
    pieces = [(" at", 0.0, 0.2), (" ten", 0.2, 0.4), (" o", 0.4, 0.5), ("'", 0.5, 0.5), ("clock", 0.5, 0.8),
              (" 1", 0.8, 1.0), (",", 1.0, 1.0), ("000", 1.0, 1.3), (",", 1.3, 1.3), (" yes.", 1.4, 1.6)]
    chunks = [{"text": text, "timestamp": (start, end)} for text, start, end in pieces]
    text = "".join(text for text, _, _ in pieces)
    heard = parse({"text": text, "chunks": chunks}, 2.0)
    assert heard.tokens == tokens_of("At ten o'clock 1,000, yes.") and heard.spans_fault is None
    assert heard.spans[2] == pytest.approx((0.4, 0.8)) and heard.spans[-1] == pytest.approx((1.4, 1.6))
    assert len(heard.spans) == len(heard.tokens)
    other = parse({"text": "at noon", "chunks": chunks}, 2.0)
    assert other.tokens == ["at", "noon"] and other.spans == [] and "letters" in other.spans_fault


def test_chinese_is_timed_by_characters(tmp_path):
    """What the pipeline makes of a sentence without spaces: a piece for each character and not one for all."""
    recognizer = WhisperRecognizer(str(write_model(tmp_path / "w")))
    tokenizer = recognizer._pipeline.tokenizer
    ids = tokenizer("今天很好，我们去。", add_special_tokens=False)["input_ids"]
    output = {"tokens": np.array([ids]), "token_timestamps": np.array([[0.1 * k for k in range(len(ids))]]),
              "stride": (3.0, 0.0, 0.0)}
    text, more = tokenizer._decode_asr([output], return_timestamps="word", return_language=None, time_precision=0.02)
    heard = parse({"text": text, **more}, 3.0)
    assert heard.tokens == list("今天很好我们去") and heard.spans_fault is None
    starts = [start for start, _ in heard.spans]
    assert starts == sorted(set(starts)) and len(starts) == 7


def test_a_transcript_that_no_voice_could_speak_is_no_error_rate():
    loop = Transcript(["you"] * 120, [])
    assert plausible(loop, 2.0).code == "hallucination" and not plausible(loop, 2.0).retryable
    assert plausible(loop, 6.0) is loop  # a Talker that repeats itself is heard
    assert plausible(Transcript(["a"] * 20, []), 0.1).tokens


def test_a_tiny_whisper_transcribes_with_word_times(tmp_path):
    recognizer = WhisperRecognizer(str(write_model(tmp_path / "w")))
    first, silent, last = recognizer.transcribe([noise(0), np.zeros(RATE, np.float32), noise(1, 0.7)], "en")
    assert silent.code == "silent"
    for result in (first, last):
        assert isinstance(result, Transcript) and result.tokens and result.spans_fault is None
        assert len(result.spans) == len(result.tokens)
    assert recognizer.transcribe([noise(1, 0.7)], "en") == [last]
    assert recognizer.transcribe([noise(0)], "mixed")[0].tokens
    assert recognizer.fingerprint() == WhisperRecognizer(str(tmp_path / "w")).fingerprint()


def test_without_alignment_heads_there_are_no_times(tmp_path):
    [result] = WhisperRecognizer(str(write_model(tmp_path / "w", alignment_heads=False))).transcribe([noise(0)], "en")
    assert isinstance(result, Transcript) and result.tokens and result.spans == []
    assert "alignment heads" in result.spans_fault


def test_a_hub_name_is_not_looked_up(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        WhisperRecognizer("openai/whisper-large-v3")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="preprocessor_config.json"):
        WhisperRecognizer(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot open"):
        WhisperRecognizer(str(tmp_path))


@pytest.mark.parametrize("alignment_heads", [True, False])
def test_more_than_whisper_hears_at_once(alignment_heads, tmp_path):
    """35 s, beside what is short: a transcript each, the short ones' as they are alone."""
    folder = write_model(tmp_path / "w", alignment_heads=alignment_heads)
    recognizer = WhisperRecognizer(str(folder), config=RecognizerConfig(type="whisper", path=str(folder), batch_size=3))
    first, long, last = recognizer.transcribe([noise(0), noise(2, 35.0), noise(1, 29.9)], "en")
    assert all(isinstance(result, Transcript) for result in (first, long, last))
    assert [first] == recognizer.transcribe([noise(0)], "en")
    if not alignment_heads:
        assert long.spans == [] and "alignment heads" in (long.spans_fault or "alignment heads")


@pytest.mark.parametrize("alignment_heads", [True, False])
def test_a_whisper_without_time_marks_hears_thirty_seconds(alignment_heads, tmp_path):
    folder = write_model(tmp_path / "w", alignment_heads=alignment_heads)
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in settings.items() if k != "no_timestamps_token_id"}))
    recognizer = WhisperRecognizer(str(folder))
    short, long = recognizer.transcribe([noise(0, 2.0), noise(2, 31.0)], "en")
    assert isinstance(short, Transcript) and short.spans == []
    assert isinstance(long, Failure) and (long.code, long.retryable) == ("too_long", False)
    assert "31.0 s" in long.message and "30 s at most" in long.message


def test_an_english_whisper_is_not_asked_for_chinese(tmp_path):
    recognizer = WhisperRecognizer(str(write_model(tmp_path / "w", is_multilingual=False)))
    assert isinstance(recognizer.transcribe([noise(0)], "en")[0], Transcript)
    for lang in ("zh", "mixed"):
        with pytest.raises(ConfigError, match="hears no zh.*English only") as raised:
            recognizer.transcribe([noise(0)], lang)
        assert f"reward.recognizer.{lang}.path" in raised.value.fix


def test_a_multilingual_whisper_that_has_lost_a_language(tmp_path):
    folder = write_model(tmp_path / "w", lang_to_id={"<|zh|>": 259})
    with pytest.raises(ConfigError, match="hears no en"):
        WhisperRecognizer(str(folder)).transcribe([noise(0)], "en")


@pytest.mark.parametrize("missing", ["is_multilingual", "lang_to_id", "task_to_id", "the file"])
def test_a_whisper_that_does_not_say_what_it_hears(missing, tmp_path):
    folder = write_model(tmp_path / "w")
    file = folder / "generation_config.json"
    if missing == "the file":
        file.unlink()
    else:
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != missing}))
    with pytest.raises(CheckpointError, match="does not say which languages") as raised:
        WhisperRecognizer(str(folder))
    assert "copy generation_config.json" in raised.value.fix


@pytest.mark.parametrize(("error", "again"), [
    (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
    (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB; expected size"), True), (MemoryError(), True),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True), (OSError("Input/output error"), True),
    (ConnectionResetError(), True), (RuntimeError("poisoned"), True), (TimeoutError(), True),
    (ValueError("You have passed more than 3000 mel input features"), False), (IndexError("index out of range"), False),
    (KeyError("text"), False), (TypeError("NoneType"), False), (AssertionError(), False), (ZeroDivisionError(), False),
    (RuntimeError("The size of tensor a (448) must match the size of tensor b (500)"), False),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False), (RecursionError(), False),
    (RuntimeError("expected scalar type Float but found Half"), False), (NotImplementedError(), False),
    (ConfigError("no recognizer"), False), (DataError("no such code"), False),
])  # fmt: skip
def test_what_fails_again_is_not_asked_again(error, again):
    from talker_rl.reward.service.worker import one_by_one

    class Raising(GuardedRecognizer):
        def _recognize(self, audios, lang):
            raise error

    assert is_transient(error) == again

    def raising(items):
        raise error

    [failure] = one_by_one(raising, ["item"])
    assert failure.retryable == again
    if not isinstance(error, ConfigError | DataError):
        [failure] = Raising(RecognizerConfig(path="micro:reward")).transcribe([noise(0)], "en")
        assert (failure.code, failure.retryable) == ("recognizer_error", again)


def test_a_recognizer_that_answers_too_little_does_so_again():
    class Silent(GuardedRecognizer):
        def _recognize(self, audios, lang):
            return []

    [failure] = Silent(RecognizerConfig(path="micro:reward")).transcribe([noise(0)], "en")
    assert (failure.code, failure.retryable) == ("result_count", False)
