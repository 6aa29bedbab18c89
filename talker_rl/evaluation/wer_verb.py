"""The verb ``wer``: its options, and its run over two files. Imports nothing heavy before it runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from talker_rl.base.errors import ConfigError

WER_EXAMPLES = """\
talker-rl wer reference.tsv heard.tsv --metric cer --detail
  talker-rl wer meta.lst heard.tsv --protocol seed-tts-eval --lang zh"""


def add_wer_options(wer: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    wer.add_argument("reference", metavar="REF", help="what should have been said: one key<TAB>text line per "
                     "utterance; with --protocol also a list of seed-tts-eval (.lst)")
    wer.add_argument("hypothesis", metavar="HYP", help="what was heard, matched by key; a missing key, or "
                     "one without a text, is empty. Tags (<|zh|>) are taken out, and told")
    wer.add_argument("--metric", choices=("wer", "cer"), default="wer", help="wer: words, each CJK character one. "
                     "cer: characters, spaces not counted. (default: wer)")
    wer.add_argument("--protocol", choices=("seed-tts-eval",), help="score as seed-tts-eval does: its marks, its mean "
                     "over utterances; a key missing from HYP is left out. Needs --lang, and for zh the package zhconv")
    wer.add_argument("--lang", choices=("zh", "en"), help="language of the texts, for --protocol")
    shape = wer.add_mutually_exclusive_group()
    shape.add_argument("--detail", action="store_true", help="each utterance's alignment (* is a gap), and what was "
                       "mistaken how often")
    shape.add_argument("--json", action="store_true", help="only the figures, rates as fractions")
    wer.add_argument("--out", metavar="FILE", help="write all of it there, and print only the figures")


def verb(args: argparse.Namespace) -> int:
    """Compare the files, print the figures, and write what ``--out`` asks for."""
    from talker_rl.base.disk import atomic_write
    from talker_rl.base.places import check_writable_file

    if args.out:
        check_writable_file(args.out)
    data, figures, full, notes = (_by_protocol if args.protocol else _by_metric)(args)
    if args.json:
        figures = full = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
        sys.stderr.writelines(f"note: {note}\n" for note in notes)
    if args.out:
        atomic_write(Path(args.out), full)
    print(figures if args.out else full, end="")
    return 0


Report = tuple[dict[str, Any], str, str, list[str]]
"""Plain data, the figures as text, all of it as text, notes on the files."""


def _by_metric(args: argparse.Namespace) -> Report:
    from talker_rl.evaluation import wer_tool

    if args.lang:
        raise ConfigError("--lang belongs to --protocol: the other figures need no language",
                          where="talker-rl wer --lang", fix="add --protocol seed-tts-eval, or leave --lang out")
    reference = wer_tool.read_texts(Path(args.reference))
    hypothesis = wer_tool.read_texts(Path(args.hypothesis), bare_keys=True)
    result = wer_tool.compare(reference, hypothesis, args.metric)
    return result.figures(), wer_tool.report(result), wer_tool.report(result, detail=args.detail), result.notes


def _by_protocol(args: argparse.Namespace) -> Report:
    from talker_rl.evaluation import seed_tts_files as files

    if args.lang is None or args.metric != "wer":
        raise ConfigError("seed-tts-eval's rules depend on the language, and know one metric",
                          where="talker-rl wer --protocol", fix="add --lang zh or --lang en, and no --metric")
    scored, notes = files.compare_files(Path(args.reference), Path(args.hypothesis), args.lang)
    plain, full = (files.as_text(scored, args.lang, notes, detail=detail) for detail in (False, args.detail))
    return files.as_data(scored, args.lang), plain, full, notes
