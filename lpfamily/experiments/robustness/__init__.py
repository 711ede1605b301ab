"""Robustness of the networks of Table I, as the field measures it today: error against sigma."""
