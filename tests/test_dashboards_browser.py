"""The pages in headless Chromium: no network, no error, charts, sound, filters, keys, sorting, blind listening.

Screenshots are kept under build/screenshots.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dashboard_helpers import write_run, write_sweep
from test_report import full_data, tone

from talker_rl.data.import_pairs import import_votes
from talker_rl.records.candidate import Candidate
from talker_rl.records.pair import Pair
from talker_rl.records.prompt import Prompt
from talker_rl.report.audio import FORMATS, data_uri
from talker_rl.report.blocks import Figure, Page
from talker_rl.report.browser import Browser, browser
from talker_rl.report.collect import collect
from talker_rl.report.dashboards import PAGES, render, write_dashboards
from talker_rl.report.length import length_page
from talker_rl.report.page import write_report
from talker_rl.store.shards import ShardFolder

SHOTS = Path(__file__).resolve().parents[1] / "build" / "screenshots"
ALL_CHARTS = """async () => {
  const cards = [...document.querySelectorAll("[data-chart]")];
  for (const card of cards) {
    card.scrollIntoView();
    while (!card.querySelector(".js-plotly-plot")) await new Promise((done) => setTimeout(done, 20));
  }
  scrollTo(0, 0);
  return cards.map((card) => card.querySelector(".plot").data.length);
}"""


TRIAL = """async () => {
  const spot = document.getElementById("browser");
  const all = [...spot.querySelectorAll("audio")];
  for (const audio of all) while (!audio.src) await new Promise((done) => setTimeout(done, 10));
  const bare = document.getElementById("blind").cloneNode(true);
  bare.querySelectorAll("audio").forEach((audio) => audio.removeAttribute("src"));
  return [(spot.innerText + bare.outerHTML).toLowerCase(), spot.querySelector("#blind .text").innerText,
          ...all.map((audio) => audio.src)];
}"""
"""What is to be read and heard of a trial: all visible text and the trial's own markup, then text and both sounds."""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sweep(tmp_path_factory.mktemp("browser") / "sweep", pairs=30)
    write_dashboards(folder)
    return folder


def expected_traces(page: Page) -> list[int]:
    return [len(next(iter(item.views.values())).data) for section in page.sections for item in section.items
            if isinstance(item, Figure) and item.views]


def shoot(page: Any, name: str, *, full_page: bool = True) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=full_page)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width, scheme", [(1280, "light"), (420, "dark")])
def test_a_page_draws_all_its_data_at_any_width(opened: Any, sweep: Path, name: str, width: int, scheme: str) -> None:
    page = opened(sweep / "report" / f"{name}.html", width, scheme)
    assert page.evaluate(ALL_CHARTS) == expected_traces(PAGES[name](collect([sweep])))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(251, 250, 248)"
    assert light == (scheme == "light")
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert page.evaluate("document.querySelector('.js-plotly-plot').layout.font.color") == ink
    shoot(page, f"{name}-{width}-{scheme}")


def test_a_view_can_be_chosen_and_a_variant_hidden(opened: Any, sweep: Path) -> None:
    page = opened(sweep / "report" / "length.html")
    card = page.locator("[data-chart]", has_text="Margins during training")
    card.scroll_into_view_if_needed()
    card.locator(".js-plotly-plot").wait_for()
    card.locator("select").select_option(label="natural: sft (seed 1)")
    assert card.locator(".plot").evaluate("el => el.data.length") == 6
    first = page.locator("[data-chart]").first
    first.scroll_into_view_if_needed()
    first.locator(".js-plotly-plot").wait_for()
    page.get_by_role("button", name="dpo", exact=True).click()
    assert first.locator(".plot").evaluate("el => el.data.map((t) => t.visible)") == [False, False] + [True] * 4


def test_the_scheme_can_be_switched_and_is_kept(opened: Any, sweep: Path) -> None:
    page = opened(sweep / "report" / "length.html", scheme="dark")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="light or dark").click()
    after = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert before != after == "rgb(251, 250, 248)"
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == after


def test_a_heading_sorts_by_click_and_by_key(opened: Any, sweep: Path) -> None:
    page = opened(sweep / "report" / "loss_ablation.html")

    def column(number: int) -> list[str]:
        return page.locator("table.sortable tbody tr").evaluate_all(
            "(rows, n) => rows.map((row) => row.cells[n].textContent.trim())", number)

    head = page.locator("th", has_text=re.compile(r"^WER$"))
    head.get_by_role("button").click()
    values = [float(text.split("%")[0]) for text in column(4)]
    assert values == sorted(values) and values[0] < values[-1] and head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").press("Enter")
    assert [float(text.split("%")[0]) for text in column(4)] == values[::-1]
    page.locator("th", has_text="|drift|").get_by_role("button").click()
    drifts = column(8)
    known = [float(text.split(" points")[0]) for text in drifts if text != "–"]
    assert known == sorted(known) and drifts[len(known):] == ["–"] * (len(drifts) - len(known))


