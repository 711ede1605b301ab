"""The perturbation in a training loop: of an array, or of a tree in one ball or one ball per leaf."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lpfamily._arrays import Bounds
from lpfamily.ascent.last_iterates import towards_vertices
from lpfamily.ascent.starts import is_random, starting_point
from lpfamily.box import box_of
from lpfamily.libraries import library_of_generator
from lpfamily.step import epsilon
from lpfamily.trees import Joint, is_tree, matched, named_leaves, rebuilt


@dataclass(frozen=True)
class Ball:
    """The set that eps must stay in, with the arguments of `lpfamily.epsilon`."""

    p: float
    sigma: Any
    bounds: Bounds | None
    mask: Any
    batch_ndim: int
    scale: Any = None
    joint: bool = True
    """Whether the leaves of a tree share one ball. If each has its own, sigma may be a tree too."""

    def step(self, grad: Any, x: Any) -> Any:
        """Return the steepest step at a gradient (eq. 3)."""
        if not self.joint and is_tree(x):
            balls, grads = self._of_leaves(x), matched("x", x, "grad", grad)
            triples = zip(balls, grads, _leaves(x), strict=True)
            return rebuilt(x, (ball.step(grad, leaf) for ball, grad, leaf in triples))
        box: dict[str, Any] = {} if self.bounds is None else {"x": x, "bounds": self.bounds}
        ball: dict[str, Any] = {"batch_ndim": self.batch_ndim, "mask": self.mask, "scale": self.scale}
        return epsilon(grad, self.p, self.sigma, **ball, **box)

    def begin(self, x: Any, start: Any) -> Any:
        """Return the starting point of an ascent, in ball and box, from `start` of `lpfamily.ascend`."""
        random = not is_tree(start) and is_random(start)
        names = "bounds", "mask", "batch_ndim", "scale"
        within: dict[str, Any] = {name: getattr(self, name) for name in names}
        if not is_tree(x):
            return starting_point(x, self.p, self.sigma, start, **within)
        if not self.joint:
            balls = self._of_leaves(x)
            if random:
                starts = library_of_generator(start).generators(start, len(balls))
            else:
                starts = matched("x", x, "start", start)
            triples = zip(balls, _leaves(x), starts, strict=True)
            return rebuilt(x, (ball.begin(leaf, start) for ball, leaf, start in triples))
        box = () if self.bounds is None else box_of(x, self.bounds)
        joint = Joint.of("x", x, self.batch_ndim, self.mask, self.scale, box)
        if not random:
            start = joint.like("start", start, joint.leaves[0].batch).rows
        of_rows = joint.keywords
        within = {name: of_rows.get(name) for name in within}
        return joint.tree_of(starting_point(joint.rows, self.p, self.sigma, start, **within))

    def ascended(self, gradient: Callable[[Any], Any], x: Any, steps: int, start: Any = None) -> Any:
        """Return the last iterate of Frank-Wolfe's method, from the result of `begin` or from x."""
        return towards_vertices(lambda at: self.step(gradient(at), x), x, steps, start)

    def _of_leaves(self, x: Any) -> list[Ball]:
        """Return the ball of each leaf."""
        box: tuple[Any, ...] = (x, None, None) if self.bounds is None else box_of(x, self.bounds)
        given = {"sigma": self.sigma, "mask": self.mask, "scale": self.scale, "low": box[1], "high": box[2]}
        columns = (matched("x", x, name, value) for name, value in given.items())
        return [
            replace(self, sigma=sigma, mask=mask, scale=scale, bounds=self.bounds and (low, high))
            for sigma, mask, scale, low, high in zip(*columns, strict=True)
        ]


def _leaves(x: Any) -> list[Any]:
    return [leaf for _, leaf in named_leaves(x, "x")]
