"""seed-tts-eval's scoring of a file of references and one of transcripts: ``talker-rl wer --protocol``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from talker_rl.base.figures import count
from talker_rl.base.text.alignment import ErrorCounts
from talker_rl.base.text.characters import visible
from talker_rl.data.seed_lst import read_lst
from talker_rl.evaluation.seed_tts_eval import NAME, Scored, figures, score
from talker_rl.evaluation.wer_tool import KeyedTexts, Utterance, alignment_text, named, notes_on, read_texts


def read_references(path: Path) -> KeyedTexts:
    """References by key: a seed-tts-eval list (``.lst``), or ``key<TAB>text`` lines.

    Raises:
        DataError, PromptError: the file cannot be read, or a line of it.
    """
    if path.suffix.lower() != ".lst":
        return read_texts(path, keep_symbols=True)
    return KeyedTexts({item.utt: visible(item.text) for item in read_lst(path)}, [])


def compare_files(reference: Path, hypothesis: Path, lang: str) -> tuple[list[Scored], list[str]]:
    """Every reference that has a transcript, scored; and what was not as it should be in the files.

    A key whose transcript is empty was heard as silence (WER 1); a key without any transcript is left out, as upstream
    leaves out an utterance without sound.
    """
    wanted, heard = read_references(reference), read_texts(hypothesis, bare_keys=True, keep_symbols=True)
    scored = [score(key, text, heard.texts[key], lang) for key, text in wanted.texts.items() if key in heard.texts]
    return scored, notes_on("reference", wanted) + notes_on("hypothesis", heard) + named(
        ("repeated in the reference, the first text is kept", wanted.repeated),
        ("repeated in the hypothesis, the first text is kept", heard.repeated),
        ("without a hypothesis, left out", [k for k in wanted.texts if k not in heard.texts]),
        ("in the hypothesis only, ignored", [k for k in heard.texts if k not in wanted.texts]),
    )


def as_data(scored: list[Scored], lang: str) -> dict[str, Any]:
    """Figures and every utterance's counts, as plain data."""
    rows = {u.key: {"wer": u.wer, "substitutions": u.substitutions, "deletions": u.deletions,
                    "insertions": u.insertions, "length": u.length} for u in scored}
    return {"protocol": NAME, "lang": lang, **figures(scored), "by_utterance": rows}


def as_text(scored: list[Scored], lang: str, notes: list[str], *, detail: bool = False) -> str:
    """The figures as text, upstream's own line last; with ``detail`` every utterance's alignment before them."""
    found = figures(scored)
    below = found["wer_below_50"]
    lines = [
        f"{NAME}, {lang}: {count(found['utterances'], 'utterance')}, every one weighs the same",
        f"substitutions {found['substitution_rate']:.3%}   deletions {found['deletion_rate']:.3%}   "
        f"insertions {found['insertion_rate']:.3%}",
        f"above 50 %: {count(found['above_50'], 'utterance')}; the mean of the others: "
        + ("none" if below is None else f"{below:.3%}"),
        *(f"note: {note}" for note in notes),
        f"WER: {found['wer_percent']}%",
    ]
    parts = [f"{alignment_text(_utterance(u))} WER={u.wer:.6f}" for u in scored] if detail else []
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def _utterance(scored: Scored) -> Utterance:
    counts = ErrorCounts(scored.substitutions, scored.deletions, scored.insertions, scored.length)
    return Utterance(scored.key, scored.columns, counts)
