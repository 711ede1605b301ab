"""`python -m benchmarks.device`: the compiled step on one device, compared with a copy on the same device.

Memory bandwidth bounds the step: it must read its gradient and write its result, as a copy does, and it reads
a gradient twice if its row does not fit in fast memory. Times are wall times between synchronisations, as
medians of interleaved rounds. The share is the time of a copy divided by that of a step, so that 1 is as fast
as a copy. The goal is 0.7 on CUDA at (4096, 150528), which takes 5 GB.
"""

from __future__ import annotations

import argparse
import functools
import math

from benchmarks.timing import device_clock, medians

EXPONENTS = (1.0, 1.1, 1.5, 2.0, 2.5, 3.0, 4.0, 10.0, math.inf)


def main() -> None:
    """Print the share of the copy's speed that each p reaches, compiled and eager."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="(default: cuda)")
    parser.add_argument("--shape", type=int, nargs=2, default=(4096, 150528))
    parser.add_argument("--p", type=float, nargs="+", default=EXPONENTS)
    parser.add_argument("--rounds", type=int, default=11, help="(default: 11)")
    options = parser.parse_args()

    import torch

    from lpfamily import epsilon

    grad = torch.randn(
        *options.shape, device=options.device, generator=torch.Generator(options.device).manual_seed(0)
    )
    out = torch.empty_like(grad)
    print(f"{tuple(options.shape)} float32 on {options.device}, torch {torch.__version__}")
    print(f"{'p':>6}{'copy GB/s':>12}{'compiled':>12}{'eager':>12}")
    for p in options.p:
        torch.compiler.reset()  # else it gives up after recompiling a function for a few values of p
        step = functools.partial(epsilon, p=p, sigma=1.0)
        compiled = torch.compile(step, fullgraph=True)
        calls = {
            "copy": functools.partial(out.copy_, grad),
            "compiled": functools.partial(compiled, grad),
            "eager": functools.partial(step, grad),
        }
        times = medians(calls, options.rounds, clock=device_clock(options.device))
        speed = 2 * grad.nbytes / times["copy"] / 1e9
        shares = "".join(f"{times['copy'] / times[name]:12.2f}" for name in ("compiled", "eager"))
        print(f"{p:6g}{speed:12.1f}{shares}")


if __name__ == "__main__":
    main()
