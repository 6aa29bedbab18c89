"""token2wav: the numbers of transformers' own module, alone and in a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omni_factory import speakers, tiny_omni
from pydantic import ValidationError

from talker_rl.base.errors import DataError
from talker_rl.speech.config import EVALUATIONS, Token2WavConfig
from talker_rl.speech.mel import log_mel
from talker_rl.speech.qwen2_5_omni import token2wav as t2w
from talker_rl.speech.qwen2_5_omni.flow import RULES, Schedule, integrate, network, sample_mels
from talker_rl.speech.qwen2_5_omni.speaker import speaker_similarity
from talker_rl.speech.qwen2_5_omni.streaming import stream
from talker_rl.speech.qwen2_5_omni.vocoder import batched, context_frames, vocode

CODES = [[5, 8193, 17, 4, 900, 3, 77, 8, 1, 20, 44, 3, 2], [9, 9, 12], [7, 1, 300, 4, 4, 2, 80, 5, 5, 5, 6, 1, 8190]]
WHO = ["Ann", "Bob", "Bob"]


def test_passes_are_counted_as_the_rules_have_them():
    assert EVALUATIONS == {name: len(rule.nodes) for name, rule in RULES.items()}


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


def test_every_length_of_the_last_block(module):
    """One evaluation against the DiT's own forward, from one frame in the last block (8 frames) to all; one batch."""
    dit, ann = module.code2wav_dit_model, speakers()["Ann"]
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randint(0, 8194, (n,), generator=generator) for n in (1, 2, 3, 4, 5, 9, 150)]
    noise = [torch.randn(2 * len(c), 80, generator=generator) for c in codes]
    cfg = Token2WavConfig(num_steps=2, solver="euler", sway_coefficient=None)
    net, schedule = network(dit, cfg)
    mels = sample_mels(net, schedule, [c.tolist() for c in codes], [ann] * len(codes), noise)
    for c, x, mel in zip(codes, noise, mels, strict=True):
        speaker = ann["cond"][:, None].expand(1, len(x), -1)
        with torch.no_grad():
            out = dit(hidden_states=x[None], condition_vector=ann["ref_mel"], speaker_embedding=speaker,
                      quantized_code=c[None], time_step=torch.tensor(0.0))
        plain, null = out
        assert float((mel - (x + plain + 0.5 * (plain - null))).abs().max()) <= 1e-5


@pytest.mark.parametrize(("solver", "order"), [(None, 4), ("rk4", 4), ("midpoint", 2), ("euler", 1)])
@pytest.mark.parametrize("sway", [None, -1.0])
def test_solvers_have_their_order(solver, order, sway):
    """x' = t - 2 x from 1; the error falls with the order's power of the number of steps."""

    def error(steps):
        cfg = Token2WavConfig(num_steps=steps + 1, solver=solver, sway_coefficient=sway)
        schedule = Schedule.of(cfg)
        times = schedule.times.double()
        end = integrate(schedule, lambda x, at: times[at] - 2 * x, torch.ones((), dtype=torch.float64))
        assert 2 * len(times) == cfg.passes
        return abs(float(end) - (1 + 5 * np.exp(-2)) / 4)

    assert error(8) / error(16) == pytest.approx(2**order, rel=0.2)


def test_bfloat16_is_near(module):
    ann = speakers()["Ann"]
    exact, rough = (
        t2w.decode(module, CODES[:1], [ann], [1], Token2WavConfig(num_steps=3, dtype=dtype))[0]
        for dtype in (None, "bfloat16")
    )
    assert 0 < np.abs(exact - rough).max() <= 0.1 * np.abs(exact).max()


def test_vocoder_equals_transformers_alone_and_padded(module):
    vocoder = module.code2wav_bigvgan_model
    generator = torch.Generator().manual_seed(1)
    mels = [torch.randn(n, 80, generator=generator) - 3 for n in (30, 1, 7, 30)]
    with torch.no_grad():
        expected = [vocoder(m.T[None]) for m in mels]
    for out in vocode(vocoder, mels), batched(vocoder, mels), batched(vocoder, mels[::3]):
        for wave, theirs in zip(out, expected if len(out) == 4 else expected[::3], strict=True):
            assert wave.shape == theirs.shape and float(theirs.abs().max()) > 0.01
            assert float((wave - theirs).abs().max()) <= 1e-5


def test_context_of_the_vocoder_is_enough(module):
    """Frames farther away than the context don't move a sample; the changed ones do."""
    vocoder = module.code2wav_bigvgan_model
    reach = context_frames(vocoder)
    mel = torch.randn(2 * reach + 41, 80, generator=torch.Generator().manual_seed(2)) - 3
    other = mel.clone()
    other[0], other[-1] = 2.0, 2.0
    one, two = vocode(vocoder, [mel, other])
    kept = slice(240 * (reach + 1), -240 * (reach + 1))
    assert torch.equal(one[kept], two[kept])
    assert float((one - two)[: 240 * reach].abs().max()) > 1e-3


@pytest.mark.parametrize("blocks", [1, 3])
def test_stream_is_decode_in_packets(module, blocks):
    bob, codes = speakers()["Bob"], torch.randint(0, 8194, (187,), generator=torch.Generator().manual_seed(3)).tolist()
    cfg = Token2WavConfig(num_steps=3, solver="midpoint")
    whole = t2w.decode(module, [codes], [bob], [7], cfg)[0]
    packets = list(stream(module, codes, bob, 7, cfg, blocks=blocks))
    assert len(packets) > 187 * 2 / (8 * blocks) / 3 and len(packets[0]) < len(whole) / 3
    joined = np.concatenate(packets)
    # other shapes sum in another order, as the processor has it: 1.03e-5 on one, below 1e-5 on others
    assert joined.shape == whole.shape and np.abs(joined - whole).max() <= 2e-5
    (short,) = stream(module, [5], bob, 7, cfg, blocks=blocks)
    assert np.abs(short - t2w.decode(module, [[5]], [bob], [7], cfg)[0]).max() <= 1e-5


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
        with pytest.raises(DataError, match=message):
            stream(module, codes[0], ann, 0)
    with pytest.raises(DataError, match="seeds"):
        t2w.decode(module, [[1]], [ann], [])


def test_passes_and_preset():
    assert Token2WavConfig().passes == 72
    assert Token2WavConfig(num_steps=3, guidance_scale=0).passes == 8
    assert Token2WavConfig(num_steps=3, guidance_scale=0, solver="euler").passes == 2
    reward = Token2WavConfig(preset="reward")
    assert (reward.num_steps, reward.guidance_scale) == (2, 0.0)
    assert Token2WavConfig(preset="reward", num_steps=5).num_steps == 5  # what is given beside it overrides
    assert Token2WavConfig(**reward.model_dump()) == reward
    assert Token2WavConfig(num_steps=2, guidance_scale=0) == reward  # so a stage of a run has the same key
    with pytest.raises(ValidationError):
        Token2WavConfig(preset="fast")


def test_log_mel_of_a_tone():
    """A sine of amplitude 0.5 at 1 kHz: its bin stands 50 dB above far ones; 100 frames per second."""
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
