"""The shipped micro model: log-prob parity on 64 sampled candidates, and token2wav against transformers' module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from said import sequence

from talker_rl import micro
from talker_rl.records.prompt import Prompt
from talker_rl.speech.config import ModelConfig, SamplingConfig
from talker_rl.speech.qwen2_5_omni import token2wav as t2w
from talker_rl.speech.qwen2_5_omni.checkpoint import load_omni
from talker_rl.speech.qwen2_5_omni.conditioning import compute_conditioning
from talker_rl.speech.qwen2_5_omni.layout import collate
from talker_rl.speech.qwen2_5_omni.logps import token_logps
from talker_rl.speech.qwen2_5_omni.rollouts import sample_candidates

FOLDER = Path(micro.checkpoint_dir()) / "omni"
pytestmark = pytest.mark.skipif(not (FOLDER / "config.json").is_file(), reason="the micro model is not built yet")


@pytest.fixture(scope="module")
def omni():
    return load_omni(ModelConfig(path="micro"))


@pytest.fixture(scope="module")
def rolled(omni):
    words = (FOLDER / "words.txt").read_text().split()
    speakers = sorted(omni.speakers)
    prompts = [
        Prompt(f"{' '.join(words[i : i + 2 + i % 4])}, {words[-1 - i]} {words[i]}.", speakers[i % len(speakers)])
        for i in range(16)
    ]
    conditionings = compute_conditioning(omni, prompts)
    seeds = [[10 * i + k for k in range(4)] for i in range(16)]
    return conditionings, sample_candidates(omni.talker, conditionings, seeds, SamplingConfig(max_new_tokens=300))


@pytest.mark.parametrize("batch_size", [64, 1])
def test_logps_equal_the_rollouts_own(omni, rolled, batch_size):
    conditionings, candidates = rolled
    by_id = {c.prompt_id: c for c in conditionings}
    kept = [c for c in candidates if c.token_logps and c.end_reason in ("eos", "max_tokens")]
    assert len(kept) >= 60 and len({len(c.codes) for c in kept}) > 20
    for start in range(0, len(kept), batch_size):
        chunk = kept[start : start + batch_size]
        ids = [c.codes + ([c.stop_id] if c.stop_id is not None else []) for c in chunk]
        examples = [sequence(by_id[c.prompt_id], i) for c, i in zip(chunk, ids, strict=True)]
        logps = token_logps(omni.talker, collate(examples))
        for row, c in zip(logps, chunk, strict=True):
            assert float((row[: len(c.token_logps)] - torch.tensor(c.token_logps)).abs().max()) <= 1e-5


def test_speech_equals_transformers(omni, rolled, monkeypatch):
    """Upstream's settings; two candidates of different lengths in one batch, and the first alone."""
    _, candidates = rolled
    chosen = sorted((c for c in candidates if c.end_reason == "eos"), key=lambda c: len(c.codes))[:2]
    people = [omni.speaker(c.speaker) for c in chosen]
    batched = t2w.decode(omni.token2wav, [c.codes for c in chosen], people, [1, 2])
    alone = t2w.decode(omni.token2wav, [chosen[0].codes], people[:1], [1])[0]
    for i, (candidate, person) in enumerate(zip(chosen, people, strict=True)):
        noise = t2w.utterance_noise(1 + i, 2 * len(candidate.codes), 80)[None]
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(torch, "randn", lambda size, noise=noise, **_: noise.clone())
            expected = omni.token2wav(
                torch.tensor([candidate.codes]), conditioning=person["cond"], reference_mel=person["ref_mel"]
            ).numpy()
        assert np.abs(expected).max() > 0.05
        assert np.abs(batched[i] - expected).max() <= 1e-5
        assert i or np.abs(alone - expected).max() <= 1e-5
