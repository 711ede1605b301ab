"""Training with the Lp family: networks and recipes as data, backends, and the protocol above them."""

from lpfamily.training.trained import Trained, load

__all__ = ["Trained", "load"]
