"""Training of a policy: sources and objectives, trainer, and one call, or one task file, that does it all."""
