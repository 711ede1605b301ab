"""Which p to train with: errors in balls of several p, after training in each."""
