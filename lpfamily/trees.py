"""Trees of arrays: the leaves of an example are one point, and it has one ball.

A tree is a dict, a list or a tuple, nested as one likes, or what is registered with JAX. `Joint` puts the
entries of all leaves beside each other, a row per example, for a function of arrays, and splits its result.
Where the dtypes of leaves differ, rows have one that holds them all; each leaf comes back in its own. A tree
of one leaf is that leaf. None holds no leaf, and stays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

from lpfamily._arrays import (
    Array,
    Given,
    Numbers,
    as_dtype,
    broadcast_mask,
    examples,
    finfo,
    library_name,
    namespace_of,
    reshape,
)
from lpfamily.box import entries, room_down_and_up
from lpfamily.libraries import detoured
from lpfamily.weighted import weights

Node = tuple[list[str], list[Any], Callable[[list[Any]], Any]]
"""One level of a tree: the ends of paths, what is there, and what makes the like of others."""

Box: TypeAlias = tuple[Any, ...]
"""x, low and high, each a tree or a value for all; or nothing."""


def is_tree(x: object) -> bool:
    """Whether x is no array but a tree of them."""
    if _is_array(x):  # every call of every function comes here
        return False
    return x is not None and _node(x) is not None


def _is_array(x: Any) -> bool:
    """Whether x looks like an array; a module's parameter may too, which JAX knows as the node that it is."""
    if not (hasattr(x, "dtype") and hasattr(x, "shape")):
        return False
    if type(x).__module__.partition(".")[0] in ("numpy", "torch", "jax", "jaxlib"):
        return True
    jax: Any = sys.modules.get("jax")
    return jax is None or bool(jax.tree_util.all_leaves([x]))


def _node(x: Any) -> Node | None:
    """Return what a tree holds, or None for a leaf."""
    if _is_array(x):
        return None
    if x is None:
        return [], [], lambda _: None
    if isinstance(x, dict):
        return [f"[{key!r}]" for key in x], list(x.values()), lambda made: x | dict(zip(x, made, strict=True))
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return [f".{name}" for name in x._fields], list(x), lambda made: type(x)(*made)
    if isinstance(x, list | tuple):
        return [f"[{index}]" for index in range(len(x))], list(x), type(x)
    jax: Any = sys.modules.get("jax")  # with which nothing is registered before it is loaded
    if jax is None or type(x).__module__ == "builtins" or jax.tree_util.all_leaves([x]):
        return None
    below, definition = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda each: each is not x)
    return (
        [jax.tree_util.keystr(path) for path, _ in below],
        [each for _, each in below],
        definition.unflatten,
    )


def named_leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a tree, each with its path."""
    node = _node(tree)
    if node is None:
        yield path, tree
        return
    for end, below in zip(*node[:2], strict=True):
        yield from named_leaves(below, path + end)


def rebuilt(tree: Any, leaves: Iterator[Any]) -> Any:
    """Return the like of a tree with other leaves."""
    node = _node(tree)
    return next(leaves) if node is None else node[2]([rebuilt(below, leaves) for below in node[1]])


def mapped(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Return the like of a tree, or of a leaf, with what a function makes of its leaves, and of others'."""
    columns = (matched("x", tree, "what goes with it", each) for each in others)
    return rebuilt(tree, map(function, (leaf for _, leaf in named_leaves(tree, "")), *columns))


def matched(name: str, tree: Any, of: str, value: Any) -> list[Any]:
    """Return for each leaf of a tree that at its place in `value`, or `value` itself if that is no tree."""
    ends = _paths("", tree)
    if not is_tree(value):
        return [value] * len(ends)
    found = dict(named_leaves(value, ""))
    for end in [*ends, *found]:
        if (end in found) != (end in ends):
            have, lacks = (of, name) if end in found else (name, of)
            raise ValueError(
                f"{of} must be one value for all leaves, or a tree like {name}; {have} has the leaf "
                f"{have}{end}, and {lacks} none there"
            )
    return [found[end] for end in ends]


