"""Trees of arrays: all leaves of an example together are one point, in one ball.

A tree is a dict, a list or a tuple, nested in any way, or a type that is registered with JAX. `Joint` joins
the entries of all leaves into one row per example, for a function of arrays, and splits its result again.
Where the dtypes of leaves differ, rows have a dtype that holds them all; each leaf comes back in its own. A
tree of one leaf is that leaf. None is a tree without leaves and stays None.
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
from lpfamily.weighted import radius_and_scale

Node = tuple[list[str], list[Any], Callable[[list[Any]], Any]]
"""One level of a tree: the path suffix of each child, the children, and a function that rebuilds the level
from other children."""

Box: TypeAlias = tuple[Any, ...]
"""x, low and high, each a tree or one value for all leaves; empty without a box."""


def is_tree(x: object) -> bool:
    """Whether x is a tree of arrays, not an array."""
    if _is_array(x):  # every call of every function comes here
        return False
    return x is not None and _node(x) is not None


def _is_array(x: Any) -> bool:
    """Whether x is an array; a module's parameter may look like one, but JAX knows it as a node."""
    if not (hasattr(x, "dtype") and hasattr(x, "shape")):
        return False
    if type(x).__module__.partition(".")[0] in ("numpy", "torch", "jax", "jaxlib"):
        return True
    jax: Any = sys.modules.get("jax")
    return jax is None or bool(jax.tree_util.all_leaves([x]))


def _node(x: Any) -> Node | None:
    """Return the top level of a tree, or None for a leaf."""
    if _is_array(x):
        return None
    if x is None:
        return [], [], lambda _: None
    if isinstance(x, dict):
        return (
            [f"[{key!r}]" for key in x],
            list(x.values()),
            lambda children: x | dict(zip(x, children, strict=True)),
        )
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return [f".{name}" for name in x._fields], list(x), lambda children: type(x)(*children)
    if isinstance(x, list | tuple):
        return [f"[{index}]" for index in range(len(x))], list(x), type(x)
    jax: Any = sys.modules.get("jax")  # nothing is registered with JAX before it is loaded
    if jax is None or type(x).__module__ == "builtins" or jax.tree_util.all_leaves([x]):
        return None
    children, definition = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda each: each is not x)
    return (
        [jax.tree_util.keystr(path) for path, _ in children],
        [child for _, child in children],
        definition.unflatten,
    )


def named_leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a tree, each with its path."""
    node = _node(tree)
    if node is None:
        yield path, tree
        return
    for suffix, child in zip(*node[:2], strict=True):
        yield from named_leaves(child, path + suffix)


def rebuilt(tree: Any, leaves: Iterator[Any]) -> Any:
    """Return a tree of the same structure with other leaves."""
    node = _node(tree)
    return next(leaves) if node is None else node[2]([rebuilt(child, leaves) for child in node[1]])


def mapped(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Return a tree, or a leaf, with `function` applied to its leaves and those of `others`."""
    columns = (matched("x", tree, "the other tree", each) for each in others)
    return rebuilt(tree, map(function, (leaf for _, leaf in named_leaves(tree, "")), *columns))


def matched(name: str, tree: Any, of: str, value: Any) -> list[Any]:
    """Return for each leaf of a tree the leaf of `value` at its path, or `value` itself if it is no tree."""
    paths = _paths("", tree)
    if not is_tree(value):
        return [value] * len(paths)
    values = dict(named_leaves(value, ""))
    for path in [*paths, *values]:
        if (path in values) != (path in paths):
            have, lacks = (of, name) if path in values else (name, of)
            raise ValueError(
                f"{of} must be one value for all leaves, or a tree like {name}; {have} has a leaf "
                f"{have}{path}, {lacks} has none there"
            )
    return [values[path] for path in paths]


