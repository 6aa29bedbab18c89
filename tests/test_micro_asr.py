"""The micro recognizers: targets, loss, directory layout, augmentation; and the trained ones where they are."""

from __future__ import annotations

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("funasr")

from talker_rl.micro import asr_augment, asr_model  # noqa: E402
from talker_rl.micro.asr_augment import RATE, Augment, Utterance  # noqa: E402

SMALL = asr_model.AsrSize(16, heads=2, encoder_blocks=2, encoder_ffn=16, decoder_blocks=1, decoder_ffn=16, kernel=5)


def utterance() -> Utterance:
    """Three tokens of 0.3 s; each sample holds its token's number / 10."""
    audio = np.repeat(np.array([0.1, 0.2, 0.3], np.float32), round(0.3 * RATE))
    return Utterance(audio, (10, 11, 30), ((0.0, 0.3), (0.3, 0.6), (0.6, 0.9)), (True, True, True))


def fires(mass: torch.Tensor) -> list[int]:
    from funasr.models.bicif_paraformer.cif_predictor import cif_wo_hidden

    total = mass * (mass.sum().round() / mass.sum())
    return torch.where(cif_wo_hidden(total[None], 1 - 1e-4)[0] >= 1 - 1e-4)[0].tolist()


def test_stamp_targets_fire_where_funasr_reads_the_onset() -> None:
    from funasr.utils.timestamp_tools import ts_prediction_lfr6_standard

    spans = [(0.20, 0.52), (0.52, 0.71), (1.30, 1.62)]
    frames = torch.tensor([60])
    _, stamps = asr_model.cif_targets([spans], frames)
    peaks = torch.zeros(1, 120)
    peaks[0, fires(stamps[0])] = 1.0
    _, times = ts_prediction_lfr6_standard(stamps[0].clone(), peaks[0], ["a", "b", "c"])
    for (start, _), true in zip(times, spans, strict=True):
        assert abs(start / 1000 - true[0]) <= 0.0101


def test_stamp_targets_survive_a_third_of_a_unit_too_much() -> None:
    spans = [(0.2 + 0.3 * k, 0.5 + 0.3 * k) for k in range(8)]
    _, stamps = asr_model.cif_targets([spans], torch.tensor([80]))
    true = fires(stamps[0])
    noisy = stamps[0].clone()
    noisy[5] += 0.3  # a false trace of an onset, before all others
    shifted = fires(noisy)
    assert all(abs(a - b) <= 1 for a, b in zip(true[:-1], shifted[: len(true) - 1], strict=True))


def test_token_targets_count_the_tokens_and_the_end() -> None:
    tokens, stamps = asr_model.cif_targets([[(0.1, 0.4), (0.4, 0.8)], []], torch.tensor([40, 30]))
    assert tokens.sum(1).tolist() == pytest.approx([3.0, 1.0])
    assert stamps.sum(1).tolist() == pytest.approx([3.0, 1.0])
    assert tokens[1, 30:].abs().sum() == 0


def test_integrate_and_fire_equals_funasr() -> None:
    from funasr.models.bicif_paraformer.cif_predictor import cif

    torch.manual_seed(0)
    hidden, alphas = torch.randn(3, 20, 5), torch.rand(3, 20)
    alphas = alphas * (torch.tensor([4.0, 6.0, 5.0]) + 0.02)[:, None] / alphas.sum(1, keepdim=True)
    theirs, _ = cif(hidden, alphas, 1.0)
    ours = asr_model.integrate_and_fire(hidden, alphas, 6)
    for b, count in enumerate((4, 6, 5)):
        torch.testing.assert_close(ours[b, :count], theirs[b, :count], atol=1e-5, rtol=1e-5)


def test_predictor_logits_equal_the_predictor() -> None:
    torch.manual_seed(1)
    predictor = asr_model.build_model(SMALL).predictor.eval()
    hidden, mask = torch.randn(2, 12, 16), torch.ones(2, 1, 12)
    logits1, logits2 = asr_model.predictor_logits(predictor, hidden)
    _, count, alphas, _, count2 = predictor(hidden, None, mask)
    torch.testing.assert_close(logits1.sigmoid(), alphas[:, :12])
    torch.testing.assert_close(logits2.sigmoid().sum(1), count2)