def test_speech_plays_one_clip_at_a_time(opened: Any, sweep: Path) -> None:
    page = opened(sweep / "report" / "length.html")
    # Slowly, or a clip of a second is over before a page that still draws its charts can be asked about it.
    page.evaluate("document.addEventListener('play', (event) => { event.target.playbackRate = 0.1; }, true)")
    page.keyboard.press("j")
    page.keyboard.press("r")
    state = """(side) => { const a = document.querySelector(`.pair.at [data-side=${side}] audio`);
      return a && a.duration > 0 && a.currentTime > 0.05 && !a.paused ? a.duration : false; }"""
    assert page.wait_for_function(state, arg="rejected").json_value() == pytest.approx(1.0, abs=0.05)
    page.keyboard.press("c")
    assert page.wait_for_function(state, arg="chosen").json_value() == pytest.approx(1.2, abs=0.05)
    assert page.evaluate("[...document.querySelectorAll('audio')].filter((a) => !a.paused).length") == 1
    page.keyboard.press(" ")  # the other side
    page.wait_for_function(state, arg="rejected")


def test_a_clip_started_before_it_was_seen_plays_on(opened: Any, sweep: Path) -> None:
    page = opened(sweep / "report" / "length.html")
    state = page.evaluate("""async () => {
      const key = (name) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
      key("j"); key("r"); // in one task: the observer that loads what is scrolled to has not run yet
      const audio = document.querySelector(".pair.at [data-side=rejected] audio");
      let loads = 0;
      audio.addEventListener("loadstart", () => loads += 1);
      audio.playbackRate = 0.1;
      for (let i = 0; i < 1000 && !(audio.currentTime > 0.01); i++) await new Promise((done) => setTimeout(done, 20));
      await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 300)));
      return [loads, audio.paused];
    }""")
    assert state == [1, False]


@pytest.mark.parametrize("audio_format", sorted(FORMATS))
def test_every_audio_format_can_be_played(opened: Any, sweep: Path, audio_format: str) -> None:
    page = opened(sweep / "report" / "stability.html")
    seconds = page.evaluate("""(uri) => new Promise((done) => { const a = new Audio(uri);
      a.onloadedmetadata = () => done(a.duration); a.onerror = () => done(-1); })""",
                            data_uri(tone(0.5), 24_000, audio_format))
    assert seconds == pytest.approx(0.5, abs=0.06)


def test_filters_search_and_keys(opened: Any, sweep: Path) -> None:
    page = opened(sweep / "report" / "stability.html")
    shown = page.locator("#count")

    def by(name: str) -> str:
        button = page.locator("#filters").get_by_role("button", name=name)
        button.click()
        text = shown.inner_text().split(" of ")[0]
        button.click()
        return text

    # 30 pairs: the texts go round by four, every third chosen is longer, every fifth rejected was cut.
    assert [by(name) for name in ("substitution", "deletion", "insertion", "chosen longer", "chosen shorter", "cap hit")
            ] == ["7", "8", "7", "10", "20", "6"]
    assert shown.inner_text() == "30 of 30 pairs"
    assert page.locator(".pair").count() < 30  # the rest is made when it is scrolled to
    page.keyboard.press("/")
    page.keyboard.type("森林")
    assert shown.inner_text() == "8 of 30 pairs" and page.locator(".pair").first.inner_text().startswith("太阳森林")
    page.keyboard.press("Escape")
    for key, at in (("j", 0), ("j", 1), ("j", 2), ("k", 1)):
        page.keyboard.press(key)
        assert page.locator(".pair").evaluate_all("all => all.findIndex((el) => el.matches('.at'))") == at
    assert page.evaluate("document.activeElement.matches('.pair.at')")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    page.locator("#search").fill("no such words")
    assert "No pair passes" in page.locator("#list").inner_text()


def test_errors_are_marked_by_symbol_and_escaped(opened: Any, sweep: Path) -> None:
    page = opened(sweep / "report" / "length.html")
    marks = page.locator(".pair").evaluate_all("""all => all.slice(0, 4).map((el) =>
      [...el.querySelectorAll(".said .tok:is(.S,.D,.I)")].map((m) =>
        getComputedStyle(m, "::before").content + m.firstChild.textContent))""")
    assert marks == [['"−"bottle'], [], ['"+"garden'], ['"≠"honey']]
    assert "paper money & <b>tea</b>." in page.locator(".pair .text").nth(3).inner_text()


