"""The paper in NumPy float64, slow and obvious, to hold faster code against.

`equations` is the paper equation by equation, `equations_noise` its section V; `definitions` answers the
same questions from their definitions alone, by numerical optimisation and differences; `networks` has the
forward passes of section IV's networks.
"""

from lpfamily_reference import definitions, equations, equations_noise, networks

__all__ = ["definitions", "equations", "equations_noise", "networks"]