def test_loss_falls_and_directory_opens_offline(tmp_path) -> None:
    from funasr import AutoModel

    torch.manual_seed(2)
    model = asr_model.build_model(SMALL)
    speech, lengths = torch.randn(2, 30, 80 * asr_model.LFR_M), torch.tensor([30, 25])
    text, text_lengths = torch.tensor([[5, 6, 30], [7, -1, -1]]), torch.tensor([3, 1])
    spans = [[(0.1, 0.4), (0.4, 0.7), (0.7, 0.9)], [(0.2, 0.5)]]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss, _ = asr_model.training_loss(model, speech, lengths, text, text_lengths, spans)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]

    out = tmp_path / "asr"
    for _ in range(2):  # the second save replaces the first
        asr_model.save_directory(out, SMALL, model, (torch.full((400,), 8.0), torch.full((400,), 3.0)))
    torch.load(out / "model.pt", weights_only=True)
    recognizer = AutoModel(
        model=str(out), disable_update=True, disable_pbar=True, trust_remote_code=False, ncpu=1, device="cpu"
    )
    clip = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    first, second = (recognizer.generate(input=[clip])[0] for _ in range(2))
    assert first["text"] == second["text"]  # no dither
    assert len(first["text"].split()) == len(first["timestamp"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["asr"]


def test_silence_moves_what_comes_after() -> None:
    moved = asr_augment.insert_silence(utterance(), 1, 0.5)
    assert [s for s, _ in moved.spans] == pytest.approx([0.0, 0.8, 1.1])
    for value, (start, end) in zip((0.1, 0.2, 0.3), moved.spans, strict=True):
        middle = moved.audio[round((start + end) / 2 * RATE)]
        assert middle == pytest.approx(value)


def test_cut_drops_the_label_only_with_most_of_the_token() -> None:
    kept, dropped = 0, 0
    for seed in range(40):
        cut = asr_augment.cut_last_token(utterance(), random.Random(seed))
        share = (len(cut.audio) / RATE - 0.6) / 0.3
        if len(cut.tokens) == 3:
            kept += 1
            assert share > 0.6 and cut.spans[-1][1] == pytest.approx(len(cut.audio) / RATE, abs=1e-3)
        else:
            dropped += 1
            assert share < 0.41
    assert kept and dropped


@pytest.mark.parametrize("name", sorted(asr_augment.AUGMENTS))
def test_augmented_audio_is_usable(name: str) -> None:
    rng, noise = random.Random(0), np.random.default_rng(0)
    for _ in range(60):
        out = asr_augment.augment(utterance(), asr_augment.AUGMENTS[name], rng, noise)
        assert out.audio.dtype == np.float32 and np.isfinite(out.audio).all() and np.abs(out.audio).max() <= 1
        assert len(out.audio) >= 0.1 * RATE - 1
        assert len(out.tokens) == len(out.spans) == len(out.breaks)
        assert all(0 <= s < e <= len(out.audio) / RATE + 1e-3 for s, e in out.spans)


def test_augmentation_depends_on_its_seeds_only() -> None:
    def once() -> np.ndarray:
        return asr_augment.augment(utterance(), Augment(), random.Random(3), np.random.default_rng(3)).audio

    np.testing.assert_array_equal(once(), once())


def test_mass_errors_see_what_the_sum_hides() -> None:
    """Two tokens and the end: one unit too much in the first, one too little in the second."""
    goals = torch.zeros(1, 12)
    goals[0, [2, 6, 10]] = 1.0
    alphas = goals.clone()
    alphas[0, 3] += 0.5
    alphas[0, 6] -= 0.5
    assert alphas.sum() == goals.sum()
    assert asr_model.mass_errors(alphas, goals, [[4, 8]]).item() == pytest.approx(1.0)
    assert asr_model.mass_errors(goals, goals, [[4, 8]]).item() == 0.0


def test_token_edges_lie_between_the_targets_peaks() -> None:
    spans = [[(0.2, 0.5), (0.5, 0.9), (1.4, 1.8)], []]
    tokens, stamps = asr_model.cif_targets(spans, torch.tensor([60, 60]))
    edges = asr_model.token_edges(spans)
    for mass, cuts, wanted in ((tokens, edges[0], [1.0, 1.0, 1.0, 1.0]), (stamps, edges[1], [1.5, 1.0, 1.0, 0.5])):
        parts = mass[0].tensor_split([c + 1 for c in cuts[0]])
        assert [float(p.sum()) for p in parts] == pytest.approx(wanted)
        assert cuts[1] == []
