"""Everything that knows Qwen2.5-Omni: loading, conditioning, token layout, log-probs, rollouts, token2wav."""