@dataclass(frozen=True)
class Joint:
    """The leaves of a tree as one point per example, whose entries are rows, (*batch, d)."""

    name: str
    tree: Any
    leaves: Sequence[Given[Array]]
    """The leaves; masked entries are 0."""
    batch_ndim: int
    scales: Sequence[Numbers | None]
    box: Sequence[Sequence[Numbers]]
    """x, low and high, each one value per leaf; empty without a box."""

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
        """Return a tree with the mask, scale and box of its leaves."""
        return cls.from_leaves(name, tree, batch_ndim, *_columns(name, tree, mask, scale, box))

    @classmethod
    def from_leaves(
        cls,
        name: str,
        tree: Any,
        batch_ndim: int | None,
        leaves: Sequence[Array],
        masks: Sequence[Array | None],
        scales: Sequence[Numbers | None],
        *box: Sequence[Numbers],
    ) -> Joint:
        """Return leaves in the order of a tree; raise if they are not of the same examples."""
        paths = _paths(name, tree)
        if batch_ndim is None:
            batch_ndim = 0 if all(len(leaf.shape) < 2 for leaf in leaves) else 1
        given = [
            examples(leaf, path, batch_ndim, mask)
            for path, leaf, mask in zip(paths, leaves, masks, strict=True)
        ]
        for path, leaf in zip(paths, given, strict=True):
            if leaf.batch != given[0].batch:
                raise ValueError(
                    f"the leaves of {name} must be of the same examples; the first {batch_ndim} axes of "
                    f"{paths[0]} have shape {given[0].batch}, those of {path} {leaf.batch}: with "
                    f"batch_ndim=0 all leaves are one example"
                )
        return cls(name, tree, given, batch_ndim, scales, box)

    def like(self, name: str, tree: Any, batch: tuple[int, ...]) -> Joint:
        """Return a tree of the same structure and leaf shapes, for this batch shape; raise for any other."""
        if not is_tree(tree):
            raise TypeError(f"{name} must be a tree like {self.name}; got {type(tree).__name__}")
        ordered = rebuilt(self.tree, iter(matched(self.name, self.tree, name, tree)))
        joint = Joint.of(name, ordered, self.batch_ndim)
        for path, leaf, other in zip(_paths("", self.tree), self.leaves, joint.leaves, strict=True):
            shape, expected = tuple(other.array.shape), batch + self._example_shape(leaf)
            if shape != expected:
                raise ValueError(
                    f"{name}{path} must have the shape of {self.name}{path}, {expected}; got {shape}"
                )
        return joint

    def _example_shape(self, leaf: Given[Array]) -> tuple[int, ...]:
        return tuple(leaf.array.shape[self.batch_ndim :])

    @property
    def rounding(self) -> float:
        """The largest eps of a leaf's dtype."""
        return max(float(finfo(leaf.xp, leaf.array.dtype).eps) for leaf in self.leaves)

    @property
    def has_one_dtype(self) -> bool:
        """Whether all leaves have one dtype."""
        return all(leaf.array.dtype == self.leaves[0].array.dtype for leaf in self.leaves)

    def joined(self, rows: Sequence[Array]) -> Array:
        """Return the rows of all leaves side by side, in a dtype that holds all leaves."""
        xp = self.leaves[0].xp
        dtype = self.leaves[0].array.dtype
        if not self.has_one_dtype:
            dtype = xp.result_type(*(leaf.values.dtype for leaf in self.leaves))
        return xp.concat([as_dtype(xp, each, dtype) for each in rows], axis=-1)

    @property
    def rows(self) -> Array:
        """All entries as rows; for a tree of one leaf, that leaf."""
        if len(self.leaves) == 1:
            return self.leaves[0].array
        return self.joined([leaf.rows(leaf.array) for leaf in self.leaves])

    def split(self, rows: Array) -> list[Array]:
        """Return rows, of any number of examples, as leaves."""
        if len(self.leaves) == 1:
            return [rows]
        batch, arrays, at = tuple(rows.shape[:-1]), [], 0
        for leaf in self.leaves:
            end = at + leaf.values.shape[-1]
            arrays.append(leaf.back(reshape(rows[..., at:end], batch + self._example_shape(leaf))))
            at = end
        return arrays

    def tree_of(self, rows: Array) -> Any:
        """Return rows, of any number of examples, as a tree."""
        return rebuilt(self.tree, iter(self.split(rows)))

    @property
    def mask(self) -> Array | None:
        """The mask of the rows."""
        if len(self.leaves) == 1 or self.leaves[0].mask is None:
            return self.leaves[0].mask
        masks = [leaf.rows(broadcast_mask(leaf.array, leaf.mask, self.name)) for leaf in self.leaves]
        return self.leaves[0].xp.concat(masks, axis=-1)

    @property
    def is_scaled(self) -> bool:
        """Whether the ball is weighted."""
        return self.scales[0] is not None

    @property
    def scale(self) -> Numbers | None:
        """The scale of the rows."""
        if len(self.leaves) == 1 or not self.is_scaled:
            return self.scales[0]
        scales = map(_scale_of_leaf, _paths(self.name, self.tree), self.leaves, self.scales)
        return self.joined(list(scales))

    @property
    def box_of_rows(self) -> Box:
        """x, low and high of the rows; empty without a box."""
        if not self.box or len(self.leaves) == 1:
            return tuple(each for (each,) in self.box)
        boxes = map(_box_of_leaf, _paths(self.name, self.tree), self.leaves, *self.box)
        return tuple(map(self.joined, zip(*boxes, strict=True)))

    @property
    def keywords(self) -> dict[str, Any]:
        """Keyword arguments for a function of the rows: `batch_ndim`, `mask`, `scale`; `x` and `bounds`."""
        ball: dict[str, Any] = {"batch_ndim": self.batch_ndim, "mask": self.mask, "scale": self.scale}
        box = self.box_of_rows
        return ball | {"x": box[0], "bounds": box[1:]} if box else ball


