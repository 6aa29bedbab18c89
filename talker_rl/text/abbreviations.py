"""Full stops that end no sentence: abbreviations, initials, dotted letters, list numbers.

What follows decides where the word alone does not: "No. 7" but "He said no.", "the U.S. Army" but "the U.S. He left".
"""

from __future__ import annotations

import regex


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ALWAYS_TITLES = _words("mr mrs ms mx dr prof messrs mme mlle")
TITLES = _words("rev gen col capt lt sgt cpl cmdr maj hon pres gov sen rep supt fr mt ft")
"""With a capital: before a name. (Written small, "gen." or "col." ends a sentence like any word.)"""
NUMBERED = _words("no nos vol vols ch chap fig figs eq eqs sec art op pp p pg pt ed ver ca c min max")
"""Before a figure."""
DATES = _words("jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri sat sun")
INNER = _words("e.g i.e eg ie vs v cf viz al approx esp incl resp")
"""Always in the middle of a sentence."""
OUTER = _words("jr sr dept univ assn eds oz pl sq apt ext tel mts st")
"""In the middle of a sentence, or at its end, where a word that begins sentences follows."""
SUFFIXES = _words("inc ltd co corp llc plc bros ave blvd rd hwy est etc")
"""At the end of a sentence where any capital follows."""

_WORD = regex.compile(r"\p{Latin}[\p{Latin}.]*$")
_LIST_NUMBER = regex.compile(r"[ \t]*\d{1,3}")
_DOTTED = regex.compile(r"(?:\p{Latin}\.)+\p{Latin}|ph\.d|m\.sc|b\.sc", regex.IGNORECASE)
_FIGURE_BEFORE = regex.compile(r"\d[ \u00a0]?$")
_VOWEL = regex.compile("[^b-df-hj-np-tv-xz]")
_OPENING = " \t\"'“‘([{«"
_NEXT = regex.compile(r"[\p{Latin}']+")
_ROMAN = regex.compile(r"[IVXLC]{2,}\b|[VX]\b")
_DAY_OR_ZONE = _words("monday tuesday wednesday thursday friday saturday sunday january february march april may june "
                      "july august september october november december est edt pst pdt cet gmt utc et pt ct")
STARTERS = _words(
    "the he she it they we you i this that these those there then but and so or if as at in on for from with after "
    "before when while what why how who where which my our his her its their your a an now here yes no not please let "
    "one some many most all each every both another however although because since until though perhaps maybe also "
    "still yet once soon later today tomorrow yesterday tonight do does did is are was were can could will would "
    "should might must have has had take go come get look bring call ask tell keep turn open close nobody everyone "
    "someone something nothing everything instead meanwhile finally first next last")
"""Words that often begin a sentence and never follow an abbreviation inside one with a capital."""


def is_list_number(before: str) -> bool:
    """Whether the full stop behind this text numbers a line of a list: ``1. Open the door.``"""
    return _LIST_NUMBER.fullmatch(before, before.rfind("\n") + 1) is not None


def is_abbreviated(before: str, after: str) -> bool:
    """Whether a full stop between these texts belongs to the word before it and ends no sentence."""
    found = _WORD.search(before[-24:])
    if found is None:
        return False
    word = found.group()
    bare = word.lower()
    following = after.lstrip(_OPENING)
    next_word = _NEXT.match(following)
    starts = False
    if next_word and following[0].isupper():
        name, stopped = next_word.group().lower(), following[next_word.end() : next_word.end() + 1] == "."
        starts = name in ALWAYS_TITLES if stopped else name in STARTERS
    if bare in ALWAYS_TITLES or bare in INNER:
        return True
    if bare in TITLES and word[0].isupper():
        return True
    if bare in ("a.m", "p.m"):
        return not following[:1].isupper() or bool(next_word and next_word.group().lower() in _DAY_OR_ZONE)
    if bare in NUMBERED:
        return following[:1].isdigit() or (word[0].isupper() and _ROMAN.match(following) is not None)
    if bare in DATES:
        return word[0].isupper() and not starts
    if bare in SUFFIXES:
        return not following[:1].isupper() or bool(next_word and next_word.group().lower() in SUFFIXES)
    if bare in OUTER or _DOTTED.fullmatch(word):
        return not starts
    if len(word) == 1 and word.isupper():
        return word != "I" and not starts
    if not (following[:1].islower() or following[:1].isdigit()):
        return False
    is_unit = len(word) <= 3 and _FIGURE_BEFORE.search(before, 0, len(before) - len(word)) is not None
    return is_unit or (2 <= len(word) <= 5 and _VOWEL.search(bare) is None)  # 10 in. tall; hrs. or kg. of
