"""Check a law with a step that may be wrong: tests expect AssertionError from each mutant."""

from hypothesis import HealthCheck, Phase, given, settings

from helpers.laws import cases
from helpers.libraries import numpy_readonly

LIBRARY = numpy_readonly()


def check(law, step, drawn=None, examples=2000):
    """Raise if `step` breaks `law`; do not shrink the example."""

    @settings(
        max_examples=examples,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(LIBRARY) if drawn is None else drawn)
    def run(case):
        law(step, case)

    run()
