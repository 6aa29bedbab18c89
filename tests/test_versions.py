"""Golden rows of decoding and scoring, made at version 1 of both. Where a change of the rules moves one, raise
``SCORES`` or ``DECODES`` (talker_rl/reward/versions.py), and write down the new row."""

from __future__ import annotations

import numpy as np
import pytest

from talker_rl.base.ids import derive_seed
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.reward import versions
from talker_rl.reward.config import RewardConfig
from talker_rl.reward.scorer import ScoreItem, Scorer, ScoreResult
from talker_rl.speech.config import ModelConfig, Token2WavConfig
from talker_rl.speech.protocol import Utterance
from talker_rl.speech.registry import load

CODES = [0, 0, 0, 0, 269, 142, 142, 152, 190, 477, 32, 231, 231, 372, 372, 389, 389, 36, 136, 414, 77, 511, 222, 65,
         149, 109, 396, 218, 290, 199, 302, 254, 326, 15, 324, 287, 61, 182, 258, 343, 490, 342, 342, 248, 279, 382, 50,
         343, 341, 13, 136, 234, 453, 453, 470, 276, 8, 8, 8, 8, 81, 0, 0, 0, 0, 0, 0, 0]
PROMPT = Prompt("music mountain river bottle.", "Chelsie", "en", reference_seconds=1.74)
RIGHT = {
    "wer": 0.25, "cer": 0.25, "substitutions": 0.0, "deletions": 1.0, "insertions": 0.0, "ref_words": 4.0,
    "pause_error": 0.0, "pause_error_scorable": 0.0, "pause_precision": None, "pause_marks": 0.0, "pause_false": 0.0,
    "duration": 1.36, "duration_ratio": 0.7816091954022989, "rate": 7.207207207207208, "lead_silence": 0.09,
    "tail_silence": 0.16, "max_inner_silence": 0.03, "repeated_run": 7.0, "repeated_ngram": 0.0, "cap_hit": 0.0,
    "clipping": 0.0, "non_finite": 0.0, "gate": 1.0, "unwritten": 0.0, "reward_written": None,
}
LOUDNESS = [
    0.022378, 0.066165, 0.094479, 0.036150, 0.086334,
    0.065195, 0.088084, 0.080709, 0.049119, 0.000275,
]
"""Root mean square of each tenth of the sound."""
FIX = "the rules have changed: raise its number in talker_rl/reward/versions.py, and write down the new row"


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    assert PROMPT.prompt_id == "370d0bf8793fcc1f"
    generator = load(ModelConfig(path="micro", device="cpu"), parts=("decoder",))
    seed = derive_seed(0, "token2wav", PROMPT.prompt_id)
    return generator.decode([Utterance(CODES, "Chelsie", seed)], Token2WavConfig(preset="reward"))[0]


def test_decoding_is_that_of_its_version(sound: np.ndarray) -> None:
    assert versions.DECODES == 1, "write down the new row, and its version here"
    found = [float(np.sqrt(np.mean(part.astype(np.float64) ** 2))) for part in np.array_split(sound, 10)]
    assert len(sound) == 480 * len(CODES)
    assert found == pytest.approx(LOUDNESS, abs=2e-5), FIX


def test_scoring_is_that_of_its_version(sound: np.ndarray) -> None:
    assert versions.SCORES == 1, "write down the new row, and its version here"
    candidate = Candidate(PROMPT.prompt_id, "c", "Chelsie", 0, CODES, 8294, "eos", [])
    (result,) = Scorer(RewardConfig()).score([ScoreItem.from_candidate(PROMPT, candidate, sound)])
    assert isinstance(result, ScoreResult) and result.transcript == ["music", "mountain", "river"], FIX
    found = {name: result.components[name] for name in RIGHT}
    right = {name: value if value is None else pytest.approx(value, abs=1e-9) for name, value in RIGHT.items()}
    assert found == right, FIX
    assert result.value == pytest.approx(0.48039573332889884, abs=1e-9), FIX


def test_the_first_versions_have_the_names_that_runs_before_numbers_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", lambda package: "4.0.0")
    assert versions.scores_version() == "a391998b09e2e7658d79168fe509eed558495119362d985fa905470e00bb3300"
    assert versions.code_version() == "6da85d693e801042da71588d9529ddab1ef0dda5042334631da0003ec41df93c"
    first = {versions.scores_version(), versions.code_version()}
    monkeypatch.setattr(versions, "SCORES", 2)
    assert not first & {versions.scores_version(), versions.code_version()}
