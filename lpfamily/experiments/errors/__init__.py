"""Tables I to V: test errors, clean and under Gaussian noise."""
