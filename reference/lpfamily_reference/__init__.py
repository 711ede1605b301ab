"""The paper in NumPy float64, slow and obvious, to compare faster code with.

`equations` has the paper equation by equation, and `equations_noise` its section V. `definitions` answers the
same questions from the definitions alone, by numerical optimisation and differences. `networks` has the
forward passes of the networks of section IV.
"""

from lpfamily_reference import definitions, equations, equations_noise, networks

__all__ = ["definitions", "equations", "equations_noise", "networks"]
