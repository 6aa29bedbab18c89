"""The strip in headless Chromium, on both kinds of pages: a word is played from where it stands, and can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dashboard_helpers import write_run
from test_report import full_data, tone

from talker_rl.report.credit import credit_of
from talker_rl.report.dashboards import write_dashboards
from talker_rl.report.model import Clip, Comparison, ReportData
from talker_rl.report.page import write_report
from talker_rl.report.strip import strip_of, wave_of
from talker_rl.reward.config import PauseConfig

SLOWLY = """() => {
  window.sought = [];
  document.addEventListener("play", (event) => { event.target.playbackRate = 0.1; }, true);
  document.addEventListener("seeked", (event) => sought.push(event.target.currentTime), true);
}"""
"""Slowly, or a clip of a second is over before the page is asked; notes where each seek ended."""
PLAYS_ON = """([card, side, after]) => {
  const audio = document.querySelectorAll(".clip")[2 * card + side].querySelector("audio");
  return !audio.paused && audio.currentTime > after + 0.01 && audio.currentTime;
}"""
BOXES = """(strip) => [strip.querySelector(".wave"), ...strip.querySelectorAll("button")].map((el) => {
  const box = el.getBoundingClientRect();
  return [box.left, box.top, box.right, box.bottom, Number(el.dataset.start)];
})"""


def heard(text: str, transcript: str, spans: list[tuple[float, float]], seconds: float = 2.0) -> Comparison:
    """The same clip twice."""
    sound = tone(seconds)
    strip = strip_of(wave_of(sound, 24_000), text, transcript.split(), spans, PauseConfig())
    return Comparison(text, "Ethan", [Clip(label, sound, 24_000, [], strip=strip) for label in ("before", "after")])


def report(folder: Path) -> Path:
    spans = [(0.1, 0.3), (0.6, 0.9), (0.9, 1.2), (1.3, 1.5)]
    item = heard("one, two three <b>four</b>.", "one too three four", spans)
    return write_report(ReportData("page", None, before_after=[item]), folder / "index.html")


def dashboard(folder: Path) -> Path:
    return write_dashboards(write_run(folder / "run", pairs=4))[0]


@pytest.mark.parametrize("make, card, words", [
    (report, 0, [("too’, substituted for ‘two’", 0.6), ("a pause of 0.30 s at a mark", 0.3), ("four’", 1.3)]),
    (dashboard, 2, [("garden’", 0.1), ("garden’, inserted", 0.2), ("window’", 0.4)]),
])
def test_a_word_plays_from_its_time_by_mouse_and_by_keys(
    opened: Any, tmp_path: Path, make: Any, card: int, words: list[tuple[str, float]]
) -> None:
    page = opened(make(tmp_path))
    page.evaluate(SLOWLY)
    strip = page.locator(".compare").nth(card).locator(".strip").nth(1)
    strip.scroll_into_view_if_needed()

    def plays(start: float) -> None:
        page.wait_for_function(PLAYS_ON, arg=[card, 1, start])
        assert page.evaluate("sought.at(-1)") == pytest.approx(start, abs=0.05)
        page.evaluate("sought.length = 0; document.querySelectorAll('audio').forEach((audio) => audio.pause())")

    def named(text: str, start: float) -> Any:
        label = f"{text}, {start:.2f} s"
        return strip.locator(f'button[aria-label^="play from"][aria-label$="{label}"]')

    for text, start in words:
        named(text, start).click()
        plays(start)

    # by keys: the strip is one stop of the Tab key, arrows move within it
    assert strip.locator("button").evaluate_all("all => all.filter((el) => el.tabIndex === 0).length") == 1
    page.locator(".compare").nth(card).locator("audio").nth(1).focus()
    for _ in range(8):  # the player has stops of its own
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.strip button')"):
            break
    for key, (text, start) in zip(("Enter", "Space", "Enter"), words, strict=True):
        page.keyboard.press("Home")
        for _ in range(strip.locator("button").count()):
            if page.evaluate("document.activeElement.getAttribute('aria-label')").endswith(f"{text}, {start:.2f} s"):
                break
            page.keyboard.press("ArrowRight")
        page.keyboard.press(key)
        plays(start)
    page.keyboard.press("Tab")
    assert not strip.evaluate("(el) => el.contains(document.activeElement)")


LANE = """(strip) => {
  const lane = strip.querySelector(".lane"), all = lane.getBoundingClientRect();
  return [...lane.querySelectorAll("i")].map((el) => {
    const box = el.getBoundingClientRect(), probe = document.createElement("b");
    probe.style.color = el.classList.contains("up") ? "var(--good)" : "var(--bad)";
    lane.append(probe);
    const wanted = getComputedStyle(probe).color;
    probe.remove();
    return { left: (box.left - all.left) / all.width, right: (box.right - all.left) / all.width,
             top: (box.top - all.top) / all.height, bottom: (box.bottom - all.top) / all.height, title: el.title,
             colored: getComputedStyle(el).backgroundColor === wanted };
  });
}"""


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_credit_is_a_lane_below_the_waveform(opened: Any, tmp_path: Path, width: int, scheme: str) -> None:
    item = heard("one two three", "one too three", [(0.0, 0.4), (0.5, 1.0), (1.0, 2.0)])
    steps = [0.0] * 5 + [2.0] * 5 + [-1.0] * 10 + [-0.5]  # ten frames a second, and the stop
    clip = item.clips[0]
    assert clip.strip is not None
    clip.credit = credit_of(steps, 20, 10.0, clip.strip.marks, 2.0)
    page = opened(write_report(ReportData("page", None, before_after=[item]), tmp_path / "index.html"), width, scheme)
    strip = page.locator(".strip").first
    strip.scroll_into_view_if_needed()
    assert page.locator(".lane:not(.key)").count() == 1, "the second clip has none"
    up, down, stop = strip.evaluate(LANE)
    assert (up["left"], up["right"]) == pytest.approx((0.25, 0.5), abs=0.01)
    assert (down["left"], down["right"]) == pytest.approx((0.5, 1.0), abs=0.01)
    assert stop["right"] == pytest.approx(1.0, abs=0.01) and 0.95 < stop["left"] < 1
    # sizes 2, 1 and 0.5 of 2: up from the middle to the top, down by half and a quarter of the lower half
    assert [(bar["top"], bar["bottom"]) for bar in (up, down, stop)] == [
        pytest.approx(ends, abs=0.02) for ends in ((0, 0.5), (0.5, 0.75), (0.5, 0.625))]
    assert [bar["title"] for bar in (up, down, stop)] == [
        "0.50 to 1.00 s: +2.00", "1.00 to 2.00 s: -1.00", "the stop: -0.50"]
    assert all(bar["colored"] for bar in (up, down, stop))
    lane = strip.get_by_role("img")
    assert lane.get_attribute("aria-label") == (
        "credit: 0.50 s made likelier, 1.00 s made less likely, the stop -0.50")
    # by keys a word says what falls on it; a click on the lane plays as one on the waveform does
    names = strip.locator("button").evaluate_all("all => all.map((el) => el.getAttribute('aria-label'))")
    assert names == ["play from ‘one’, 0.00 s", "play from ‘too’, substituted for ‘two’, credit +2.00, 0.50 s",
                     "play from ‘three’, credit -1.00, 1.00 s"]
    page.evaluate(SLOWLY)
    strip.locator("button").first.focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    page.wait_for_function(PLAYS_ON, arg=[0, 0, 1.0])
    page.evaluate("sought.length = 0; document.querySelectorAll('audio').forEach((audio) => audio.pause())")
    box = lane.bounding_box()
    lane.click(position={"x": 0.3 * box["width"], "y": 4})
    page.wait_for_function(PLAYS_ON, arg=[0, 0, 0.6])
    assert page.evaluate("sought") == [pytest.approx(0.6, abs=0.05)]
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("make", [report, dashboard])
def test_the_strip_plays_from_anywhere_and_shows_where_it_is(opened: Any, tmp_path: Path, make: Any) -> None:
    page = opened(make(tmp_path), 390, "dark")
    page.evaluate(SLOWLY)
    wave = page.locator(".compare .wave").first
    wave.scroll_into_view_if_needed()
    assert not wave.locator(".head").is_visible()
    box = wave.bounding_box()
    wave.click(position={"x": 0.75 * box["width"], "y": 20})
    seconds = page.locator("audio").first.evaluate("(audio) => audio.duration")
    page.wait_for_function(PLAYS_ON, arg=[0, 0, 0.75 * seconds])
    assert page.evaluate("sought") == [pytest.approx(0.75 * seconds, abs=0.05)]

    def head() -> list[float]:
        return wave.evaluate("""(wave) => { const head = wave.querySelector(".head").getBoundingClientRect(),
          all = wave.getBoundingClientRect(), audio = document.querySelector("audio");
          return [(head.left + 1 - all.left) / all.width, audio.currentTime / audio.duration]; }""")

    first = head()
    page.wait_for_timeout(300)
    second = head()
    assert first[0] == pytest.approx(first[1], abs=0.02) and second[0] == pytest.approx(second[1], abs=0.02)
    assert second[0] > first[0] >= 0.74


def test_one_sound_at_a_time_in_the_report_too(opened: Any, tmp_path: Path) -> None:
    page = opened(report(tmp_path))
    page.evaluate(SLOWLY)
    for side in (0, 1):
        page.locator(".strip").nth(side).locator("button").first.click()
        page.wait_for_function(PLAYS_ON, arg=[0, side, 0.1])
    assert page.evaluate("[...document.querySelectorAll('audio')].map((audio) => audio.paused)") == [True, False]


@pytest.mark.parametrize("width", [1280, 390])
def test_words_that_stand_close_do_not_cover_each_other(opened: Any, tmp_path: Path, width: int) -> None:
    words = "I am as it is to be or we go on in at an internationalization of a".split()
    spans = [(0.1 + 0.1 * i, 0.18 + 0.1 * i) for i in range(len(words))]
    item = heard(" ".join(words), " ".join(words).lower(), spans)
    page = opened(write_report(ReportData("close", None, before_after=[item]), tmp_path / "index.html"), width)
    page.wait_for_function("getComputedStyle(document.querySelector('.strip .words')).getPropertyValue('--rows') > 1")
    wave, *boxes = page.locator(".strip").first.evaluate(BOXES)
    assert len(boxes) == len(words) and page.evaluate("document.documentElement.scrollWidth") <= width
    for i, (left, top, right, bottom, start) in enumerate(boxes):
        assert wave[0] - 0.5 <= left and right <= wave[2] + 0.5
        at = wave[0] + start / 2.0 * (wave[2] - wave[0])
        assert left == pytest.approx(at, abs=1) or right == pytest.approx(wave[2], abs=1)  # the last ones are moved in
        for other in boxes[i + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
    below = page.locator(".strip").first.evaluate("(el) => el.getBoundingClientRect().bottom")
    assert max(box[3] for box in boxes) <= below


def test_blind_listening_has_the_waveform_without_words(opened: Any, tmp_path: Path) -> None:
    page = opened(dashboard(tmp_path))
    assert page.locator("#list .strip button").count() > 0
    page.get_by_role("button", name="Blind A/B listening").click()
    assert page.locator("#blind .strip path").count() == 2 and page.locator("#blind .strip button").count() == 0
    assert page.locator("#blind .strip i").count() == 0  # nor where one went wrong
    page.evaluate(SLOWLY)
    page.locator("#blind .wave").nth(1).click()
    page.wait_for_function(PLAYS_ON, arg=[0, 1, 0.3])


def test_what_cannot_be_heard_has_no_strip(opened: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", pairs=1)
    for file in (run / "audio" / "scores").iterdir():
        file.unlink()
    page = opened(write_dashboards(run)[0])
    assert page.locator(".pair .clip").all_inner_texts()[0].count("no speech in this page") == 1
    assert page.locator(".strip").count() == 0
    page = opened(write_report(full_data(), tmp_path / "index.html"))
    assert page.locator("audio").count() == 2 and page.locator(".strip").count() == 0
