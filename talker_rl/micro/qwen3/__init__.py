"""The micro world's second model: a small Qwen3-Omni of transformers' own classes, trained on the same sentences.

Eight books of 256 codes at 12.5 frames a second by residual k-means over mel, a small code2wav that speaks them, a
Talker with a few experts, and a Thinker that reads aloud. ``talker-rl micro build --family qwen3_omni`` trains it.
"""
