"""The course of a run: the loop over epochs, the paper's two stages, and the choice among recipes."""

from lpfamily.training.protocol.epochs import NotFinite

__all__ = ["NotFinite"]
