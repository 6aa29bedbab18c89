"""Golden rows of sampling, decoding and scoring, made at version 1 of each. Where a change of rules moves one, raise
``SAMPLES``, ``DECODES`` or ``SCORES`` (talker_rl/base/versions.py), and write down the new row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from talker_rl.base import versions
from talker_rl.base.ids import derive_seed
from talker_rl.base.text.alignment import align
from talker_rl.base.text.tokens import normalize
from talker_rl.config import RunConfig
from talker_rl.records.candidate import Candidate
from talker_rl.records.prompt import Prompt
from talker_rl.reward.config import PauseConfig, RewardConfig
from talker_rl.reward.pauses import score_pauses
from talker_rl.reward.scorer import ScoreItem, Scorer, ScoreResult
from talker_rl.reward.silences import Silences, find_silences
from talker_rl.speech.config import ConditioningConfig, ModelConfig, SamplingConfig, Token2WavConfig
from talker_rl.speech.protocol import SampleRequest, Utterance
from talker_rl.speech.registry import load
from talker_rl.stages.feasible import _reach

CODES = [0, 0, 0, 0, 269, 142, 142, 152, 190, 477, 32, 231, 231, 372, 372, 389, 389, 36, 136, 414, 77, 511, 222, 65,
         149, 109, 396, 218, 290, 199, 302, 254, 326, 15, 324, 287, 61, 182, 258, 343, 490, 342, 342, 248, 279, 382, 50,
         343, 341, 13, 136, 234, 453, 453, 470, 276, 8, 8, 8, 8, 81, 0, 0, 0, 0, 0, 0, 0]
PROMPT = Prompt("music mountain river bottle.", "Chelsie", "en", reference_seconds=1.74)
RIGHT = {
    "wer": 0.25, "cer": 0.25, "substitutions": 0.0, "deletions": 1.0, "insertions": 0.0, "ref_words": 4.0,
    "pause_error": 0.0, "pause_error_scorable": 0.0, "pause_precision": None, "pause_recall": None, "pause_f1": None,
    "pause_scorable_share": None, "pause_marks": 0.0, "pause_hits": 0.0, "pause_misses": 0.0, "pause_false": 0.0,
    "pause_out_of_bounds": 0.0,
    "duration": 1.36, "duration_ratio": 0.7816091954022989, "rate": 7.207207207207208, "lead_silence": 0.09,
    "tail_silence": 0.16, "max_inner_silence": 0.03, "repeated_run": 7.0, "repeated_ngram": 0.0, "cap_hit": 0.0,
    "clipping": 0.0, "non_finite": 0.0, "gate": 1.0, "unwritten": 0.0, "reward_written": None,
}
RATE = 16_000
LOUDNESS = [
    0.022378, 0.066165, 0.094479, 0.036150, 0.086334,
    0.065195, 0.088084, 0.080709, 0.049119, 0.000275,
]
"""Root mean square of each tenth of the sound."""
SAMPLED = [
    ([0, 0, 0, 0, 269, 142, 142, 152, 190, 477, 32, 231, 231, 372, 372, 389, 389, 36, 136, 414, 77, 511, 222, 65, 313,
      109, 16, 290, 481, 302, 302, 326, 370, 342, 324, 287, 61, 182, 258, 343, 77, 342, 342, 248, 279, 382, 50, 343,
      136, 234, 116, 48, 276, 327, 327, 108, 145, 500, 97, 16], -18.7237, -13.0063),
    ([0, 0, 0, 0, 269, 142, 142, 152, 190, 477, 32, 231, 231, 372, 372, 389, 389, 36, 136, 414, 77, 511, 222, 65, 149,
      109, 396, 218, 290, 290, 113, 104, 188, 302, 302, 192, 192, 155, 324, 230, 61, 270, 258, 196, 196, 77, 281, 281,
      281, 348, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], -7.8765, -4.7306),
]
"""Codes from two seeds, and the sums of their raw and processed log-probs."""
WRITTEN = [
    ("The cat sat.", "en", "the bat sat sat", (1, 0, 1, 3)),
    ("Mr. Smith paid $5.50!", "en", "mr smith paid 5.50", (0, 0, 0, 4)),
    ("It's 3 p.m., isn't it?", "en", "its three pm isnt it", (4, 1, 0, 6)),
    ("co-operate now", "en", "cooperate now", (1, 1, 0, 3)),
    ("a b c d", "en", "b c d e", (0, 1, 1, 4)),
    ("one two", "en", "", (0, 2, 0, 2)),
    ("naïve café", "en", "naive cafe", (2, 0, 0, 2)),
    ("email me at a.b@c.com", "en", "email me at a b c com", (0, 0, 0, 7)),
    ("今天天气很好。", "zh", "今天天气真好", (1, 0, 0, 6)),
    ("我们明天去北京，好吗？", "zh", "我们明天去南京好", (1, 1, 0, 9)),
    ("他說這個", "zh", "他说这个", (3, 0, 0, 4)),
    ("看 iPhone 15 的价格", "mixed", "看iphone 15的价格", (0, 0, 0, 6)),
    ("Ｆｕｌｌ　ｗｉｄｔｈ", "en", "full width", (0, 0, 0, 2)),
]
"""What is to be said, in which language, what was heard; substitutions, deletions, insertions, words."""
GAPS = [round(0.05 + 0.01 * k, 2) for k in range(160)]
"""Seconds: a pause of each length between two words, so that a threshold moved by 10 ms moves a count."""
PAUSES = {"none": (None, 140, 0, 1.0), "weak": (150, 0, 84, 0.325), "strong": (150, 0, 19, 0.121875)}
"""Mark at all of those boundaries -> hits, false pauses, hits of a wrong length, pause error."""
FIX = "the rules have changed: raise its number in talker_rl/base/versions.py, and write down the new row"


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
    right = {name: value if value is None else pytest.approx(value, abs=1e-9) for name, value in RIGHT.items()}
    assert result.components == right, FIX
    for name, value in result.components.items():
        low, high = _reach(RunConfig(), name)
        assert value is None or low <= value <= high, f"the range of {name} in talker_rl/stages/feasible.py"
    assert result.value == pytest.approx(0.48039573332889884, abs=1e-9), FIX


def test_the_first_versions_have_the_names_that_runs_before_numbers_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", lambda package: "4.0.0")
    for kind in ("SAMPLES", "DECODES", "SCORES"):
        monkeypatch.setattr(versions, kind, 1)
    assert versions.scores_version() == "a391998b09e2e7658d79168fe509eed558495119362d985fa905470e00bb3300"
    assert versions.code_version() == "6da85d693e801042da71588d9529ddab1ef0dda5042334631da0003ec41df93c"
    first = {versions.scores_version(), versions.code_version()}
    monkeypatch.setattr(versions, "SCORES", 2)
    assert not first & {versions.scores_version(), versions.code_version()}


def test_sampling_is_that_of_its_version() -> None:
    assert versions.SAMPLES == 1, "write down the new rows, and their version here"
    generator = load(ModelConfig(path="micro", device="cpu"), parts=("conditioner", "talker"))
    requests = [SampleRequest(c, [1, 2]) for c in generator.condition([PROMPT], ConditioningConfig())]
    settings = SamplingConfig(temperature=0.9, top_k=40, top_p=0.8, repetition_penalty=1.05, max_new_tokens=60)
    with generator.policy() as policy:
        found = policy.sample(requests, settings, batch_size=2)
    for candidate, (codes, raw, processed) in zip(found, SAMPLED, strict=True):
        assert candidate.codes == codes, FIX
        assert sum(candidate.token_logps) == pytest.approx(raw, abs=2e-3), FIX
        assert sum(candidate.processed_logps) == pytest.approx(processed, abs=2e-3), FIX


@pytest.mark.parametrize(("text", "lang", "heard", "right"), WRITTEN)
def test_words_are_counted_by_the_rules_of_their_version(
    text: str, lang: str, heard: str, right: tuple[int, ...]
) -> None:
    counts = align(normalize(text, lang).tokens, normalize(heard, lang).tokens).counts
    assert (counts.substitutions, counts.deletions, counts.insertions, counts.length) == right, FIX


@pytest.mark.parametrize("mark", PAUSES)
def test_pauses_are_judged_by_the_rules_of_their_version(mark: Any) -> None:
    starts = [0.2 * (k + 1) + sum(GAPS[:k]) for k in range(len(GAPS))]
    runs = [(start, start + gap) for start, gap in zip(starts, GAPS, strict=True)]
    spans = [(0.0, 0.2), *((end, end + 0.2) for _, end in runs)]
    found = score_pauses([*[mark] * len(GAPS), "none"], list(range(len(spans))), spans,
                         Silences(runs, runs, 0.0, 0.0, spans[-1][1]), PauseConfig(), len(spans))
    hits, false, out, error = PAUSES[mark]
    assert (found.hits or None, found.false_pauses, found.out_of_bounds) == (hits, false, out), FIX
    assert found.pause_error == pytest.approx(error, abs=1e-12), FIX


def test_silence_is_found_by_the_rules_of_its_version() -> None:
    """Gaps at -20 to -59 dB below speech, 1 dB apart; and sounds of 5 to 80 ms inside silence, 5 ms apart."""
    words = np.concatenate([part for db in range(20, 60) for part in (tone(0.4, -10), tone(0.2, -10 - db))])
    found = find_silences(np.concatenate([words, tone(0.4, -10)]), RATE, PauseConfig()).inner
    assert (len(found), round(sum(end - start for start, end in found), 2)) == (25, 5.0), FIX
    clicks = np.concatenate([part for ms in range(5, 85, 5) for part in (
        tone(0.3, -10), tone(0.2, -90), tone(ms / 1000, -10), tone(0.2, -90))])
    found = find_silences(np.concatenate([clicks, tone(0.3, -10)]), RATE, PauseConfig()).inner
    assert (len(found), round(sum(end - start for start, end in found), 2)) == (27, 6.34), FIX


def tone(seconds: float, db: float) -> np.ndarray:
    """220 Hz, ``db`` below full scale."""
    return (10 ** (db / 20) * np.sin(2 * np.pi * 220 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)