def _scale_of_leaf(path: str, leaf: Given[Array], scale: Numbers) -> Array:
    """Return the scale of a leaf as rows, all NaN for an example with a bad scale."""
    try:
        radius, rows = radius_and_scale(leaf, leaf.xp.zeros_like(leaf.values[..., :1]), scale)
        return leaf.xp.where(radius == radius, rows, radius)
    except (TypeError, ValueError) as cause:
        raise type(cause)(f"{cause}; the leaf is {path}") from cause


def _box_of_leaf(path: str, leaf: Given[Array], *box: Numbers) -> tuple[Array, ...]:
    """Return x, low and high as rows, rounded to the leaf's dtype.

    An entry that is masked, or outside the box by the leaf's rounding, becomes its own bound. The leaf's
    rounding may be coarser than that of the rows.
    """
    xp = leaf.xp
    try:
        down, up = room_down_and_up(leaf, *box)
        x, low, high = map(partial(entries, leaf), ("x", "low", "high"), box)
    except (TypeError, ValueError) as cause:
        raise type(cause)(f"{cause}; the leaf is {path}") from cause
    x, low, high = map(leaf.rows, (x, low, high))
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
    """Apply function(rows, sigma, **keywords) to a tree; return a tree like it, or an array if it `reduces`.

    `by_leaves` may return the result's leaves without joining the tree's, or None.
    """
    columns = _columns(name, tree, mask, scale, box)
    n = len(columns[0])

    def call(first: Array, sigma: Numbers, *others: Any) -> Any:
        given = first, *others
        joint = Joint.from_leaves(
            name, tree, batch_ndim, *(given[k : k + n] for k in range(0, len(given), n))
        )
        if (leaves := by_leaves(joint, sigma)) is not None:
            return tuple(leaves)
        result = function(joint.rows, sigma, **joint.keywords)
        return result if reduces else tuple(joint.split(result))

    first, *others = chain(*columns)
    result = detoured(call, _paths(name, tree)[0], first, sigma, *others)
    return result if reduces else rebuilt(tree, iter(result))


def _columns(name: str, tree: Any, mask: Any, scale: Any, box: Box) -> list[list[Any]]:
    """Return the leaves of a tree, and the masks, scales, x, low and high of these leaves."""
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
