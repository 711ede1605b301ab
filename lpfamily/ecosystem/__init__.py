"""The Lp family inside other packages: each module imports its package, and no other module imports it."""
