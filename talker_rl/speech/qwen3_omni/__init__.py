"""Qwen3-Omni's Talker: two stacks of heads, sixteen codes a frame. Sampling and log-probs; not yet loading or sound."""