@dataclass(frozen=True)
class Joint:
    """The leaves of a tree as one point per example, whose entries are rows, (*batch, d)."""

    name: str
    tree: Any
    parts: Sequence[Given[Array]]
    """The leaves, with entries of 0 where they are masked."""
    batch_ndim: int
    scales: Sequence[Numbers | None]
    box: Sequence[Sequence[Numbers]]
    """x, low and high, of each leaf."""

    @classmethod
    def of(
        cls,
        name: str,
        tree: Any,
        batch_ndim: int | None,
        mask: Any = None,
        scale: Any = None,
        box: Box = (),
    ) -> Joint:
        """Return a tree, and what belongs to its leaves."""
        return cls.made(name, tree, batch_ndim, *_columns(name, tree, mask, scale, box))

    @classmethod
    def made(
        cls,
        name: str,
        tree: Any,
        batch_ndim: int | None,
        leaves: Sequence[Array],
        masks: Sequence[Array | None],
        scales: Sequence[Numbers | None],
        *box: Sequence[Numbers],
    ) -> Joint:
        """Return leaves, in the order of a tree; raise if they are not of the same examples."""
        paths = _paths(name, tree)
        if batch_ndim is None:
            batch_ndim = 0 if all(len(leaf.shape) < 2 for leaf in leaves) else 1
        parts = [
            examples(leaf, path, batch_ndim, mask)
            for path, leaf, mask in zip(paths, leaves, masks, strict=True)
        ]
        for path, part in zip(paths, parts, strict=True):
            if part.batch != parts[0].batch:
                raise ValueError(
                    f"the leaves of {name} must be of the same examples; by their first {batch_ndim} axes "
                    f"{paths[0]} is of {parts[0].batch}, {path} of {part.batch}: with batch_ndim=0 all is "
                    "one example"
                )
        return cls(name, tree, parts, batch_ndim, scales, box)

    def like(self, name: str, tree: Any, batch: tuple[int, ...]) -> Joint:
        """Return a tree of this structure and of leaves like these, of some examples; raise if it is none."""
        if not is_tree(tree):
            raise TypeError(f"{name} must be a tree like {self.name}; got {type(tree).__name__}")
        ordered = rebuilt(self.tree, iter(matched(self.name, self.tree, name, tree)))
        found = Joint.of(name, ordered, self.batch_ndim)
        for path, part, other in zip(_paths("", self.tree), self.parts, found.parts, strict=True):
            shape, expected = tuple(other.array.shape), batch + self._inner(part)
            if shape != expected:
                raise ValueError(
                    f"{name}{path} must have the shape of {self.name}{path}, {expected}; got {shape}"
                )
        return found

    def _inner(self, part: Given[Array]) -> tuple[int, ...]:
        return tuple(part.array.shape[self.batch_ndim :])

    @property
    def rounding(self) -> float:
        """The largest eps of a leaf's dtype."""
        return max(float(finfo(part.xp, part.array.dtype).eps) for part in self.parts)

    @property
    def is_even(self) -> bool:
        """Whether all leaves have one dtype."""
        return all(part.array.dtype == self.parts[0].array.dtype for part in self.parts)

    def beside(self, rows: Sequence[Array]) -> Array:
        """Return rows of each leaf beside each other, in a dtype that holds all leaves."""
        xp = self.parts[0].xp
        dtype = self.parts[0].array.dtype
        if not self.is_even:
            dtype = xp.result_type(*(part.values.dtype for part in self.parts))
        return xp.concat([as_dtype(xp, each, dtype) for each in rows], axis=-1)

    @property
    def rows(self) -> Array:
        """All entries; of a tree of one leaf the leaf."""
        if len(self.parts) == 1:
            return self.parts[0].array
        return self.beside([part.rows(part.array) for part in self.parts])

    def split(self, rows: Array) -> list[Array]:
        """Return rows, of any examples, as leaves."""
        if len(self.parts) == 1:
            return [rows]
        batch, leaves, at = tuple(rows.shape[:-1]), [], 0
        for part in self.parts:
            end = at + part.values.shape[-1]
            leaves.append(part.back(reshape(rows[..., at:end], batch + self._inner(part))))
            at = end
        return leaves

    def tree_of(self, rows: Array) -> Any:
        """Return rows, of any examples, as a tree."""
        return rebuilt(self.tree, iter(self.split(rows)))

    @property
    def mask(self) -> Array | None:
        """What may move, of the rows."""
        if len(self.parts) == 1 or self.parts[0].mask is None:
            return self.parts[0].mask
        masks = [part.rows(broadcast_mask(part.array, part.mask, self.name)) for part in self.parts]
        return self.parts[0].xp.concat(masks, axis=-1)

    @property
    def is_scaled(self) -> bool:
        """Whether the ball is weighted."""
        return self.scales[0] is not None

    @property
    def scale(self) -> Numbers | None:
        """That of the rows."""
        if len(self.parts) == 1 or not self.is_scaled:
            return self.scales[0]
        found = map(_scale_of_leaf, _paths(self.name, self.tree), self.parts, self.scales)
        return self.beside(list(found))

    @property
    def box_of_rows(self) -> Box:
        """x, low and high of the rows, or nothing where there are none."""
        if not self.box or len(self.parts) == 1:
            return tuple(each for (each,) in self.box)
        found = map(_box_of_leaf, _paths(self.name, self.tree), self.parts, *self.box)
        return tuple(map(self.beside, zip(*found, strict=True)))

    @property
    def within(self) -> dict[str, Any]:
        """What a function of the rows is told: `batch_ndim`, `mask`, `scale`; in a box `x` and `bounds`."""
        ball: dict[str, Any] = {"batch_ndim": self.batch_ndim, "mask": self.mask, "scale": self.scale}
        box_of_rows = self.box_of_rows
        return ball | {"x": box_of_rows[0], "bounds": box_of_rows[1:]} if box_of_rows else ball


