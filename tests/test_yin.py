"""YIN: known tones, librosa's as the oracle where it is installed, and sounds without an answer."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from talker_rl.evaluation.prosody import f0_stats
from talker_rl.evaluation.yin import yin

RATE = 24_000


def voice(f0: np.ndarray) -> np.ndarray:
    """Eight harmonics that fall by 6 dB an octave."""
    phase = 2 * np.pi * np.cumsum(f0) / RATE
    return (0.2 * sum(np.sin(k * phase) / k for k in range(1, 9))).astype(np.float32)


def steady(hz: float, seconds: float = 1.0) -> np.ndarray:
    return voice(np.full(int(RATE * seconds), hz))


def sounds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    glide = 200 * 2 ** (np.linspace(-8, 8, 2 * RATE) / 12)
    noise = rng.normal(0, 0.1, RATE).astype(np.float32)
    return {
        "tone": steady(133.7), "low": steady(61.0), "high": steady(415.0), "beyond": steady(900.0),
        "glide": voice(glide), "noisy": steady(180.0) + 0.3 * noise, "noise": noise,
        "burst": np.concatenate([np.zeros(5000, np.float32), steady(220.0, 0.3), np.zeros(5000, np.float32)]),
        "clipped": np.clip(5 * steady(150.0), -1, 1), "offset": steady(150.0) + np.float32(0.3),
        "one frame": steady(150.0)[:1024], "quiet": 1e-6 * steady(150.0),
    }  # fmt: skip


@pytest.mark.parametrize("hz", [70.0, 95.5, 140.0, 233.3, 310.0, 400.0])
def test_a_steady_voice_has_its_own_pitch(hz: float) -> None:
    assert np.median(yin(steady(hz), RATE, fmin=60, fmax=420)) == pytest.approx(hz, rel=0.01)


def speech() -> dict[str, np.ndarray]:
    """A sentence of the micro world's synthesizer, where it is installed."""
    if importlib.util.find_spec("espeakng_loader") is None:
        return {}
    from talker_rl.micro.corpus import RenderRequest, render_all
    from talker_rl.micro.prompts import prompt_sentences

    return {"speech": render_all([RenderRequest(list(prompt_sentences()["train"][0]), "Chelsie")])[0].audio}


@pytest.mark.slow
def test_frame_by_frame_it_is_what_librosa_says(tmp_path: Path) -> None:
    """In a process of its own: librosa compiles, here into a cache that no other program shares."""
    pytest.importorskip("librosa")
    kinds = sounds() | speech()
    np.savez(tmp_path / "sounds.npz", **kinds)
    code = (
        "import sys, numpy as np, librosa; folder = sys.argv[1]; sounds = np.load(folder + '/sounds.npz')\n"
        "np.savez(folder + '/f0.npz', **{name: librosa.yin(sounds[name], fmin=60.0, fmax=420.0, sr=24000,"
        " frame_length=1024, hop_length=256, center=False) for name in sounds})"
    )
    cache = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=cache)
    oracle = np.load(tmp_path / "f0.npz")
    for name, sound in kinds.items():
        own = yin(sound, RATE, fmin=60, fmax=420)
        assert own.shape == oracle[name].shape, name
        same = np.abs(own / oracle[name] - 1) < 1e-4
        assert same.mean() > 0.99, name  # (two lags of noise may lie closer than float32 tells apart)


@pytest.mark.parametrize(
    "audio",
    [
        np.zeros(0, np.float32),
        np.zeros(500, np.float32),
        np.zeros(RATE, np.float32),
        np.full(RATE, 0.5, np.float32),
        np.full(RATE, np.nan, np.float32),
        np.full(RATE, np.inf, np.float32),
        steady(150.0)[:2000],
    ],
    ids=["nothing", "short", "silence", "offset", "nan", "inf", "two frames"],
)
@pytest.mark.filterwarnings("error")
def test_no_voice_no_figure(audio: np.ndarray) -> None:
    assert f0_stats(audio, RATE) is None


def test_what_is_not_the_voice_moves_no_figure() -> None:
    clean = steady(150.0, 2.0)
    holed = clean.copy()
    holed[10_000:10_010] = np.nan
    whole = f0_stats(clean, RATE)
    assert whole is not None
    for other in (clean + np.float32(0.4), holed, np.clip(4 * clean, -1, 1), clean.astype(np.float64), clean[::-1]):
        found = f0_stats(other, RATE)
        assert found is not None
        assert found.mean_hz == pytest.approx(whole.mean_hz, rel=2e-3)
        assert found.spread_semitones == pytest.approx(whole.spread_semitones, abs=0.05)


def test_frames_answer_for_themselves() -> None:
    """Blocks of frames are a matter of memory: a long sound gets what its pieces get; NaN stays in its own frames."""
    sound = voice(150 * 2 ** (np.linspace(-4, 4, 8 * RATE) / 12))
    whole = yin(sound, RATE, fmin=60, fmax=420)
    assert len(whole) == 1 + (sound.size - 1024) // 256
    assert whole[400:410] == pytest.approx(yin(sound[400 * 256 :], RATE, fmin=60, fmax=420)[:10])
    sound[100_000] = np.nan
    assert np.isnan(yin(sound, RATE, fmin=60, fmax=420)).sum() == 4
    assert yin(sound[:1023], RATE, fmin=60, fmax=420).size == 0


def test_nothing_of_the_product_compiles(tmp_path: Path) -> None:
    """A cache of compiled code that two programs write may end both, and every later one, in a segmentation fault."""
    root = Path(__file__).resolve().parents[1] / "talker_rl"
    sources = {file: file.read_text() for file in root.rglob("*.py")}
    assert [f for f, text in sources.items() if "import librosa" in text or "import numba" in text] == []
    code = (
        "import sys, numpy as np\nfrom talker_rl.evaluation.prosody import f0_stats\n"
        "print(f0_stats(np.sin(np.arange(48000, dtype=np.float32) / 20), 24_000))\n"
        "assert not {'librosa', 'numba'} & set(sys.modules)"
    )
    cache = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    subprocess.run([sys.executable, "-c", code], check=True, env=cache, stdout=subprocess.PIPE)
    assert not (tmp_path / "numba").exists()
