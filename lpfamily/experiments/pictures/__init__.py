"""Section III: what perturbations look like, what they are made of, and how far they transfer."""
