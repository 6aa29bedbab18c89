"""Where a run is kept: its folder with the manifest, and the shards of its stages."""
