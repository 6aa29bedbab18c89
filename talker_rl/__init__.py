"""talker_rl: preference and RL fine-tuning of the Qwen2.5-Omni Talker."""

__version__ = "0.1.0"
