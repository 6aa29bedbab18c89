"""The three dashboards: folders in, one self-contained HTML file each out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from talker_rl.base.errors import TalkerRLError
from talker_rl.base.places import check_writable_file
from talker_rl.report.ablation import ablation_page
from talker_rl.report.audio import FORMATS
from talker_rl.report.blocks import Page
from talker_rl.report.browser import Browser, browser
from talker_rl.report.collect import collect
from talker_rl.report.html import render_page, write_page
from talker_rl.report.length import length_page
from talker_rl.report.stability import stability_page

PAGES = {"length": length_page, "stability": stability_page, "loss_ablation": ablation_page}
"""File name of each page -> what makes its content."""

PAIRS, MAX_MIB = 200, 25
_SCRIPTS = 6 * 2**20
"""Bytes kept free for Plotly and the charts."""


def write_dashboards(folder: Path) -> list[Path]:
    """Write all three pages of a run folder or a sweep folder into its ``report/``; returns their paths."""
    study = collect([folder])
    heard = browser(study, pairs=PAIRS, audio_format="opus", max_bytes=MAX_MIB * 2**20 - _SCRIPTS)
    return [write_page(render(make(study), heard), folder / "report" / f"{name}.html")
            for name, make in PAGES.items()]


def render(page: Page, heard: Browser) -> str:
    """The page as one HTML string."""
    return render_page("dashboard.html.j2", page=page, browser=heard)


def main(name: str, description: str, argv: Sequence[str] | None = None) -> int:
    """The command line of a script in analysis/: a key of ``PAGES`` and its docstring; returns the exit code."""
    parser = argparse.ArgumentParser(description=description, epilog=(
        f"examples:\n  python analysis/{Path(sys.argv[0]).name} runs/sweep\n"
        f"  python analysis/{Path(sys.argv[0]).name} runs/a runs/b --out a_and_b.html --audio-format mp3"),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER",
                        help="run folders, or a sweep folder (all its arms)")
    parser.add_argument("--out", type=Path, metavar="HTML", help=f"the page (default: FOLDER/report/{name}.html; with "
                        f"several folders {name}.html here)")
    parser.add_argument("--pairs", type=int, default=PAIRS, metavar="N",
                        help="pairs to look at and listen to, at even distances (default: %(default)s)")
    parser.add_argument("--audio-format", choices=sorted(FORMATS), default="opus",
                        help="how speech is embedded (default: %(default)s, the smallest)")
    parser.add_argument("--max-mib", type=int, default=MAX_MIB, metavar="MIB",
                        help="largest page; what does not fit is left silent (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        study = collect(args.folders)
        out = args.out or (args.folders[0] / "report" if len(args.folders) == 1 else Path()) / f"{name}.html"
        check_writable_file(out)
        heard = browser(study, pairs=args.pairs, audio_format=args.audio_format,
                        max_bytes=args.max_mib * 2**20 - _SCRIPTS)
        print(write_page(render(PAGES[name](study), heard), out).resolve())
    except TalkerRLError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
