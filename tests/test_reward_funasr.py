"""FunASR behind its guards, on a small BiCifParaformer with random weights (real classes, real folder layout)."""

import json
import logging
import random

import numpy as np
import pytest
import torch
import yaml

from talker_rl.base.errors import CheckpointError, ConfigError
from talker_rl.reward.asr.base import Failure, Transcript
from talker_rl.reward.config import RecognizerConfig

pytest.importorskip("funasr")

from talker_rl.reward.asr.funasr_loading import check_weights  # noqa: E402
from talker_rl.reward.asr.funasr_recognizer import FunASRRecognizer, parse  # noqa: E402

TOKENS = ["<blank>", "<s>", "</s>", "<unk>", "river", "garden", "winter", "苹", "果", "lake", "moon"]
UNK, RIVER = 3, 4
RATE = 16_000


def write_model(folder, lfr=(7, 6), upsample=3):
    """A recognizer folder with random weights from a fixed seed."""
    import funasr  # noqa: F401
    from funasr.register import tables

    width = 32
    config = {
        "model": "BiCifParaformer",
        "model_conf": {"ctc_weight": 0.0, "predictor_weight": 1.0, "predictor_bias": 1, "sampling_ratio": 0.5},
        "encoder": "SANMEncoder",
        "encoder_conf": {
            "output_size": width,
            "attention_heads": 2,
            "linear_units": 64,
            "num_blocks": 2,
            "input_layer": "pe",
            "kernel_size": 5,
            "sanm_shfit": 0,
            "selfattention_layer_type": "sanm",
        },
        "decoder": "ParaformerSANMDecoder",
        "decoder_conf": {
            "attention_heads": 2,
            "linear_units": 64,
            "num_blocks": 1,
            "att_layer_num": 1,
            "kernel_size": 5,
            "sanm_shfit": 0,
        },
        "predictor": "CifPredictorV3",
        "predictor_conf": {
            "idim": width,
            "threshold": 1.0,
            "l_order": 1,
            "r_order": 1,
            "tail_threshold": 0.45,
            "upsample_times": upsample,
            "use_cif1_cnn": False,
            "upsample_type": "cnn",
        },
        "frontend": "WavFrontend",
        "frontend_conf": {"fs": RATE, "n_mels": 80, "lfr_m": lfr[0], "lfr_n": lfr[1], "dither": 1.0},
        "tokenizer": "CharTokenizer",
        "tokenizer_conf": {"unk_symbol": "<unk>", "split_with_space": True},
    }
    rooms = {k: v for k, v in config.items() if k.startswith(("encoder", "decoder", "predictor"))}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = tables.model_classes["BiCifParaformer"](
            input_size=80 * lfr[0], vocab_size=len(TOKENS), **config["model_conf"], **rooms
        )
        with torch.no_grad():
            model.decoder.output_layer.bias[:4] -= 20.0
            model.decoder.output_layer.weight.mul_(4.0)
            model.predictor.cif_output.bias -= 1.0
            model.predictor.cif_output2.bias -= 2.5
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "tokens.json").write_text(json.dumps(TOKENS))
    torch.save(model.state_dict(), folder / "model.pt")
    return folder


def noise(seed: int, seconds: float = 1.5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("asr") / "model")


@pytest.fixture(scope="module")
def recognizer(folder):
    return FunASRRecognizer(str(folder))


def test_loading_leaves_the_process_as_it_was(folder, capfd):
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    root = logging.getLogger()
    before = torch.get_num_threads(), list(root.handlers), root.level
    FunASRRecognizer(str(folder), config=RecognizerConfig(path=str(folder), threads=before[0] + 1)).transcribe(
        [noise(0)], "en"
    )
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert (torch.get_num_threads(), root.handlers, root.level) == before
    assert capfd.readouterr().out == ""


def test_transcripts_have_a_time_for_each_token_and_repeat_exactly(recognizer):
    """The folder's config asks for dither, which would make scores random."""
    assert recognizer._runtime["frontend"].dither == 0.0
    sounds = [noise(k, 0.8 + 0.3 * k) for k in range(4)]
    first = recognizer.transcribe(sounds, "en")
    assert all(isinstance(r, Transcript) and r.tokens and r.spans_fault is None for r in first)
    for result, sound in zip(first, sounds, strict=True):
        assert len(result.spans) == len(result.tokens)
        starts = [s for s, _ in result.spans]
        assert starts == sorted(starts) and all(0 <= s <= e <= len(sound) / RATE + 0.25 for s, e in result.spans)
    assert recognizer.transcribe(sounds, "en") == first
    assert recognizer.transcribe(sounds[::-1], "en")[::-1] == first
    assert [recognizer.transcribe([s], "en")[0] for s in sounds] == first


def test_dangerous_audio_never_reaches_the_model(recognizer):
    """FunASR segfaults on the first, exits the process on the second and invents words on the fourth."""
    bad = [
        np.zeros(0, np.float32),
        np.ones(1, np.float32),
        np.full(RATE, np.nan, np.float32),
        np.zeros(RATE, np.float32),
        np.zeros((1, RATE), np.float32),
    ]
    results = recognizer.transcribe([noise(1), *bad, noise(2)], "en")
    assert [r.code for r in results[1:-1]] == ["too_short", "too_short", "non_finite", "silent", "bad_audio"]
    assert isinstance(results[0], Transcript) and isinstance(results[-1], Transcript)
    assert results[0] == recognizer.transcribe([noise(1)], "en")[0]
    assert isinstance(recognizer.transcribe([noise(3, 0.1)], "en")[0], Transcript)


