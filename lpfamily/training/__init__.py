"""Training with the Lp family: networks and recipes as data, backends, and the protocol above them."""
