"""The report page: what is on it, and that texts cannot break it."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from test_evaluation import row

from talker_rl.evaluation.summary import compare
from talker_rl.report.audio import FORMATS, data_uri
from talker_rl.report.charts import training_curve
from talker_rl.report.model import Clip, Comparison, ReportData
from talker_rl.report.page import headline, render, text_table, write_report


def tone(seconds: float = 0.5) -> np.ndarray:
    return (0.1 * np.sin(2 * np.pi * 220 * np.arange(int(24_000 * seconds)) / 24_000)).astype(np.float32)


def full_data() -> ReportData:
    base = [row(f"p{i}", 0, (1, 0, 0), 4, speaker_similarity=0.9) for i in range(12)]
    trained = [row(f"p{i}", 0, (0, 0, i % 2), 4, speaker_similarity=0.91) for i in range(12)]
    clips = [Clip("base", tone(), 24_000, [("=", "river", "river"), ("S", "<b>garden", "window"), ("D", "paper", "")]),
             Clip("trained", tone(), 24_000, [("I", "", "money")], caption="WER 0.25")]
    return ReportData(
        title="demo", summary=compare(base, trained, resamples=200), base_rows=base, trained_rows=trained,
        train_log=[{"step": s, "rewards/chosen": 0.1 * s, "rewards/rejected": -0.1 * s} for s in range(3)],
        pairs=[{"margin": 0.4, "chosen_seconds": 2.0, "rejected_seconds": 2.2}],
        before_after=[Comparison("<script>alert(1)</script>", "Ethan", clips)], facts={"model": "micro"},
    )  # fmt: skip


def test_page_holds_every_part_and_escapes_text(tmp_path: Path) -> None:
    html = write_report(full_data(), tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "<script>alert(1)</script>" not in html and "&lt;script&gt;alert(1)" in html
    assert html.count("<audio ") == 2
    assert len(re.findall(r"<section[^>]+data-chart>", html)) == 4  # WER, duration, implicit rewards, pairs
    assert "Not drawn" in html and "WER on dev by checkpoint" in html
    assert not re.search(r"<(script|link|img|audio)[^>]+(src|href)=[\"']https?:", html)
    assert 'class="better"' in html and 'class="tok S"' in html


def test_curves_of_rounds_stand_after_each_other() -> None:
    log = [{"round": r, "step": s, "loss": r + s / 100} for r in (1, 2) for s in (10, 20)] + [{"round": 2, "step": 30}]
    fig = training_curve(log, {"loss": "loss"}, "loss")
    assert fig is not None and fig.layout.xaxis.title.text == "step, round after round"
    assert list(fig.data[0].x) == [10, 20, None, 30, 40] and list(fig.data[0].y) == [1.1, 1.2, None, 2.1, 2.2]
    plain = training_curve([{"step": 1, "loss": 0.5}], {"loss": "loss"}, "loss")
    assert plain is not None and plain.layout.xaxis.title.text == "step" and list(plain.data[0].x) == [1]


def test_empty_run_explains_itself() -> None:
    html = render(ReportData(title="empty", summary=None))
    assert "no evaluation yet" in html and "This run holds no pairs" in html
    assert "No evaluated speech" in html


def test_headline_makes_no_claim_when_the_interval_includes_zero() -> None:
    base = [row(f"p{i}", 0, (i % 2, 0, 0), 4) for i in range(20)]
    trained = [row(f"p{i}", 0, ((i + 1) % 2, 0, 0), 4) for i in range(20)]
    assert "no claim" in headline(compare(base, trained, resamples=200))


def test_text_table_names_base_and_trained() -> None:
    table = text_table(full_data().summary or {})
    assert "25.00%" in table and "12.50%" in table  # 12 of 48 words, then 6 of 48


@pytest.mark.parametrize("audio_format", sorted(FORMATS))
def test_audio_survives_the_page(audio_format: str) -> None:
    uri = data_uri(tone(0.5), 24_000, audio_format)
    decoded, rate = sf.read(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))
    assert len(decoded) / rate == pytest.approx(0.5, abs=0.06)
    assert np.sqrt(np.mean(decoded**2)) == pytest.approx(0.1 / np.sqrt(2), rel=0.15)
