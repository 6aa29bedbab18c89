"""Options of ``talker-rl export``. Imports nothing heavy, since every command parses them."""

from __future__ import annotations

import argparse

EXPORT_HELP = "write a trained Talker as a whole checkpoint or as a PEFT adapter"

EXPORT_TEXT = """\
Take a trained Talker out of the workbench: as a whole checkpoint that transformers loads and speaks with, or as a PEFT
adapter alone. Both come with a model card: data, loss, figures with intervals, lineage, and code that speaks.

--merge keeps the original files (config, tokenizer, speakers, index) and shards. Only shards that hold trained
tensors are written anew, at the same size and precision; the others are hard links to the original's, which take no
space (--copy makes copies). Weights are merged in float32 and then rounded to the checkpoint's own precision; the
command says what that costs, which can be more than a short training changed. With --talker-dtype float32 the merged
tensors stay float32 and nothing is rounded, as long as the checkpoint is loaded in float32 too: the card's code does.
It needs about four bytes of memory a Talker parameter twice, and no GPU."""

EXPORT_EXAMPLES = """\
talker-rl export --run-dir runs/demo --merge exports/demo
  talker-rl export --run-dir runs/demo --merge exports/demo --dry-run        what would be written, and its size
  talker-rl export --run-dir runs/7b --merge exports/7b --talker-dtype float32
  talker-rl export --run-dir runs/7b --variant dpo --adapter exports/7b-dpo-lora
  talker-rl export my_adapter --model /models/Qwen2.5-Omni-7B --merge exports/7b-mine"""


def add_export_options(export: argparse.ArgumentParser) -> None:
    """All of them, and what the verb does."""
    export.description = EXPORT_TEXT
    export.add_argument("adapter_dir", nargs="?", metavar="ADAPTER", help="folder of an adapter (or of full Talker "
                        "weights), where it is not a run's")
    export.add_argument("--run-dir", metavar="DIR", help="folder of a finished run")
    export.add_argument("--variant", metavar="NAME", help="which of the run's variants (default: the only one, or the "
                        "one that was best on dev)")
    export.add_argument("--model", metavar="PATH", help="the base: a folder or hub name (default: the run's, or "
                        "what the adapter names)")
    export.add_argument("--merge", metavar="OUT", help="write a whole checkpoint there")
    export.add_argument("--adapter", metavar="OUT", help="write the PEFT adapter there")
    export.add_argument("--base-name", metavar="OWNER/NAME", help="the base's name on the hub, for the card and the "
                        "adapter's configuration (default: from --model where it is one, else its folder's name)")
    export.add_argument("--talker-dtype", choices=("auto", "float32"), default="auto", help="precision in which "
                        "--merge stores the merged tensors; auto: the checkpoint's own, which rounds them")
    export.add_argument("--copy", action="store_true", help="copy unchanged shards, where hard links are the default")
    export.add_argument("--overwrite", action="store_true", help="replace an earlier export at OUT; nothing else is "
                        "ever replaced")
    export.add_argument("--no-check", action="store_true", help="don't compare log-probs of the run's own pairs before "
                        "and after the merge")
    export.add_argument("--dry-run", action="store_true", help="print what would be written, with sizes, and stop")
    export.add_argument("--quiet", "-q", action="store_true", help="no progress, only the result")
    export.add_argument("--debug", action="store_true", help="show the traceback of an error")
