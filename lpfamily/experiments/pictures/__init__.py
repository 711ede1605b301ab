"""Section III: how perturbations look, what they consist of, and how far they transfer."""
