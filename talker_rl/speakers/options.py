"""Options of ``talker-rl speaker``. Imports nothing heavy, since every command parses them."""

from __future__ import annotations

import argparse
from typing import Any

from talker_rl.base.parsers import add_verb

SPEAKER_EXAMPLES = """\
talker-rl speaker list --model micro
  talker-rl speaker add --model Qwen/Qwen2.5-Omni-7B --name Nova --wav nova.wav --cond-from Chelsie -o nova/spk_dict.pt
  talker-rl run -c stages/3-speakers model.speakers=nova/spk_dict.pt
  talker-rl speaker compare --run-dir runs/3-speakers        who can be told from whom, before and after"""

ADD_TEXT = """\
Add a speaker: a new entry of spk_dict.pt, checked by shape and by sound.

An entry holds three things. ref_mel, of a recording, is what the DiT's speaker encoder hears. cond is an x-vector; the
network that makes it was never released, so it can only be borrowed (--cond-from, one speaker's or a mix), brought
(--cond FILE) or left at zero (--cond zero, which costs words: listen). How much of the timbre comes from which depends
on the model. bos_token is the text id that announces the speaker to the Talker: a row of the embedding that nothing
uses yet (one is chosen and told), which the Talker knows nothing of until it is trained on it: see
stages/3-speakers. --bos-from SPEAKER takes an old speaker's instead: that one's prosody with the new
timbre, and no training.

The checkpoint is not written to. -o FILE.pt is used with model.speakers=FILE.pt, or by transformers' load_speakers;
-o DIR is a checkpoint folder that shares the weights by links and has the speaker in it.

Of a Qwen3-Omni a speaker is a row of the Talker's codec embedding: --cond-from mixes it of old ones,
-o FILE.safetensors holds it, and it speaks like them until the Talker is trained on it."""
ADD_EXAMPLES = """\
talker-rl speaker add --model micro --name Nova --wav nova.wav --cond-from Chelsie Ethan -o nova/spk_dict.pt
  talker-rl speaker add -c my.yaml --name Ann --wav ann.flac --cond-from Ethan:0.7 Chelsie:0.3 -o my-checkpoint
  talker-rl speaker add --model DIR --name Bo --ref-mel bo.safetensors --cond bo.safetensors --bos-from Ethan -o b.pt"""


def add_speaker_options(speaker: argparse.ArgumentParser) -> None:
    """The three commands of the verb."""
    what = speaker.add_subparsers(dest="what", metavar="WHAT", required=True)

    shown = _command(what, "list", "names, shapes and bos tokens of a model's speakers", "talker-rl speaker list")
    shown.add_argument("--json", action="store_true", help="print JSON")

    add = _command(what, "add", "a new speaker, from a recording", ADD_EXAMPLES)
    add.description = ADD_TEXT
    add.add_argument("--name", required=True, help="the new speaker's")
    sound = add.add_mutually_exclusive_group()
    sound.add_argument("--wav", metavar="FILE", help="recording of one voice, 3 s or more, any rate: gives ref_mel "
                       "(24 kHz, 80 bins, hop 240, natural-log amplitude; at the level of the model's own references)")
    sound.add_argument("--ref-mel", metavar="FILE", help="safetensors file with a ref_mel, (1, frames, 80)")
    add.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of the recording at most (default 10)")
    cond = add.add_mutually_exclusive_group()
    cond.add_argument("--cond-from", nargs="+", metavar="SPEAKER[:WEIGHT]",
                      help="an old speaker's cond (Qwen3-Omni: its row), or a mix")
    cond.add_argument("--cond", metavar="FILE|zero", help="safetensors file with a cond, (1, 192); or zero")
    bos = add.add_mutually_exclusive_group()
    bos.add_argument("--bos-token", type=int, metavar="ID", help="text id that announces the speaker (default: the "
                     "first free row of the embedding that the Talker can tell from the others)")
    bos.add_argument("--bos-from", metavar="SPEAKER", help="an old speaker's id: its prosody, no training")
    add.add_argument("--out", "-o", required=True, metavar="FILE.pt|DIR", help="where it goes, with the old speakers")
    add.add_argument("--overwrite", action="store_true", help="replace what is there")
    add.add_argument("--say", nargs="+", default=[], metavar="TEXT", help="texts to hear it with (default: a few)")
    add.add_argument("--codes", metavar="FILE", help="hear it with these codes, .jsonl of {text, codes}, and not with "
                     "what the model says: neither Thinker nor Talker are loaded then")
    add.add_argument("--wavs", metavar="DIR", help="keep what was heard there, to listen")
    add.add_argument("--no-sound", action="store_true", help="check shapes only: nothing is decoded")
    add.add_argument("--dry-run", action="store_true", help="check shapes, say what would be written, and stop")

    compare = _command(what, "compare", "tell the speakers of a finished run apart, before and after training",
                       "talker-rl speaker compare --run-dir runs/3-speakers --speaker Nova")
    compare.add_argument("--run-dir", required=True, metavar="DIR", help="run that was evaluated, with "
                         "prompts.speaker_assignment {eval: all}")
    compare.add_argument("--variant", metavar="NAME", help="trained variant (default: the one that was best on dev)")
    compare.add_argument("--speaker", metavar="NAME", help="the one in question (default: those that model.speakers "
                         "added)")
    compare.add_argument("--entry", metavar="SPEAKER", help="decode all with this one's entry: what the Talker alone "
                         "does for the voices")
    compare.add_argument("--json", action="store_true", help="print JSON")


def _command(what: Any, name: str, text: str, example: str) -> argparse.ArgumentParser:
    command = add_verb(what, name, text, example)
    if name != "compare":
        command.add_argument("--config", "-c", action="append", default=[], metavar="YAML",
                             help="configuration, a file or a name: its model, token2wav and reward.recognizer")
        command.add_argument("--model", metavar="PATH", help='short for model.path=: "micro", a folder or a hub name')
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. model.device=cuda")
    command.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    return command