def test_unknown_tokens_keep_text_and_times_together(folder, tmp_path, recognizer):
    """Left alone, FunASR drops <unk> from the text only, and every later word gets the time of an earlier one."""
    sounds = [noise(k, 2.0) for k in range(3)]
    known = recognizer.transcribe(sounds, "en")
    assert sum("river" in r.tokens for r in known) == 3
    swapped = write_model(tmp_path / "unk")
    state = torch.load(swapped / "model.pt", weights_only=True)
    for name in ("decoder.output_layer.weight", "decoder.output_layer.bias"):
        state[name][[UNK, RIVER]] = state[name][[RIVER, UNK]]
    torch.save(state, swapped / "model.pt")
    for result, plain in zip(FunASRRecognizer(str(swapped)).transcribe(sounds, "en"), known, strict=True):
        assert result.tokens == ["<unk>" if t == "river" else t for t in plain.tokens]
        assert result.spans == plain.spans and result.spans_fault is None


def test_no_token_at_all_is_an_empty_transcript_and_not_a_lost_result(tmp_path):
    folder = write_model(tmp_path / "mute")
    state = torch.load(folder / "model.pt", weights_only=True)
    state["predictor.cif_output.bias"] -= 50.0
    torch.save(state, folder / "model.pt")
    for size in (1, 3):
        recognizer = FunASRRecognizer(str(folder), config=RecognizerConfig(path=str(folder), batch_size=size))
        assert recognizer.transcribe([noise(k) for k in range(3)], "en") == [Transcript([], [])] * 3


def test_times_follow_the_frontends_stride(tmp_path):
    """FunASR takes 20 ms an upsampled frame for granted; with a stride of 30 ms times 1 it is 30."""
    recognizer = FunASRRecognizer(str(write_model(tmp_path / "stride", lfr=(7, 6), upsample=2)))
    assert recognizer._time_scale == pytest.approx(1.5)
    micro_like = FunASRRecognizer(str(write_model(tmp_path / "micro", lfr=(5, 4), upsample=2)))
    assert micro_like._time_scale == pytest.approx(1.0)


def test_parse():
    times = [[-30, 210], [210, 450], [450, 690]]
    assert parse({"text": "river 苹 果", "timestamp": times}) == Transcript(
        ["river", "苹", "果"], [(0.0, 0.21), (0.21, 0.45), (0.45, 0.69)]
    )
    scaled = parse({"text": "River 苹果", "timestamp": times[1:]}, 2.0)
    assert np.allclose(scaled.spans, [(0.42, 0.9), (0.9, 1.14), (1.14, 1.38)])
    lost = parse({"text": "river garden", "timestamp": times})
    assert lost.tokens == ["river", "garden"] and lost.spans == [] and "3 times for 2 words" in lost.spans_fault
    assert "no times" in parse({"text": "river"}).spans_fault
    assert parse({"text": ""}) == Transcript([], []) == parse({"text": "", "timestamp": []})


def test_incomplete_checkpoints_are_refused(folder, tmp_path):
    state = torch.load(folder / "model.pt", weights_only=True)
    broken = write_model(tmp_path / "broken")
    torch.save({k: v for k, v in state.items() if "decoder.output_layer" not in k}, broken / "model.pt")
    with pytest.raises(CheckpointError, match="lacks 2 of"):
        FunASRRecognizer(str(broken))
    wide = {k: (v.repeat(2) if k == "decoder.output_layer.bias" else v) for k, v in state.items()}
    with pytest.raises(CheckpointError, match="another shape"):
        check_weights({"model": {f"module.{k}": v for k, v in wide.items()}}, state, broken / "model.pt")
    (broken / "model.pt").write_bytes((folder / "model.pt").read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="cannot open"):
        FunASRRecognizer(str(broken))
    (broken / "tokens.json").unlink()
    with pytest.raises(CheckpointError):
        FunASRRecognizer(str(broken))


def test_a_models_own_code_is_never_run(folder, tmp_path):
    evil = write_model(tmp_path / "evil")
    config = yaml.safe_load((evil / "config.yaml").read_text())
    marker = tmp_path / "ran"
    (evil / "payload.py").write_text(f"open({str(marker)!r}, 'w')")
    (evil / "config.yaml").write_text(
        yaml.safe_dump(config | {"trust_remote_code": True, "remote_code": str(evil / "payload.py")})
    )
    FunASRRecognizer(str(evil))
    assert not marker.exists()


def test_fingerprint_follows_the_files(folder, tmp_path, recognizer):
    other = write_model(tmp_path / "other", lfr=(5, 4))
    assert FunASRRecognizer(str(other)).fingerprint() != recognizer.fingerprint()
    assert FunASRRecognizer(str(folder)).fingerprint() == recognizer.fingerprint()


def test_a_missing_device_is_an_error():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises((ConfigError, CheckpointError)):
        FunASRRecognizer("micro:reward", device="cuda:0")


def test_an_item_that_raises_inside_funasr_is_a_retryable_failure(folder, monkeypatch):
    recognizer = FunASRRecognizer(str(folder), config=RecognizerConfig(path=str(folder), batch_size=3))
    original = recognizer._model.model.encode

    def poisoned(speech, lengths, **kwargs):
        if int(lengths.max()) > 40:
            raise RuntimeError("out of memory")
        return original(speech, lengths, **kwargs)

    monkeypatch.setattr(recognizer._model.model, "encode", poisoned)
    results = recognizer.transcribe([noise(0), noise(1, 4.0), noise(2)], "en")
    assert isinstance(results[1], Failure) and results[1].retryable and "out of memory" in results[1].message
    assert isinstance(results[0], Transcript) and isinstance(results[2], Transcript)
