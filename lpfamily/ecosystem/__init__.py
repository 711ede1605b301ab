"""The family inside other packages: each module imports its package, and nothing imports the modules."""
