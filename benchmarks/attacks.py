"""`python -m benchmarks.attacks`: the accuracy that attacks leave, of lpfamily and of other packages.

The networks are trained with fixed seeds on the real MNIST and CIFAR-10, and saved in --folder. Every attack
gets the same test images, in [0, 1]. A perturbed image outside ball or box does not count as an error. In the
tables `left` is the accuracy that an attack leaves, `gradients` the mean number of gradients per image,
counted by backward passes, and `seconds` the wall time. "quick" and "standard" are the whole of
`lpfamily_torch.robustness`, including the gradients of its search for the smallest sigma of each image.
`smallest` is the median of these sigmas. lpfamily finds it in a ball of `WIDER` times the radius; attacks
that only search for the smallest perturbation get as many gradients. At the end come seconds per gradient,
from interleaved rounds, and the goals that are met. All of it takes hours; --networks, --examples and --peers
select less.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.timing import medians, threads

if TYPE_CHECKING:
    from torch import Tensor

EFFORTS = ("quick", "standard")
SMALLEST = "standard, wider"
WIDER = 4
TIMED = 20
"""The number of steps of the attacks whose seconds per gradient are compared."""
PER_GRADIENT = 1.15
"""The most time that a gradient of lpfamily may take, in units of a gradient of torchattacks' PGD."""

Ball = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """The result of an attack, and its cost."""

    left: float
    gradients: float
    seconds: float
    smallest: float = math.nan
    right: Any = None
    """A mask of the images that are still classified correctly."""


def main() -> None:
    """Print a table for each network and ball, and the goals."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", help="names of networks to attack (default: all)")
    parser.add_argument("--examples", type=int, default=500, help="number of test images (default: 500)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the training (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="(default: 1)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("build/attacked"),
        help="where networks are saved (default: %(default)s)",
    )
    parser.add_argument("--peers", nargs="*", help="packages to compare with (default: all installed)")
    options = parser.parse_args()
    threads(options.threads)

    import torch

    from benchmarks import attack_peers
    from benchmarks.attacked import NETWORKS, images, network

    torch.set_num_threads(options.threads)
    names = options.networks or list(NETWORKS)
    for kind, given, known in (
        ("network", names, list(NETWORKS)),
        ("peer", options.peers or [], list(attack_peers.MODULES)),
    ):
        if unknown := set(given) - set(known):
            parser.error(f"no such {kind}: {', '.join(unknown)}; choose from {'; '.join(known)}")
    if options.peers is None:
        options.peers = list(filter(attack_peers.is_installed, attack_peers.MODULES))
    goals = _Goals(options.examples)
    for name in names:
        model = attack_peers.Counted(network(name, options.seed, options.folder))
        x, y = (each[: options.examples] for each in images(NETWORKS[name].data, train=False))
        for ball in NETWORKS[name].balls:
            rows = dict(_rows(model, x, y, ball, options.peers))
            _print_table(name, ball, rows)
            goals.add(f"{name}, p = {ball[0]:g}, sigma = {ball[1]:.3g}", ball[0], rows)
        if "torchattacks" in options.peers:
            goals.add_speed(name, _speed(model, x, y))
    goals.print()


def _rows(model: Any, x: Tensor, y: Tensor, ball: Ball, peers: list[str]) -> Iterator[tuple[str, Row]]:
    """Run the attacks, and yield the name and the result of each."""
    import torch

    from benchmarks import attack_peers
    from lpfamily_torch import robustness

    p, sigma = ball
    how = {"p": p, "bounds": (0, 1), "progress": False}
    for name, effort, factor in (*((effort, effort, 1) for effort in EFFORTS), (SMALLEST, "standard", WIDER)):
        with _measured(model, len(x)) as cost:
            result = robustness(model, x, y, sigma=factor * sigma, effort=effort, **how).balls[p]
        right = torch.from_numpy(result.smallest > sigma)
        yield name, Row(_share(right), *cost, statistics.median(result.smallest.tolist()), right)
    budget = round(cost[0])
    attacks = {"adaptive, 100": attack_peers.adaptive(p, sigma, 100)}
    attacks |= attack_peers.within(p, sigma, peers)
    for name, attack in attacks.items():
        with _measured(model, len(x)) as cost:
            perturbed = attack(model, x, y).detach()
        right = ~_is_fooled(model, x, y, perturbed, p, sigma)
        yield name, Row(_share(right), *cost, right=right)
    for name, attack in attack_peers.smallest(p, budget, peers).items():
        with _measured(model, len(x)) as cost:
            perturbed = attack(model, x, y).detach()
        radii = torch.linalg.vector_norm((perturbed - x).flatten(1), ord=p, dim=1)
        radii[~_is_fooled(model, x, y, perturbed, p, math.inf)] = math.inf
        right = radii > sigma
        yield name, Row(_share(right), *cost, statistics.median(radii.tolist()), right)


@contextmanager
def _measured(model: Any, examples: int) -> Iterator[list[float]]:
    """Yield a list; after the block it has the number of gradients per image and the seconds."""
    cost: list[float] = []
    model.gradients, begin = 0, time.perf_counter()
    yield cost
    cost += [model.gradients / examples, time.perf_counter() - begin]


def _share(right: Tensor) -> float:
    return float(right.double().mean())


def _is_fooled(model: Any, x: Tensor, y: Tensor, perturbed: Tensor, p: float, sigma: float) -> Tensor:
    """Return a mask of the images that are misclassified, clean or perturbed.

    A perturbed image counts only inside ball and box, to rounding.
    """
    import torch

    with torch.no_grad():
        wrong, wrong_when_clean = (model(at).argmax(dim=1) != y for at in (perturbed, x))
    norms = torch.linalg.vector_norm((perturbed - x).flatten(1), ord=p, dim=1)
    outside = (perturbed - perturbed.clamp(0, 1)).abs().flatten(1).amax(dim=1)
    return wrong_when_clean | wrong & (norms <= 1.0001 * sigma) & (outside <= 1e-6)


def _speed(model: Any, x: Tensor, y: Tensor) -> dict[float, float]:
    """Return by p the time of a gradient of lpfamily, in units of a gradient of torchattacks' PGD."""
    from benchmarks import attack_peers

    x, y, ratios = x[:100], y[:100], {}
    for p, sigma in (2.0, 1.0), (math.inf, 0.1):
        calls: dict[str, Callable[[], object]] = {
            name: partial(attack, model, x, y)
            for name, attack in (
                ("ours", attack_peers.adaptive(p, sigma, TIMED)),
                ("PGD", attack_peers.pgd(p, sigma, TIMED)),
            )
        }
        gradients = {}
        for name, call in calls.items():
            with _measured(model, len(x)) as cost:
                call()
            gradients[name] = cost[0]
        times = medians(calls, rounds=5)
        ratios[p] = times["ours"] / gradients["ours"] / (times["PGD"] / gradients["PGD"])
    return ratios


