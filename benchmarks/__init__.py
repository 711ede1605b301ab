"""How fast, as ratios of interleaved runs."""
