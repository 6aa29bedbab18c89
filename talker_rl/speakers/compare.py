"""``talker-rl speaker compare``: who can be told from whom on held-out texts, before training and after it.

The utterances are those of the run's evaluation, decoded again from their codes: nothing is sampled anew.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from talker_rl.base.disk import read_json, write_json
from talker_rl.base.errors import ConfigError, DataError, StageError
from talker_rl.base.figures import bare, count, span, written
from talker_rl.base.places import require_run
from talker_rl.base.processes import one_thread
from talker_rl.config import RunConfig, load_data
from talker_rl.evaluation.bootstrap import bootstrap_ci, ratio_of_sums
from talker_rl.evaluation.summary import compare
from talker_rl.evaluation.told_apart import difference, leave_one_text_out, told_apart
from talker_rl.records.candidate import Candidate
from talker_rl.records.rows import from_row
from talker_rl.speech.candidates import decode_candidates
from talker_rl.speech.registry import family_of, load
from talker_rl.store.run_dir import MANIFEST, stored_config
from talker_rl.store.shards import ShardFolder

LEAST_TEXTS = 8
"""Spoken by every speaker: with fewer a classifier has nothing to learn from."""
KINDS = {"spectrum": "long-term spectrum", "embedding": "speaker embedding"}
Row = dict[str, Any]


@dataclass
class Side:
    """One policy's utterances, one per text and speaker."""

    rows: list[Row]
    """All evaluation rows."""
    taken_for: dict[str, np.ndarray]
    """Kind of feature -> (T, S), whom each utterance is taken for."""
    likeness: np.ndarray
    """(T, S): cosine of each utterance to its own speaker's reference."""
    codes: np.ndarray
    """(T, S): lengths."""


def verb(args: argparse.Namespace) -> str:
    """Write ``eval/<variant>/speakers.json`` and return the report.

    Raises:
        StageError: the run is not evaluated, or its speakers did not say the same texts.
        ConfigError: an unknown variant or speaker.
    """
    folder = Path(args.run_dir)
    config = _config_of(folder)
    variant = args.variant or _best(folder)
    speakers, texts = _same_texts(_rows(folder, "base"), _rows(folder, variant), folder)
    asked = [args.speaker] if args.speaker else _added(config, speakers)
    if asked[0] not in speakers:
        raise ConfigError(f"No evaluated prompt is spoken by {asked[0]!r}", where="--speaker",
                          fix=f"one of: {', '.join(speakers)}")
    entry = args.entry
    sides = {name: _side(config, folder, name, speakers, texts, entry) for name in ("base", variant)}
    found = {"run": config.name, "variant": variant, "speakers": speakers, "texts": len(texts), "entry": entry,
             "asked": {name: _figures(sides["base"], sides[variant], speakers, name) for name in asked},
             "words": {name: _words(sides["base"].rows, sides[variant].rows, name) for name in speakers}}
    file = folder / "eval" / variant / ("speakers.json" if entry is None else f"speakers-{entry}.json")
    write_json(file, found)
    if args.json:
        return json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    return f"{_table(found)}\n\nfigures: {file}"


def _config_of(folder: Path) -> RunConfig:
    require_run(folder)
    return load_data(stored_config(folder), where=str(folder / MANIFEST))


def _best(folder: Path) -> str:
    summary = folder / "eval" / "summary.json"
    if not summary.is_file():
        raise StageError("The run is not evaluated", where=str(folder), fix=f"talker-rl eval --run-dir {folder}")
    return str(read_json(summary)["variant"])


def _added(config: RunConfig, speakers: list[str]) -> list[str]:
    """Evaluated speakers that the checkpoint itself does not have; all of them where there is none such."""
    own = family_of(config.model.path).own_speakers(config.model)
    return [name for name in speakers if name not in own] or speakers


def _rows(folder: Path, name: str) -> list[Row]:
    path = folder / "eval" / name
    if not (path / "index.json").is_file():
        raise StageError(f"{name} is not evaluated", where=str(path), fix=f"talker-rl eval --run-dir {folder}")
    return list(ShardFolder(path).all_rows())


def _same_texts(base: list[Row], trained: list[Row], folder: Path) -> tuple[list[str], list[str]]:
    """Speakers, and the texts of which every one of them has an utterance with codes on both sides."""
    spoken = [{(r["text"], r["speaker"]) for r in rows if r["length"]} for rows in (base, trained)]
    both = set.intersection(*spoken)
    speakers = sorted({speaker for _, speaker in both})
    texts = sorted({text for text, _ in both if all((text, s) in both for s in speakers)})
    if len(speakers) < 2 or len(texts) < LEAST_TEXTS:
        raise StageError(f"{count(len(texts), 'text is', 'texts are')} spoken by all of "
                         f"{count(len(speakers), 'speaker')}", where=str(folder),
                         fix=f"evaluate at least {LEAST_TEXTS} texts with prompts.speaker_assignment: {{eval: all}}")
    return speakers, texts