def _print_table(name: str, ball: Ball, rows: dict[str, Row]) -> None:
    print(f"\n{name}: p = {ball[0]:g}, sigma = {ball[1]:.3g}")
    print(f"{'':28}{'left':>8}{'gradients':>11}{'seconds':>9}{'smallest':>10}")
    for attack, row in rows.items():
        smallest = "" if math.isnan(row.smallest) else f"{row.smallest:.4g}"
        print(f"{attack:28}{row.left:8.1%}{row.gradients:11.0f}{row.seconds:9.1f}{smallest:>10}", flush=True)


class _Goals:
    """The goals: for each, its comparisons, and whether each of them is met."""

    def __init__(self, examples: int) -> None:
        self.examples = examples
        self.lines: dict[str, list[tuple[bool, str]]] = {}

    def add(self, where: str, p: float, rows: dict[str, Row]) -> None:
        """Compare the attacks on one network in one ball."""
        standard, quick = rows["standard"], rows["quick"]
        white_box = [rows.get(f"torchattacks {name}") for name in ("APGD-CE", "APGDT")]
        first, targeted = white_box
        if first and targeted:
            union, seconds = _share(first.right & targeted.right), first.seconds + targeted.seconds
            self._left("standard leaves no more than APGD-CE and APGDT", where, standard.left, union)
            self._left("quick leaves no more than APGD-CE of 100 gradients", where, quick.left, first.left)
            text = f"{where}: {standard.seconds:.1f} and {seconds:.1f} s"
            self._line("standard takes less time than both", standard.seconds < seconds, text)
        if peer := rows.get("adv-lib APGD-L1, 10 restarts"):
            self._left("standard leaves less than adv-lib's APGD-L1", where, standard.left, peer.left)
        ours = rows[SMALLEST].smallest
        others = [row.smallest for name, row in rows.items() if not name.startswith(EFFORTS)]
        if theirs := [smallest for smallest in others if not math.isnan(smallest)]:
            text = f"{where}: {ours:.4g} and {min(theirs):.4g}"
            self._line("the median smallest sigma is no larger than the peers'", ours <= min(theirs), text)

    def add_speed(self, name: str, ratios: dict[float, float]) -> None:
        """Compare seconds per gradient."""
        for p, ratio in ratios.items():
            text = f"{name}, p = {p:g}: {ratio:.2f}"
            self._line(f"a gradient takes at most {PER_GRADIENT} of PGD's", ratio <= PER_GRADIENT, text)

    def print(self) -> None:
        """Print in how many comparisons each goal is met, and those in which it is missed."""
        for goal, lines in self.lines.items():
            print(f"\n{goal}: {sum(met for met, _ in lines)} of {len(lines)}")
            for met, text in lines:
                if not met:
                    print(f"  missed, {text}")

    def _left(self, goal: str, where: str, ours: float, theirs: float) -> None:
        error = math.sqrt(theirs * (1 - theirs) / self.examples)
        text = f"{where}: {ours:.1%} and {theirs:.1%}, standard error {error:.1%}"
        self._line(f"{goal}, within a standard error", ours <= theirs + error, text)
        self._line(f"{goal}, strictly", ours <= theirs, text)

    def _line(self, goal: str, met: bool, text: str) -> None:
        self.lines.setdefault(goal, []).append((met, text))


if __name__ == "__main__":
    main()
