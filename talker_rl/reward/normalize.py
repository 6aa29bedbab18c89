"""Tokens and marks as the reward uses them: the rules are :mod:`talker_rl.text`'s."""

from talker_rl.text.marks import Mark
from talker_rl.text.tokens import LANGUAGES, NormalizedText, characters_of, normalize, tokens_of

__all__ = ["LANGUAGES", "Mark", "NormalizedText", "characters_of", "normalize", "tokens_of"]
