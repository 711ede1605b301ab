"""Which p to train with: errors in several balls after training in each."""
