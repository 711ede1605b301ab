"""Section II: how far the first-order theory holds on trained networks."""