def _side(config: RunConfig, folder: Path, name: str, speakers: list[str], texts: list[str], entry: str | None) -> Side:
    rows = _rows(folder, name)
    place = {r["candidate_id"]: (r["text"], r["speaker"]) for r in rows}
    first: dict[tuple[str, str], Candidate] = {}
    for row in ShardFolder(folder / "eval" / name / "candidates").all_rows():
        if row["codes"] and row["candidate_id"] in place:
            first.setdefault(place[row["candidate_id"]], from_row(Candidate, row))
    chosen = [first[text, speaker] for text in texts for speaker in speakers]
    decoder = load(config.model, parts=("decoder",))
    if entry is not None:
        if entry not in decoder.speakers:
            raise ConfigError(f"Unknown speaker {entry!r}", where="--entry",
                              fix=f"one of: {', '.join(decoder.speakers)}")
        chosen = [replace(c, speaker=entry) for c in chosen]
    with one_thread():
        audio = decode_candidates(decoder, chosen, config.token2wav, config.seed)
    missing = [c.candidate_id for c in chosen if c.candidate_id not in audio]
    if missing:
        raise DataError(f"{count(len(missing), 'utterance')} cannot be decoded, the first is "
                        f"{missing[0]}", where=str(folder),
                        fix="look at their end_reason in the evaluation rows")
    voices = [decoder.voice(audio[c.candidate_id]) for c in chosen]
    embeddings = torch.nn.functional.normalize(torch.from_numpy(np.stack([v["embedding"] for v in voices])), dim=1)
    shape = (len(texts), len(speakers))
    features = {"spectrum": np.stack([v["spectrum"] for v in voices]), "embedding": embeddings.numpy()}
    references = [torch.from_numpy(decoder.reference_voice(s)) for s in speakers]
    own = torch.stack([references[i % len(speakers)] for i in range(len(chosen))])
    return Side(rows, {kind: leave_one_text_out(x.reshape(*shape, -1)) for kind, x in features.items()},
                torch.cosine_similarity(embeddings, own).numpy().reshape(shape),
                np.array([len(c.codes) for c in chosen], dtype=float).reshape(shape))


def _figures(base: Side, trained: Side, speakers: list[str], name: str) -> dict[str, Any]:
    """What tells one speaker from the others."""
    s = speakers.index(name)
    others = [i for i in range(len(speakers)) if i != s]
    change = trained.likeness[:, s] - base.likeness[:, s]
    out: dict[str, Any] = {
        kind: {"before": told_apart(base.taken_for[kind], s), "after": told_apart(trained.taken_for[kind], s),
               "change": difference(base.taken_for[kind], trained.taken_for[kind], s)} for kind in KINDS
    }
    out["likeness"] = {"before": float(base.likeness[:, s].mean()), "after": float(trained.likeness[:, s].mean()),
                       "change_ci95": bootstrap_ci((change, np.ones(len(change))), ratio_of_sums)}
    for when, side in (("before", base), ("after", trained)):
        lengths = (side.codes[:, s], side.codes[:, others].mean(1))
        out.setdefault("duration_to_others", {})[when] = float(ratio_of_sums(*lengths))
        out["duration_to_others"][f"{when}_ci95"] = bootstrap_ci(lengths, ratio_of_sums)
    return out


def _words(base: list[Row], trained: list[Row], name: str) -> dict[str, Any]:
    """Error rates of one speaker before and after."""
    a, b = ([r for r in rows if r["speaker"] == name] for rows in (base, trained))
    found = compare(a, b)
    return {"n": found["n"], "before": found["base"]["wer"], "before_ci95": found["base"]["wer_ci95"],
            "after": found["trained"]["wer"], "after_ci95": found["trained"]["wer_ci95"],
            "change": found["wer_diff"], "change_ci95": found["wer_diff_ci95"]}


def _interval(ci: Any, scale: float = 100.0, digits: int = 1) -> str:
    return span(ci and [scale * end for end in ci], f"{{:+.{digits}f}}")


def _table(found: dict[str, Any]) -> str:
    """The report for a terminal."""
    lines = [f"{found['variant']} of {found['run']}: {count(found['texts'], 'text')}, each by "
             f"{', '.join(found['speakers'])}"
             + (f"; all decoded with {found['entry']}'s entry" if found["entry"] else "")]
    for name, figures in found["asked"].items():
        lines += ["", f"{name} among {count(len(found['speakers']), 'speaker')}, by texts that the classifier never "
                      f"heard "
                  f"(95 % intervals over texts)", f"{'':44}{'before':>9}{'after':>9}   change in points"]
        for kind, label in KINDS.items():
            f = figures[kind]
            for key, what in (("accuracy", "all speakers told"), ("found", f"{name} heard as {name}"),
                              ("mistaken", f"others heard as {name}"), ("balanced", f"{name} or not, balanced")):
                lines.append(f"{label + ': ' + what if key == 'accuracy' else ' ' * (len(label) + 2) + what:44.44}"
                             f"{f['before'][key]:>9.1%}{f['after'][key]:>9.1%}   {bare(f['change'][key], '{:+.1%}')} "
                             f"{_interval(f['change'][key + '_ci95'])}")
        like, long = figures["likeness"], figures["duration_to_others"]
        lines.append(f"{'cosine to its own reference':44}{like['before']:>9.3f}{like['after']:>9.3f}   "
                     f"{written(like['after'] - like['before'], '{:+.3f}')} {_interval(like['change_ci95'], 1, 3)}")
        lines.append(f"{'duration over the others, same texts':44}{long['before']:>9.3f}{long['after']:>9.3f}   after "
                     f"{_interval(long['after_ci95'], 1, 3)}")
    lines += ["", f"{'WER by speaker':44}{'before':>9}{'after':>9}   change in points"]
    for name, w in found["words"].items():
        lines.append(f"{name:44}{w['before']:>9.1%}{w['after']:>9.1%}   {bare(w['change'], '{:+.1%}')} "
                     f"{_interval(w['change_ci95'])}  (n {w['n']})")
    return "\n".join(lines)
