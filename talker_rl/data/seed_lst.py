"""The lists of the seed-tts-eval test sets (``meta.lst``, ``hardcase.lst``): an utterance per line, in fields.

    utt|prompt_text|prompt_wav|infer_text[|infer_wav]      utt|infer_text      utt.wav|infer_text|prompt_wav

``infer_text`` is what is spoken and scored. The prompt (speech to clone) has no place in the Talker, whose voices are
its own; its text and path are read along so that nothing of the list is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from talker_rl.base.errors import PromptError
from talker_rl.base.text.files import text_lines


@dataclass(frozen=True)
class ListedUtterance:
    """One line of a list."""

    utt: str
    text: str
    """``infer_text``."""
    prompt_text: str | None = None
    prompt_wav: str | None = None
    line: int = 0
    """1-based."""


def read_lst(path: Path) -> list[ListedUtterance]:
    """Utterances of a list, in its order; blank lines are passed over.

    Raises:
        PromptError: the file cannot be read, is not UTF-8, or holds nothing; a line has neither two, three, four nor
            five fields, no name, no text, or the name of an earlier one.
    """
    try:
        lines = text_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"Cannot read the list: {error}", where=str(path),
                          fix="give a UTF-8 file of utt|prompt_text|prompt_wav|infer_text lines") from None
    found: dict[str, ListedUtterance] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        item = _parse(line.strip(), f"{path}, line {number}", number)
        if item.utt in found:
            raise PromptError(f"The utterance {item.utt!r} was listed before, in line {found[item.utt].line}",
                              where=f"{path}, line {number}", fix="give each utterance a name of its own")
        found[item.utt] = item
    if not found:
        raise PromptError("The list holds no utterance", where=str(path),
                          fix="write one utt|prompt_text|prompt_wav|infer_text line per utterance")
    return list(found.values())


def _parse(line: str, where: str, number: int) -> ListedUtterance:
    match line.split("|"):
        case [utt, prompt_text, prompt_wav, text] | [utt, prompt_text, prompt_wav, text, _]:
            item = ListedUtterance(utt.strip(), text, prompt_text, prompt_wav, number)
        case [utt, text, prompt_wav]:
            item = ListedUtterance(utt.strip().removesuffix(".wav"), text, None, prompt_wav, number)
        case [utt, text]:
            item = ListedUtterance(utt.strip(), text, line=number)
        case fields:
            raise PromptError(f"The line has {len(fields)} fields between bars", where=where,
                              fix="write utt|prompt_text|prompt_wav|infer_text, or utt|infer_text")
    if not item.utt or not item.text.strip():
        raise PromptError(f"The line has no {'text' if item.utt else 'name'}: {line:.60}", where=where,
                          fix="write utt|prompt_text|prompt_wav|infer_text, or utt|infer_text")
    return item
