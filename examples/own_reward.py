"""Reward components of one's own: energy that does not jump, measured on the sound; and a preference for long speech,
planted to see which loss falls for it (configs/sweeps/online-length.yaml).

    PYTHONPATH=examples talker-rl run -c demo \\
        'reward.components=[{name: evenness, import_path: own_reward:evenness, weight: 0.2}]'
    python examples/own_reward.py        (scores two versions of one sentence)

A component is `function(item, components, **kwargs) -> float | None`. It sees the item (text, sound, codes, seed) and
the components so far, and is recorded under its name. With a weight it must lie in [0, 1]. Where it has no evidence it
returns None, which makes a weighted score a failure, never a number. Where nothing was recognized the reward is its
minimum whatever the component says: silence earns nothing by being even.
"""

from __future__ import annotations

import numpy as np

from talker_rl import RewardConfig, ScoreItem, Scorer
from talker_rl.base.sound import frame_levels


def evenness(item: ScoreItem, components: dict[str, float | None], floor_db: float = -50.0) -> float | None:
    """1 where the level never jumps from one 50 ms frame of speech to the next, 0 at 20 dB on average."""
    hop = item.sample_rate // 20
    levels = frame_levels(item.audio, hop, hop)
    jumps = np.abs(np.diff(levels[levels > floor_db]))
    return None if len(jumps) == 0 else float(np.clip(1 - jumps.mean() / 20, 0, 1))


def length(item: ScoreItem, components: dict[str, float | None]) -> float | None:
    """Longer is better: 0 at half the reference's duration, 1 at one and a half of it. Nothing to train speech on: it
    stands for a reward that likes length without anybody's knowledge."""
    ratio = components.get("duration_ratio")
    return None if ratio is None else float(np.clip(ratio - 0.5, 0, 1))


if __name__ == "__main__":
    from quickstart import items  # speech of the micro model

    config = RewardConfig(components=[{"name": "evenness", "import_path": "own_reward:evenness", "weight": 0.2}])
    spoken = items[0]
    chopped = ScoreItem(**{**vars(spoken), "id": "chopped", "audio": spoken.audio.copy()})
    chopped.audio[::4800] *= 8  # clicks
    for start in range(0, len(chopped.audio), 9600):
        chopped.audio[start : start + 2400] *= 0.05
    for item, result in zip((spoken, chopped), Scorer(config).score([spoken, chopped]), strict=True):
        print(f"{item.id:12} reward {result.value:.3f}", {k: round(v, 3) for k, v in result.terms.items()})
