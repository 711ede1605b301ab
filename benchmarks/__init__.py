"""Measurements of speed, as ratios of interleaved runs."""
