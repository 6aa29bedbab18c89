"""Every file of texts is read alike: UTF-8, whatever system wrote it, with byte order marks or other line breaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from talker_rl.data.completions import import_completions
from talker_rl.data.import_pairs import import_pairs, import_votes
from talker_rl.data.prompts import read_prompts
from talker_rl.data.seed_lst import read_lst
from talker_rl.evaluation.wer_tool import read_texts
from talker_rl.records.candidate import Candidate
from talker_rl.records.pair import pair_id_of
from talker_rl.records.prompt import Prompt
from talker_rl.reward.config import ServiceConfig
from talker_rl.reward.service.server import read_token
from talker_rl.speakers.sound import read_codes

PROMPTS = [Prompt(text="river garden.", speaker="Ann"), Prompt(text="苹果。", speaker="Ann")]


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def votes(path: Path) -> int:
    candidates = [Candidate("p", f"p-{k}", "Ann", k, [k + 1], 8294, "eos", [-1.0] * 2) for k in (0, 1)]
    return len(import_votes(path, [Prompt(text="one.", speaker="Ann", prompt_id="p")], candidates)[0])


PAIR = {"speaker": "Ann", "chosen": [1, 8294], "rejected": [2, 8294]}
VOTE = {"format": "talker-rl-votes-1", "votes": [
    {"pair_id": pair_id_of("p", [1, 8294], [2, 8294]), "prompt_id": "p", "chosen_id": "p-0", "rejected_id": "p-1",
     "vote": "chosen"}]}
SPEAKER = "Ann"


def prompts(path: Path) -> int:
    return len(read_prompts(str(path), default_speaker=SPEAKER).prompts)


READERS: dict[str, tuple[str, str, Callable[[Path], int]]] = {  # what -> (name, content, rows that must be found)
    "prompts.txt": ("p.txt", "river garden.\n苹果。\n", prompts),
    "prompts.jsonl": ("p.jsonl", jsonl({"text": "river garden."}, {"text": "苹果。"}), prompts),
    "prompts.csv": ("p.csv", "text,lang\nriver garden.,en\n苹果。,zh\n", prompts),
    "prompts.tsv": ("p.tsv", "text\tlang\nriver garden.\ten\n苹果。\tzh\n", prompts),
    "list": ("m.lst", "a|river garden.\nb|苹果。\n", lambda p: len(read_lst(p))),
    "codes": ("c.jsonl", jsonl({"text": "river garden.", "codes": [1, 2]}, {"text": "苹果。", "codes": [4]}),
              lambda p: len(import_completions(p, PROMPTS)[0])),
    "pairs": ("q.jsonl", jsonl({"text": "river garden.", **PAIR}, {"text": "苹果。", **PAIR}),
              lambda p: len(import_pairs(p, PROMPTS).pairs)),
    "speaker codes": ("s.jsonl", jsonl({"text": "river", "codes": [1]}, {"text": "苹果", "codes": [4]}),
                      lambda p: len(read_codes(str(p)))),
    "transcripts": ("t.tsv", "a\triver garden\nb\t苹果\n", lambda p: list(read_texts(p).texts) == ["a", "b"] and 2),
    "token": ("token", "a-token-that-is-long-enough\n#\n",
              lambda p: 2 * (read_token(ServiceConfig(token_file=str(p))) == "a-token-that-is-long-enough")),
    "votes": ("v.json", json.dumps(VOTE) + "\n", lambda p: 2 * votes(p)),
}


ONE_RECORD = ("votes", "token")
WAYS = {
    "plain": READERS, "bom": READERS, "bom and crlf": READERS,
    "bom further down": [what for what in READERS if what not in ONE_RECORD],
    "invisible": [what for what in READERS if what not in (*ONE_RECORD, "list")],
}


@pytest.mark.parametrize(("written", "what"), [(written, what) for written, all_ in WAYS.items() for what in all_])
def test_a_file_is_read_whatever_system_wrote_it(tmp_path: Path, written: str, what: str) -> None:
    name, content, count = READERS[what]
    data = content.encode()
    if written == "bom and crlf":
        data = data.replace(b"\n", b"\r\n")
    if written.startswith("bom"):
        data = b"\xef\xbb\xbf" + data
    if written == "bom further down":  # cat a.txt b.txt
        first, _, rest = data.partition(b"\n")
        data = first + b"\n\xef\xbb\xbf" + rest
    if written == "invisible":
        data = data.replace("苹果".encode(), "苹\u200b果".encode()).replace(b"garden", "gar\u00adden".encode())
    (tmp_path / name).write_bytes(data)
    assert count(tmp_path / name) == 2


@pytest.mark.parametrize(
    "text", ["river garden.", "\ufeffriver garden.", "river gar\u00adden.\u200b", " river garden.\r\n"]
)
def test_a_row_names_its_prompt_by_text_however_it_is_written(tmp_path: Path, text: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(jsonl({"text": text, "codes": [1, 2]}), encoding="utf-8")
    assert import_completions(file, PROMPTS)[0][0].prompt_id == PROMPTS[0].prompt_id
    file.write_text(jsonl({"text": text, **PAIR}), encoding="utf-8")
    assert import_pairs(file, PROMPTS).pairs[0].prompt_id == PROMPTS[0].prompt_id
