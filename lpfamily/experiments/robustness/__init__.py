"""Robustness of the networks of Table I, as it is measured today: error against sigma."""
