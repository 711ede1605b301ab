"""Training with the Lp family: networks and recipes as data, backends, and the protocol above them."""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = ["Trained", "fit", "load"]

if TYPE_CHECKING:
    from lpfamily.training.fitting import fit
    from lpfamily.training.runs.trained import Trained, load
else:  # hidden from type checkers, which would then accept any name

    def __getattr__(name):
        # on first use: a backend imports its contract from this package, and needs none of the code of runs
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = "fitting" if name == "fit" else "runs.trained"
        return getattr(import_module(f"{__name__}.{module}"), name)

    def __dir__():
        return sorted({*globals(), *__all__})
