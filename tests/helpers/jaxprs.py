"""Count the matrix products in a program that JAX has traced."""


def dot_generals(jaxpr):
    inner = [
        getattr(value, "jaxpr", value)
        for equation in jaxpr.eqns
        for parameter in equation.params.values()
        for value in (parameter if isinstance(parameter, tuple) else (parameter,))
        if hasattr(getattr(value, "jaxpr", value), "eqns")
    ]
    found = sum(equation.primitive.name == "dot_general" for equation in jaxpr.eqns)
    return found + sum(map(dot_generals, inner))
