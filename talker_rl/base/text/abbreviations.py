"""Full stops that end no sentence: abbreviations, initials, dotted letters, list numbers.

What follows decides where the word alone does not: "No. 7" but "He said no.", "the U.S. Army" but "the U.S. He left".
"""

from __future__ import annotations

import regex


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ALWAYS_TITLES = _words("mr mrs ms mx dr prof messrs mme mlle capt lt sgt cpl cmdr maj gov sen asst assoc supt brig pvt "
                       "adm")
TITLES = _words("rev gen col hon pres rep fr mt ft det sec st")
"""With a capital: before a name. (Written small, "gen." or "col." ends a sentence like any word.)"""
NUMBERED = _words("no nos vol vols ch chap fig figs eq eqs sec art op app par pp p pg pt ed ver rte ste ca c")
"""Before a figure, a Roman number or a letter: "No. 7", "vol. II", "Fig. A"."""
DATES = _words("jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri sat sun")
_ALSO_WORDS = _words("mar dec mon wed fri sat sun")
INNER = _words("e.g i.e eg ie vs v cf viz al approx esp incl resp")
"""Always in the middle of a sentence."""
MEASURES = _words("min max temp misc avg")
"""Before a small letter or a figure: "max. speed"."""
OUTER = _words("jr sr dept univ assn eds oz pl sq apt ext tel mts bros esq")
"""In the middle of a sentence, or at its end, where a word that begins sentences follows."""
SUFFIXES = _words("inc ltd pty co corp llc plc ave blvd rd hwy est etc")
"""At the end of a sentence where any capital follows."""

_WORD = regex.compile(r"\p{Latin}[\p{Latin}.]*$")
_ITEM_NUMBER = regex.compile(r"(?:\n|[.!?。！？]\s)[ \t]*\(?\d{1,3}\)?$")
_ITEM_LABEL = regex.compile(r"\n[ \t]*(?:[ivx]{2,}|[IVX]{2,})$")
_NEAR = 24
"""Characters before a full stop that decide."""
_DOTTED = regex.compile(r"(?:\p{Latin}\.)+\p{Latin}|ph\.d|m\.sc|b\.sc", regex.IGNORECASE)
_FIGURE_BEFORE = regex.compile(r"\d[ \u00a0]?$")
_VOWEL = regex.compile("[^b-df-hj-np-tv-xz]")
_OPENING = " \t\"'“‘([{«"
_NEXT = regex.compile(r"[\p{Latin}']+")
_NUMBERED_BY = regex.compile(r"(?:[IVXLC]+|[A-Z])\b(?!')")
_DAY_OR_ZONE = _words("monday tuesday wednesday thursday friday saturday sunday january february march april may june "
                      "july august september october november december est edt pst pdt cet gmt utc et pt ct")
STARTERS = _words(
    "the he she it they we you i this that these those there then but and so or if as at in on for from with after "
    "before when while what why how who where which my our his her its their your a an now here yes no not please let "
    "one some many most all each every both another however although because since until though perhaps maybe also "
    "still yet once soon later today tomorrow yesterday tonight do does did is are was were can could will would "
    "should might must have has had take go come get look bring call ask tell keep turn open close nobody everyone "
    "someone something nothing everything instead meanwhile finally first next last really well oh ok okay hello "
    "thanks wow don isn wasn didn doesn can won couldn wouldn aren weren haven hasn hadn shouldn")
"""Words that often begin a sentence and never follow an abbreviation inside one with a capital; of a contraction (It's,
Don't) what stands before its apostrophe, with or without the n."""


def is_list_number(before: str) -> bool:
    """Whether the full stop behind this text numbers an item of a list: ``1. Open the door.``, ``IV. Close it.``"""
    near = before[-_NEAR:] if len(before) > _NEAR else f"\n{before}"
    if _ITEM_LABEL.search(near):
        return True
    number = _ITEM_NUMBER.search(near)
    if number is None:
        return False
    stop = len(before) - len(near) + number.start()  # "Feb. 2." is a date, and no second item
    return near[number.start()] != "." or not is_abbreviated(before[:stop], before[stop + 1 :])


def is_abbreviated(before: str, after: str) -> bool:
    """Whether a full stop between these texts belongs to the word before it and ends no sentence."""
    found = _WORD.search(before[-_NEAR:])
    if found is None:
        return False
    word, following = found.group(), after.lstrip(_OPENING)
    bare, first = word.lower(), following[:1]
    next_word = _NEXT.match(following)
    starts = _starts_a_sentence(following, next_word)
    if first.islower() and len(word) <= 4 and _FIGURE_BEFORE.search(before, 0, len(before) - len(word)):
        return True  # 10 in. tall, 5 min. by car
    if bare in ALWAYS_TITLES or bare in INNER:
        return True
    if bare in MEASURES:
        return first.islower() or first.isdigit()
    if bare in TITLES and word[0].isupper():
        return not (bare == "st" and starts)
    if bare in ("a.m", "p.m"):
        return not first.isupper() or bool(next_word and next_word.group().lower() in _DAY_OR_ZONE)
    if bare in NUMBERED:
        by_letter = _NUMBERED_BY.match(following) is not None and not (bare == "no" and first == "I")
        return first.isdigit() or by_letter or (first.islower() and word[0].isupper())  # No. of items
    if bare in DATES:
        return (word[0].isupper() and not starts) or (first.isdigit() and bare not in _ALSO_WORDS)
    if bare in SUFFIXES:
        goes_on = bool(next_word and next_word.group().lower() in SUFFIXES) or after.lstrip()[:1] == "("
        return not first.isupper() or goes_on
    if bare in OUTER or _DOTTED.fullmatch(word):
        return not starts
    if len(word) == 1 and word.isupper():
        return word != "I" and not starts
    if first.islower() and word[0].isupper() and 2 <= len(word) <= 5:
        return True  # Calif. and, Mass. originally
    return (first.islower() or first.isdigit()) and 2 <= len(word) <= 5 and _VOWEL.search(bare) is None  # kg. of


def _starts_a_sentence(following: str, next_word: regex.Match[str] | None) -> bool:
    if next_word is None or not following[0].isupper():
        return False
    name = next_word.group().lower()
    plain = name.split("'")[0]
    if following[next_word.end() : next_word.end() + 1] == "." and (name in ALWAYS_TITLES or len(name) == 1):
        return name in ALWAYS_TITLES  # "U.S. Mr. Chen", but "J. A. Smith"
    return plain in STARTERS
