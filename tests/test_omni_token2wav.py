"""token2wav: the numbers of transformers' own module, alone and in a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omni_factory import speakers, tiny_omni

from talker_rl.errors import DataError
from talker_rl.omni import token2wav as t2w
from talker_rl.omni.config import Token2WavConfig
from talker_rl.omni.mel import log_mel
from talker_rl.omni.speaker import speaker_similarity

CODES = [[5, 8193, 17, 4, 900, 3, 77, 8, 1, 20, 44, 3, 2], [9, 9, 12], [7, 1, 300, 4, 4, 2, 80, 5, 5, 5, 6, 1, 8190]]
WHO = ["Ann", "Bob", "Bob"]


@pytest.fixture(scope="module")
def module():
    return tiny_omni().token2wav


def upstream(module, codes, speaker, seed, monkeypatch, **options):
    """transformers' forward with its global torch.randn replaced by this utterance's noise."""
    noise = t2w.utterance_noise(seed, 2 * len(codes), 80)[None]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda size, **_: noise.reshape(size).clone())
        with torch.no_grad():
            return module(
                torch.tensor([codes]), conditioning=speaker["cond"], reference_mel=speaker["ref_mel"], **options
            ).numpy()


@pytest.mark.parametrize(
    "options",
    [{}, {"num_steps": 3, "guidance_scale": 0.0}, {"num_steps": 4, "guidance_scale": 1.5, "sway_coefficient": None}],
    ids=["upstream settings", "no guidance", "no sway"],
)
def test_equals_transformers_alone_and_in_a_batch(module, monkeypatch, options):
    people = speakers()
    cfg = Token2WavConfig(**options)
    assert options or (cfg.num_steps, cfg.guidance_scale, cfg.sway_coefficient) == (10, 0.5, -1.0)
    chosen = [people[w] for w in WHO]
    seeds = [3, 4, 5]
    rows = list(zip(CODES, chosen, seeds, strict=True))
    expected = [upstream(module, *row, monkeypatch, **options) for row in rows]
    batched = t2w.decode(module, CODES, chosen, seeds, cfg)
    alone = [t2w.decode(module, [c], [s], [seed], cfg)[0] for c, s, seed in rows]
    for codes, a, b, e in zip(CODES, alone, batched, expected, strict=True):
        assert a.shape == b.shape == e.shape == (480 * len(codes),)
        assert a.dtype == np.float32 and np.abs(e).max() > 0.01
        assert np.abs(a - e).max() <= 1e-5
        assert np.abs(b - e).max() <= 1e-5


def test_noise_is_the_utterances_own(module):
    ann, cfg = speakers()["Ann"], Token2WavConfig(num_steps=3, guidance_scale=0)
    torch.manual_seed(0)
    first = t2w.decode(module, CODES[:1], [ann], [1], cfg)[0]
    torch.manual_seed(99)  # the global generator has no say
    again, other = t2w.decode(module, [CODES[0], CODES[0]], [ann, ann], [1, 2], cfg)
    assert np.abs(first - again).max() <= 1e-5
    assert np.abs(first - other).max() > 1e-3


def test_bad_codes_are_refused(module):
    ann = speakers()["Ann"]
    for codes, message in ([[]], "no codes"), ([[1, 8194]], "8194"), ([[-1]], "-1"), ([[1] * 16385], "16385"):
        with pytest.raises(DataError, match=message):
            t2w.decode(module, codes, [ann], [0])
    with pytest.raises(DataError, match="seeds"):
        t2w.decode(module, [[1]], [ann], [])


def test_decode_budget():
    assert t2w.decode_budget(Token2WavConfig()) == 72
    assert t2w.decode_budget(Token2WavConfig(num_steps=3, guidance_scale=0)) == 8


def test_log_mel_of_a_tone():
    """A sine of amplitude 0.5 at 1 kHz: its bin stands 50 dB above far ones; 100 frames a second."""
    tone = 0.5 * torch.sin(2 * torch.pi * 1000 * torch.arange(24000) / 24000)
    mel = log_mel(tone)
    assert mel.shape == (100, 80)
    middle = mel[50]
    assert 26 <= int(middle.argmax()) <= 27  # 15 of 45.2 mel up to 8 kHz, over 81 steps: edge 26.9
    assert middle.max() - middle[60] > 5.7
    louder = log_mel(tone * 2)[50].max() - middle.max()
    assert abs(float(louder) - np.log(2)) < 1e-3
    with pytest.raises(DataError):
        log_mel(torch.zeros(100))


def test_speaker_similarity(module):
    people = speakers()
    reference = people["Ann"]["ref_mel"][0]
    assert speaker_similarity(module, reference, people["Ann"]) == pytest.approx(1, abs=1e-5)
    assert speaker_similarity(module, reference, people["Bob"]) < 0.999
    audio = 0.1 * torch.randn(24000, generator=torch.Generator().manual_seed(0))
    assert -1 <= speaker_similarity(module, audio.numpy(), people["Ann"]) <= 1
