"""Words, marks, voices and the label noise of the micro world.

Everything random takes a ``random.Random``, so that one seed gives one world.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

ENGLISH = (
    "river garden window yellow paper money winter doctor music bottle coffee seven orange "
    "table happy captain village mountain number cotton"
).split()
CHINESE = "苹果 老师 城市 电话 海洋 飞机 朋友 咖啡 森林 太阳".split()
WORDS = (*ENGLISH, *CHINESE)

WEAK_MARKS = {"en": ",", "zh": "，"}
STRONG_MARKS = {"en": ".", "zh": "。"}

COMMA_SECONDS = 0.20
STOP_SECONDS = 0.36
LEAD_SECONDS = 0.10
TAIL_SECONDS = 0.16


@dataclass(frozen=True)
class Voice:
    """One speaker: an espeak-ng voice for each language, and its speaking rates (espeak's words per minute)."""

    name: str
    en: str
    zh: str
    rate: int
    zh_rate: int


VOICES = {
    "Chelsie": Voice("Chelsie", en="en-us+f1", zh="cmn+f1", rate=190, zh_rate=230),
    "Ethan": Voice("Ethan", en="en-us", zh="cmn", rate=190, zh_rate=230),
}

# Label noise of the base Talker. Real noise is systematic: the same words stumble again and again,
# so that a preference for the right reading is learnable from a few hundred pairs.
CONFUSED = {  # word -> (what is said instead, how often)
    "river": ("winter", 0.45),
    "money": ("music", 0.45),
    "doctor": ("captain", 0.40),
    "orange": ("village", 0.45),
    "table": ("bottle", 0.40),
    "城市": ("电话", 0.45),
    "朋友": ("飞机", 0.45),
}
DOUBLED = {"paper": 0.40, "happy": 0.35, "森林": 0.40}
DROPPED = {"number": 0.35, "咖啡": 0.35}
COMMA_LOST_AFTER = {"garden": 0.5, "seven": 0.5, "coffee": 0.5, "winter": 0.5, "苹果": 0.5, "太阳": 0.5, "village": 0.5}
FALSE_PAUSE_AFTER = {"yellow": 0.30, "mountain": 0.30, "海洋": 0.30}
FALSE_PAUSE_SECONDS = 0.42
# A ragged end, by the last word: a long silent tail, or speech that stops before the word is over.
LONG_TAIL = {"window": 0.35, "village": 0.35, "老师": 0.35, "太阳": 0.35}
LONG_TAIL_SECONDS = 0.60
CUT_END = {"mountain": 0.30, "cotton": 0.30, "电话": 0.30}
CUT_SECONDS = 0.12
"""How much of the last word is missing."""


@dataclass(frozen=True)
class Clause:
    """Words of one language, spoken in one breath, and the mark after them."""

    lang: str
    words: tuple[str, ...]
    mark: str

    @property
    def text(self) -> str:
        body = " ".join(self.words) if self.lang == "en" else "".join(self.words)
        return body + self.mark


def sentence_text(clauses: list[Clause]) -> str:
    """``river garden, 苹果老师。`` English clauses are set off by spaces, Chinese ones are not."""
    out = ""
    for clause in clauses:
        if out and (clause.lang == "en" or out[-1] in ",."):
            out += " "
        out += clause.text
    return out


def sentence_lang(clauses: list[Clause]) -> str:
    langs = {c.lang for c in clauses}
    return langs.pop() if len(langs) == 1 else "mixed"


def random_sentence(rng: random.Random, min_words: int = 3, max_words: int = 10) -> list[Clause]:
    """A random sentence: clauses of 1 to 4 words, a comma (70 %) or a stop between them, a stop at the end."""
    total = rng.randint(min_words, max_words)
    kind = rng.choices(("en", "zh", "mixed"), (0.55, 0.30, 0.15))[0]
    clauses: list[Clause] = []
    last = ""
    while total:
        size = min(total, rng.randint(2, 4))
        if total - size == 1:
            size += 1
        lang = rng.choice(("en", "zh")) if kind == "mixed" else kind
        vocab = ENGLISH if lang == "en" else CHINESE
        words: list[str] = []
        while len(words) < size:
            word = rng.choice(vocab)
            if word != last:  # a repeated word could not be told from a doubling
                words.append(word)
                last = word
        total -= size
        weak = total and rng.random() < 0.7
        clauses.append(Clause(lang, tuple(words), (WEAK_MARKS if weak else STRONG_MARKS)[lang]))
    return clauses