def test_blind_listening_hides_the_labels_and_exports_the_votes(opened: Any, sweep: Path, tmp_path: Path) -> None:
    page = opened(sweep / "report" / "length.html", 420, "dark")
    page.get_by_role("button", name="Blind A/B listening").click()
    pairs = {p.text: [] for p in ShardFolder(sweep / "arms" / "biased" / "pairs").read_all(Pair)}
    seen, keys = [], ["a", "b", "t"] * 10
    data = json.loads(page.locator("#pair-data").inner_text())
    clips = json.loads(page.locator("#clip-data").inner_text())
    for key in keys:
        spot, *heard = page.evaluate(TRIAL)
        assert not any(word in spot for word in ("chosen", "rejected", "reward", "margin", "wer"))
        seen.append(heard)
        page.keyboard.press(key)
    assert {text for text, _, _ in seen} == set(pairs)
    shoot(page, "blind-420-dark", full_page=False)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export votes").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    votes = json.loads(file.read_text())["votes"]
    assert len(votes) == 30 and {v["chosen_was"] for v in votes} == {"A", "B"}

    expected = {}  # what was voted for, by the sound that was played
    by_sound = {(clips[p["chosen"]["clip"]], clips[p["rejected"]["clip"]]): p["id"] for p in data["pairs"]
                if p["run"] == "biased"}
    for (_, a, b), key in zip(seen, keys, strict=True):
        straight = (a, b) in by_sound
        identity = by_sound[(a, b) if straight else (b, a)]
        expected[identity] = "tie" if key == "t" else "chosen" if (key == "a") == straight else "rejected"
    assert {v["pair_id"]: v["vote"] for v in votes} == expected

    run = sweep / "arms" / "biased"
    records = ShardFolder(run / "pairs").read_all(Pair)
    made, reasons = import_votes(file, [Prompt(p.text, p.speaker, prompt_id=p.prompt_id) for p in records],
                                 ShardFolder(run / "rollouts").read_all(Candidate))
    assert len(made) + sum(reasons.values()) == 30 and reasons["vote_tie"] == 10

    page.get_by_role("button", name="Leave").click()
    assert "your votes agree with the scores" in page.locator("#count").inner_text()
    page.reload()
    page.get_by_role("button", name="Blind A/B listening").click()
    assert "30 votes" in page.locator("#blind").inner_text()  # kept over a reload


def test_two_hundred_pairs_are_light(opened: Any, sweep: Path, tmp_path: Path) -> None:
    study = collect([sweep])
    some = browser(study, pairs=60, audio_format="opus", max_bytes=10**8)
    rng = np.random.default_rng(0)
    seconds = np.linspace(0, 1, 3 * 24_000)
    clip = data_uri((0.2 * np.sin(900 * seconds) + 0.05 * rng.standard_normal(seconds.size)).astype(np.float32), 24_000)
    pairs = [json.loads(json.dumps(some.pairs[i % 60])) | {"id": f"{i}"} for i in range(200)]
    clips = {}
    for i, pair in enumerate(pairs):
        for side in ("chosen", "rejected"):
            pair[side]["clip"] = f"{i}-{side}"
            clips[f"{i}-{side}"] = clip  # 3 s of tone and noise
    path = tmp_path / "large.html"
    path.write_text(render(length_page(study), Browser(pairs, clips, 200, [])), encoding="utf-8")
    assert path.stat().st_size <= 25 * 2**20
    (tmp_path / "blank.html").write_text("<!doctype html><title>blank</title><link rel=icon href='data:,'>")
    page = opened(tmp_path / "blank.html")
    metrics = page.context.new_cdp_session(page)
    metrics.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelector('.js-plotly-plot')")
    page.keyboard.press("j")
    page.wait_for_function("document.querySelector('.pair.at audio').src")
    found = {m["name"]: m["value"] for m in metrics.send("Performance.getMetrics")["metrics"]}
    print(f"{path.stat().st_size / 2**20:.1f} MiB, {found['TaskDuration']:.2f} s of CPU until it answers")
    # Work is counted, not timed: how long it takes is the processor's. Of the 400 clips only those in sight are loaded.
    assert 0 < found["Nodes"] <= 10_000 and found["LayoutCount"] <= 300 and found["JSHeapUsedSize"] <= 40 * 2**20
    assert page.locator("audio[src]").count() <= 40


def test_empty_and_one_point_pages_explain_themselves(opened: Any, tmp_path: Path) -> None:
    for folder in (write_run(tmp_path / "empty", (), pairs=0), write_run(tmp_path / "one", pairs=1)):
        for path in write_dashboards(folder)[: 3 if folder.name == "empty" else 1]:
            page = opened(path, 420)
            page.evaluate(ALL_CHARTS)
            assert page.evaluate("document.documentElement.scrollWidth") <= 420
            if folder.name == "empty":
                assert re.search("Not drawn|nothing has been evaluated", page.locator("main").inner_text())
                assert "the folder holds none" in page.locator("main").inner_text()


def test_a_long_name_in_a_note_does_not_widen_the_page(opened: Any, tmp_path: Path) -> None:
    page = Page("length", "notes", "", [], notes=["within_pairs.train.accuracy_chosen_shorter.and_more: none"])
    path = tmp_path / "notes.html"
    path.write_text(render(page, Browser([], {}, 0, [])), encoding="utf-8")
    assert opened(path, 390).evaluate("document.documentElement.scrollWidth") <= 390


def test_the_report_shares_the_base(opened: Any, tmp_path: Path) -> None:
    page = opened(write_report(full_data(), tmp_path / "index.html"), 420, "dark")
    assert page.evaluate(ALL_CHARTS) == [2, 2, 2, 1]
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    shoot(page, "report-420-dark")
