"""What results depend on beside settings and files: the rules of the code itself, as numbers.

A number is raised when a rule changes what comes out; comments, names and moves change nothing. Golden rows hold both
(tests/test_versions.py).
"""

from __future__ import annotations

from importlib.metadata import version

from talker_rl.base.ids import stable_hash

SAMPLES = 1
"""Version of what makes codes of conditioning and a seed."""
DECODES = 1
"""Version of what makes speech of codes."""
SCORES = 1
"""Version of the rules between speech and score: texts, alignment, pauses, stability, the reward made of them."""

_FIRST = {
    "scores": ((1, "4.0.0"), "a391998b09e2e7658d79168fe509eed558495119362d985fa905470e00bb3300"),
    "code": ((1, 1, "4.0.0"), "6da85d693e801042da71588d9529ddab1ef0dda5042334631da0003ec41df93c"),
}
"""The names under which runs from before there were numbers know the first versions, so that they go on."""


def scores_version() -> str:
    """Name of the scoring rules' version, jiwer's version included."""
    return _named("scores", SCORES, version("jiwer"))


def code_version() -> str:
    """Name of the version of everything between codes and score."""
    return _named("code", SCORES, DECODES, version("jiwer"))


def scoring_rules() -> dict[str, int | str]:
    """What :func:`scores_version` is of, in words."""
    return {"version of the scoring rules": SCORES, "jiwer": version("jiwer")}


def rules_of(*kinds: str) -> dict[str, str]:
    """Versions of ``sampling`` and ``decoding`` as inputs of a stage. A first version is none: it was there before
    there were numbers."""
    numbers = {"sampling": SAMPLES, "decoding": DECODES}
    return {f"version of {kind}": str(numbers[kind]) for kind in kinds if numbers[kind] > 1}


def _named(kind: str, *parts: int | str) -> str:
    first, name = _FIRST[kind]
    return name if parts == first else stable_hash(kind, *parts)
