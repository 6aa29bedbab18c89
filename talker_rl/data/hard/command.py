"""``talker-rl prompts hard``: write a prompt file of texts that break Talkers."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from talker_rl.base.errors import PromptError
from talker_rl.base.figures import count
from talker_rl.base.places import check_writable_file
from talker_rl.base.text.unwritten import describe_unwritten
from talker_rl.data.hard import CATEGORIES, FIGURES, SEED_CLASSES, hard_texts
from talker_rl.data.prompts import read_prompts

TEXT = f"""\
Write texts that break Talkers as a prompt file: by rules and a seed, no two texts of the same words, a category and
provenance a line.

{chr(10).join(f"  {name:15} {what}" for name, what in CATEGORIES.items())}

Train and evaluation sets want seeds of their own: seeds that differ, and not by a multiple of {SEED_CLASSES}, share no
text; for others, or for files of your own, use --apart-from.

Numbers are written as they are spoken ("three point five", "三点五"), because error rates compare words and no figure
is spelled out before: with --digits every figure is an error to a recognizer that writes words, and without it every
number to one that writes figures (Whisper often does). So compare the categories {", ".join(FIGURES)}
between models, not with other categories. Summaries do not group by category: evaluate a file of each (--category)."""

EXAMPLES = """\
examples:
  talker-rl prompts hard --lang zh,en --count 480 --seed 1 -o hard_train.jsonl
  talker-rl prompts hard --lang zh,en --count 240 --seed 2 -o hard_eval.jsonl --apart-from my_texts.txt
  talker-rl prompts hard --lang zh --category numbers,tongue_twister --count 5 --dry-run
  talker-rl run -c configs/runs/qwen2.5-omni-7b-dpo.yaml prompts.train=hard_train.jsonl prompts.eval=hard_eval.jsonl"""


def add_options(top: argparse.ArgumentParser) -> None:
    """Its options, and what it does."""
    top.description, top.epilog = TEXT, EXAMPLES
    top.add_argument("--lang", type=_names, default=["zh", "en"], metavar="LANG", help="zh, en, or zh,en (default)")
    top.add_argument("--count", type=int, default=240, metavar="N", help="texts in all, spread evenly (default 240)")
    top.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed gives the same texts (default 0)")
    top.add_argument("--category", type=_names, default=list(CATEGORIES), metavar="NAMES", help="only these, by comma")
    top.add_argument("--digits", action="store_true", help="numbers as figures instead of as spoken")
    top.add_argument("--apart-from", action="append", default=[], metavar="FILE", help="prompt file (or hf:..., as "
                     "prompts.train takes it) none of whose texts may occur, marks and case aside; may be given again")
    top.add_argument("-o", "--out", type=Path, metavar="FILE", help="the .jsonl file to write")
    top.add_argument("--force", action="store_true", help="write over a file that holds something else")
    top.add_argument("--dry-run", action="store_true", help="print the texts instead of writing them")
    top.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def verb(args: argparse.Namespace) -> int:
    """The command.

    Raises:
        PromptError: an unknown language or category, too many texts, a file that cannot be written.
    """
    if args.count < 1 or args.seed < 0:
        args.own.error("--count must be 1 or more, --seed 0 or more")
    if not args.dry_run and (args.out is None or args.out.suffix != ".jsonl"):
        args.own.error("name the file to write: -o FILE.jsonl (or --dry-run)")
    if not args.dry_run:
        check_writable_file(args.out)
    others = [p.text for spec in args.apart_from for p in read_prompts(spec).prompts]
    rows = hard_texts(args.count, args.seed, args.lang, args.category, digits=args.digits, apart_from=others)
    if args.dry_run:
        for row in rows:
            print(f"{row['category']:15} {row['text']}")
        return 0
    _write(args.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), args.force)
    found = Counter((row["category"], row["lang"]) for row in rows)
    print("\n".join(f"{category:15} {lang:6} {n:5}" for (category, lang), n in sorted(found.items())))
    for line in describe_unwritten((row["text"] for row in rows), str(args.out)):
        print(f"note: {line}")
    print(f"{count(len(rows), 'text')} of seed {args.seed}: {args.out}")
    return 0


def _write(path: Path, content: str, force: bool) -> None:
    from talker_rl.base.disk import atomic_write

    if path.exists() and not force and path.read_text(encoding="utf-8", errors="replace") != content:
        raise PromptError("The file is there already and holds something else", where=str(path),
                          fix="name another file, or add --force")
    atomic_write(path, content)
