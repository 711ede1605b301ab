"""How fast, as ratios of interleaved runs in one process."""
