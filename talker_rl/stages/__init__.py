"""Stages: one file each; a stage reads the folders before it and writes its own, in shards."""
