"""What a score depends on, as named hashes: equal parts on two machines mean equal scores.

``reward``, ``token2wav``, ``model`` and ``code`` can be computed wherever the configuration and the checkpoint are, so
a client compares them with its own; ``recognizer`` (its files) and ``*_libraries`` only where the scorer runs.
"""

from __future__ import annotations

from importlib.metadata import version

from talker_rl.base.ids import stable_hash
from talker_rl.base.versions import code_version
from talker_rl.reward.config import RewardConfig
from talker_rl.speech.config import Token2WavConfig

LIBRARIES = ("torch", "transformers", "numpy", "scipy")

PARTS = {
    "reward": "the settings under reward: (serve the run's own configuration)",
    "token2wav": "the settings under token2wav: (serve the run's own configuration)",
    "model": "the files of the model's decoder (serve the model that the run names)",
    "code": "the rules of decoding or scoring (install the same version of talker_rl)",
    "recognizer": "the recognizer's files (serve the one that was served before)",
    "decoder_libraries": "the libraries or the kind of device that decode (install and choose the same)",
    "recognizer_libraries": "the libraries or the kind of device that listen (install and choose the same)",
}
"""What each part is of, and what to do where it differs."""

Parts = dict[str, str]


def settings_parts(reward: RewardConfig, token2wav: Token2WavConfig) -> Parts:
    """``reward``, ``token2wav`` and ``code``: known without any model."""
    return {
        "reward": stable_hash("reward", reward.settings(), reward.recognizer.identity(path=False)),
        "token2wav": stable_hash("token2wav", token2wav.model_dump(mode="json", exclude={"batch_size"})),
        "code": code_version(),
    }


def libraries_part(device: str) -> str:
    """``*_libraries``: versions and the kind of device, which move floats and so may flip a token."""
    return stable_hash("libraries", {name: version(name) for name in LIBRARIES}, device.partition(":")[0])


def fingerprint_of(parts: Parts) -> str:
    """One hash of all parts."""
    return stable_hash("service", parts)


def differing(expected: Parts, found: Parts) -> list[str]:
    """The expected parts that are not found so, in words."""
    return [f"{name}, {PARTS.get(name, 'which this version does not know')}"
            for name, value in sorted(expected.items()) if found.get(name) != value]