def _scale_of_leaf(path: str, part: Given[Array], scale: Numbers) -> Array:
    """Return the scale of a leaf as rows; what is bad in it is NaN."""
    try:
        radius, found = weights(part, part.xp.zeros_like(part.values[..., :1]), scale)
        return part.xp.where(radius == radius, found, radius)
    except (TypeError, ValueError) as cause:
        raise type(cause)(f"{cause}; this is of {path}") from cause


def _box_of_leaf(path: str, part: Given[Array], *box: Numbers) -> tuple[Array, ...]:
    """Return x, low and high as rows, rounded as the leaf is.

    Where x is outside by the rounding of the leaf, which may be coarser than that of the rows, or does not
    move, it is its own bound.
    """
    xp = part.xp
    try:
        down, up = room_down_and_up(part, *box)
        x, low, high = map(partial(entries, part), ("x", "low", "high"), box)
    except (TypeError, ValueError) as cause:
        raise type(cause)(f"{cause}; this is of {path}") from cause
    x, low, high = map(part.rows, (x, low, high))
    return x, xp.where(down == 0, x, low), xp.where(up == 0, x, high)


def over_leaves(
    function: Callable[..., Array],
    name: str,
    tree: Any,
    sigma: Numbers,
    batch_ndim: int | None,
    mask: Any = None,
    scale: Any = None,
    box: Box = (),
    *,
    by_leaves: Callable[[Joint, Numbers], Sequence[Array] | None] = lambda *_: None,
    reduces: bool = False,
) -> Any:
    """Return what function(rows, sigma, **within) makes of a tree: its like, or an array where it `reduces`.

    `by_leaves` may make the leaves without joining them.
    """
    columns = _columns(name, tree, mask, scale, box)
    n = len(columns[0])

    def call(first: Array, sigma: Numbers, *others: Any) -> Any:
        given = first, *others
        joint = Joint.made(name, tree, batch_ndim, *(given[k : k + n] for k in range(0, len(given), n)))
        if (leaves := by_leaves(joint, sigma)) is not None:
            return tuple(leaves)
        made = function(joint.rows, sigma, **joint.within)
        return made if reduces else tuple(joint.split(made))

    first, *others = chain(*columns)
    made = detoured(call, _paths(name, tree)[0], first, sigma, *others)
    return made if reduces else rebuilt(tree, iter(made))


def _columns(name: str, tree: Any, mask: Any, scale: Any, box: Box) -> list[list[Any]]:
    """Return the leaves of a tree, and for each its mask, scale, x, low and high."""
    leaves = list(named_leaves(tree, name))
    if not leaves:
        raise ValueError(f"{name} must hold at least one array; got {tree!r}, a tree without leaves")
    first, *xps = [namespace_of(leaf, path) for path, leaf in leaves]
    for (path, _), xp in zip(leaves[1:], xps, strict=True):
        if xp is not first:
            raise TypeError(
                f"the leaves of {name} must be arrays of one library; {leaves[0][0]} is of "
                f"{library_name(first)}, {path} of {library_name(xp)}: convert one of them first"
            )
    others = zip(("mask", "scale", "x", "low", "high"), (mask, scale, *box), strict=False)
    return [[leaf for _, leaf in leaves], *(matched(name, tree, of, value) for of, value in others)]


def _paths(name: str, tree: Any) -> list[str]:
    return [path for path, _ in named_leaves(tree, name)]
