"""Evaluation rows: what one utterance of dev or eval was found to be, flat as its shard."""

from __future__ import annotations

from typing import Any

EvalRow = dict[str, Any]
"""One utterance. ``prompt_id``, ``candidate_id``, ``seed``, ``text``, ``speaker``, ``lang``; ``end_reason``, ``length``
(codes); ``status`` and error columns, ``transcript``, ``spans`` as of a score; a column for each component of the score
by the evaluator (on dev: the reward recognizer), ``reward_*`` by the reward recognizer; where they were asked for,
``speaker_similarity``, ``f0_mean`` (Hz) and ``f0_spread`` (semitones). A component of the user's own is a column like
the others, so this is a mapping and no class."""
