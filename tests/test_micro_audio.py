"""The speech side of the micro world: rendered truth, mel, codec, vocoder, DiT."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from talker_rl.micro.codec import Codec, code_features, fit_kmeans
from talker_rl.micro.corpus import CODE_SAMPLES, RenderRequest, make_requests, render_all
from talker_rl.micro.dit import (
    BLOCK,
    DROP_CONDITIONING,
    Batch,
    crops,
    fit_speaker_encoder,
    flow_loss,
    new_dit,
    sample_mel,
    speaker_vector,
    voice_crops,
)
from talker_rl.micro.fast_snake import accelerate, library, snake
from talker_rl.micro.lexicon import COMMA_SECONDS, LEAD_SECONDS, STOP_SECONDS, Clause
from talker_rl.micro.mel import log_mel, mel_filters
from talker_rl.micro.train_audio import speaker_parameters, token2wav_config, write_token2wav
from talker_rl.micro.vocoder import fit_vocoder, segments, vocode, vocoder_config

FIRST = Clause("en", ("river", "garden", "money"), ",")
SECOND = Clause("zh", ("苹果", "老师"), "。")


@pytest.fixture(scope="module")
def rendered():
    requests = [
        RenderRequest([FIRST, SECOND], "Chelsie"),
        RenderRequest([SECOND, FIRST], "Chelsie"),
        RenderRequest([FIRST, SECOND], "Ethan", pauses=[0.5], extra_pauses={0: 0.3}),
        RenderRequest([FIRST, SECOND], "Chelsie", en_voice="en-us+f3", zh_voice="cmn+f4", rate=160, lead=0.4, tail=0.3),
    ]
    return render_all(requests, progress=False)


def longest_silence(audio: np.ndarray) -> float:
    """Seconds of the longest run of 5 ms frames 35 dB below the loud ones."""
    frames = audio[: len(audio) // 120 * 120].reshape(-1, 120)
    level = 20 * np.log10(np.sqrt((frames**2).mean(1)) + 1e-9)
    best = run = 0
    for quiet in level < np.percentile(level, 95) - 35:
        run = run + 1 if quiet else 0
        best = max(best, run)
    return best * 0.005


def test_render_is_reproducible_whatever_came_before(rendered):
    again = render_all([RenderRequest([FIRST, SECOND], "Chelsie")], progress=False)[0]
    assert np.array_equal(again.audio, rendered[0].audio)
    breathy = RenderRequest([FIRST, SECOND], "Chelsie", None, None, "en-us+f3", "cmn+f4", 160, None, 0.4, 0.3)
    assert np.array_equal(render_all([breathy], progress=False)[0].audio, rendered[3].audio)


def test_render_lies_on_the_code_grid_and_is_never_silent(rendered):
    for r in rendered:
        assert len(r.audio) % CODE_SAMPLES == 0 and r.audio.dtype == np.float32
        windows = r.audio[: len(r.audio) // 240 * 240].reshape(-1, 240)
        assert np.abs(windows).max(1).min() > 0
        assert 0.3 < np.abs(r.audio).max() <= 0.99


def test_words_start_where_speech_starts(rendered):
    r = rendered[0]
    assert [w.word for w in r.words] == ["river", "garden", "money", "苹果", "老师"]
    assert r.text == "river garden money, 苹果老师。" and r.lang == "mixed"
    assert all(a.end <= b.start + 1e-9 for a, b in zip(r.words, r.words[1:], strict=False))
    assert abs(r.words[0].start - LEAD_SECONDS) < 0.02
    loud = np.nonzero(np.abs(r.audio) > 0.01)[0] / 24_000
    assert abs(loud[0] - r.words[0].start) < 0.03 and abs(loud[-1] - r.words[-1].end) < 0.03


def test_pauses_are_what_was_asked_for(rendered):
    (after, seconds), *rest = rendered[0].pauses
    assert after == 2 and not rest and COMMA_SECONDS <= seconds < COMMA_SECONDS + 0.02
    assert abs(longest_silence(rendered[0].audio[2400:-4800]) - seconds) < 0.06
    moved = rendered[2]
    assert [i for i, _ in moved.pauses] == [0, 2]
    assert 0.3 <= moved.pauses[0][1] < 0.32 and 0.5 <= moved.pauses[1][1] < 0.52
    gap = moved.audio[int(moved.words[0].end * 24_000) + 240 : int(moved.words[1].start * 24_000) - 2400]
    assert np.abs(gap).max() < 0.01
    stop = render_all([RenderRequest([SECOND, FIRST], "Ethan")], progress=False)[0]
    assert STOP_SECONDS <= stop.pauses[0][1] < STOP_SECONDS + 0.02


def test_wrong_number_of_pauses_is_refused():
    with pytest.raises(RuntimeError, match="2 clauses need 1 pauses"):
        render_all([RenderRequest([FIRST, SECOND], "Ethan", pauses=[])], progress=False)


def test_requests_depend_on_the_seed_only():
    assert make_requests(20, 5) == make_requests(20, 5) != make_requests(20, 6)


def test_mel_has_two_frames_a_code_and_finds_a_tone():
    t = torch.arange(24_000) / 24_000
    mel = log_mel(0.5 * torch.sin(2 * torch.pi * 1000 * t))
    assert mel.shape == (100, 80)
    peak = int(mel[50].argmax())
    center = float((mel_filters()[peak] * torch.linspace(0, 12_000, 513)).sum() / mel_filters()[peak].sum())
    assert abs(center - 1000) < 60
    louder = log_mel(1.0 * torch.sin(2 * torch.pi * 1000 * t))
    assert torch.allclose(
        louder[50, peak] - mel[50, peak], torch.tensor(2.0).log(), atol=1e-3
    )  # natural log, amplitude


def test_codes_of_a_clause_do_not_depend_on_its_place(rendered):
    features = torch.cat([code_features(log_mel(torch.from_numpy(r.audio))) for r in rendered])
    centroids, error = fit_kmeans(features, 64, seed=0)
    codec = Codec(centroids)
    first, swapped = codec.encode(rendered[0].audio), codec.encode(rendered[1].audio)
    start = {w.word: round(w.start * 50) for w in rendered[1].words}["river"]
    begin = round(LEAD_SECONDS * 50)
    inner = slice(begin + 2, begin + 2 + 40)  # a mel frame looks 21 ms to either side
    assert first[inner] == swapped[start + 2 : start + 2 + 40]
    assert error < float(features.var(0).sum()) / 4
    assert codec.encode(rendered[0].audio[: CODE_SAMPLES * 10 + 7]) and max(first) < 64


def test_kmeans_finds_separate_clusters():
    generator = torch.Generator().manual_seed(0)
    middles = torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    points = (middles[:, None] + 0.1 * torch.randn(4, 50, 2, generator=generator)).reshape(-1, 2)
    centroids, error = fit_kmeans(points, 4, seed=1)
    assert torch.cdist(middles, centroids).min(1).values.max() < 0.1 and error < 0.05


@pytest.fixture(scope="module")
def vocoder():
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniToken2WavBigVGANModel

    torch.manual_seed(0)
    return Qwen2_5OmniToken2WavBigVGANModel._from_config(vocoder_config())


def test_vocode_is_the_modules_own_forward(vocoder):
    mel = torch.randn(1, 20, 80) - 5
    with torch.no_grad():
        ours, theirs = vocode(vocoder, mel), vocoder(mel.transpose(1, 2))
    assert ours.shape == (1, 20 * 240)
    assert torch.allclose(ours[0].clamp(-1, 1), theirs, atol=1e-6)


@pytest.mark.skipif(library() is None, reason="no C compiler: the kernel is not used either")
@pytest.mark.parametrize("length", [1, 5, 64, 333])
def test_fast_snake_equals_the_module_and_its_gradients(vocoder, length):
    module = vocoder.activation_post
    torch.manual_seed(length)
    module.act.alpha.data.normal_()
    module.act.beta.data.normal_()
    x = torch.randn(3, 8, length, requires_grad=True)
    upstream = torch.randn(3, 8, length)
    wanted = [module(x)]
    wanted += torch.autograd.grad(wanted[0], [x, module.act.alpha, module.act.beta], upstream)
    got = [snake(module, x)]
    got += torch.autograd.grad(got[0], [x, module.act.alpha, module.act.beta], upstream)
    for a, b in zip(wanted, got, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_vocoder_training_lowers_the_loss(vocoder, rendered):
    audios = [torch.from_numpy(r.audio) for r in rendered]
    mels = [log_mel(a) for a in audios]
    accelerate(vocoder)
    losses: list[float] = []
    batches = segments(audios, mels, 2, 24, torch.Generator().manual_seed(0), mel_noise=0.0)
    fit_vocoder(vocoder, batches, 12, learning_rate=2e-3, warmup=2, on_step=lambda step, loss: losses.append(loss))
    assert losses[-1] < 0.95 * losses[0]


def test_crops_start_on_a_block_and_keep_codes_aligned():
    frames = torch.arange(400.0)
    mels = [frames[:, None].expand(-1, 80), frames[:, None].expand(-1, 80) + 1000]
    codes = [torch.arange(200), torch.arange(200)]
    conds = {"a": torch.zeros(192), "b": torch.ones(192)}
    batch = next(crops(mels, codes, ["a", "b"], conds, 6, torch.Generator().manual_seed(0)))
    assert torch.all(batch.mel[:, 0, 0] % 1000 % BLOCK == 0)
    assert torch.equal((batch.mel[:, ::2, 0] % 1000).long(), 2 * batch.codes)
    assert torch.equal(batch.cond[:, 0], (batch.ref_mel[:, 0, 0] >= 1000).float())


def test_legs_loss_of_the_start_is_the_analytic_one():
    """At its start the DiT predicts the corpus mean, so the loss is E|x1 - x0 - mean|^2 = var(x1) + 1."""
    mean = torch.full((80,), -5.0)
    model = new_dit(mean)
    torch.nn.init.zeros_(model.proj_out.weight)
    generator = torch.Generator().manual_seed(0)
    mel = -5 + 2 * torch.randn(4, 96, 80, generator=generator)
    batch = Batch(mel, torch.zeros(4, 48, dtype=torch.long), torch.randn(4, 192), torch.randn(4, 100, 80))
    assert abs(flow_loss(model, batch, generator).item() - 5.0) < 0.15
    assert 0 < DROP_CONDITIONING < 0.5


def test_speaker_encoder_learns_voices_and_leaves_the_velocity_alone():
    torch.manual_seed(0)
    model = new_dit(torch.zeros(80)).eval()
    tilt = torch.linspace(-2, 2, 80)
    mels = [torch.randn(300, 80) + (tilt if i % 2 else -tilt) for i in range(6)]
    batches = voice_crops(mels, ["odd" if i % 2 else "even" for i in range(6)], 8, torch.Generator().manual_seed(0))
    inputs = dict(
        hidden_states=torch.randn(1, 48, 80),
        condition_vector=mels[0][None],
        speaker_embedding=torch.randn(1, 48, 192),
        quantized_code=torch.arange(24)[None],
        time_step=torch.tensor(0.3),
        apply_cfg=False,
    )

    def similarity() -> tuple[float, float]:
        embeddings = model.input_embed.spk_encoder(torch.stack([mels[0], mels[2], mels[1]]))
        even, also_even, odd = torch.nn.functional.normalize(embeddings, dim=1)
        return float(even @ also_even), float(even @ odd)

    with torch.no_grad():
        velocity, (_, across_before) = model(**inputs), similarity()
        fit_speaker_encoder(model, batches, mels[0][None], steps=12)
        within, across = similarity()
        assert torch.allclose(model(**inputs), velocity, atol=1e-5)
    assert within > 0.9 > 0.5 > across and across < across_before - 0.2


def test_decode_equals_upstream(rendered, tmp_path):
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniToken2WavModel

    torch.manual_seed(0)
    model = Qwen2_5OmniToken2WavModel._from_config(token2wav_config(), attn_implementation="sdpa").eval()
    mels = [log_mel(torch.from_numpy(r.audio)) for r in rendered]
    voices = speaker_parameters(mels, [r.speaker for r in rendered])
    voice = voices["Ethan"]
    assert voice["cond"].shape == (1, 192) and voice["ref_mel"].shape[::2] == (1, 80)
    assert not torch.allclose(voice["cond"], voices["Chelsie"]["cond"])
    assert torch.equal(speaker_vector(mels[:1]), speaker_vector(mels[:1]))
    codes = [3, 5, 7, 7, 0, 511, 8193, 1]
    with torch.no_grad():
        mel = sample_mel(model.code2wav_dit_model, torch.tensor([codes]), voice["cond"], voice["ref_mel"], 4, 2, 0.0)
        wave = vocode(model.code2wav_bigvgan_model, mel).clamp(-1, 1)[0].numpy()
    torch.manual_seed(4)
    theirs = model(torch.tensor([codes]), voice["cond"], voice["ref_mel"], num_steps=2, guidance_scale=0.0)
    assert wave.shape == (8 * 480,) and np.allclose(wave, theirs.detach().numpy(), atol=1e-5)
    assert write_token2wav(tmp_path) is False
