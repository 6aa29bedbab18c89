"""What a score depends on, as named hashes: equal parts on two machines mean equal scores.

``reward``, ``token2wav``, ``model`` and ``code`` can be computed wherever the configuration and the checkpoint are, so
a client compares them with its own; ``recognizer`` (its files) and ``*_libraries`` only where the scorer runs.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

from ...data.records import stable_hash
from ...omni.config import Token2WavConfig
from ..config import RewardConfig
from ..scorer import code_version

LIBRARIES = ("torch", "transformers", "numpy", "scipy")

DECODER = ("token2wav", "flow", "dit", "linear", "vocoder")
"""Sources in ``omni`` that make speech of codes."""

PARTS = {"reward", "token2wav", "model", "code", "recognizer", "decoder_libraries", "recognizer_libraries"}

Parts = dict[str, str]


def settings_parts(reward: RewardConfig, token2wav: Token2WavConfig) -> Parts:
    """``reward``, ``token2wav`` and ``code``: known without any model."""
    folder = Path(__file__).parents[2] / "omni"
    decoder = [hashlib.sha256((folder / f"{name}.py").read_bytes()).hexdigest() for name in DECODER]
    return {
        "reward": stable_hash("reward", reward.settings(), reward.recognizer.identity(path=False)),
        "token2wav": stable_hash("token2wav", token2wav.model_dump(mode="json", exclude={"batch_size"})),
        "code": stable_hash("code", code_version(), decoder),
    }


def libraries_part(device: str) -> str:
    """``*_libraries``: versions and the kind of device, which move floats and so may flip a token."""
    return stable_hash("libraries", {name: version(name) for name in LIBRARIES}, device.partition(":")[0])


def fingerprint_of(parts: Parts) -> str:
    """One hash of all parts."""
    return stable_hash("service", parts)


def differing(expected: Parts, found: Parts) -> list[str]:
    """Names of the expected parts that are not found so."""
    return sorted(name for name, value in expected.items() if found.get(name) != value)
