"""What a model computes around its matrix products, found in Inductor's graph: norm, gate and residual.

Torch's own pattern matcher takes the arguments of a sum in one order; here both orders, and views and changes of
dtype between, are the same pattern.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch

aten, prims = torch.ops.aten, torch.ops.prims

Node = Any
"""torch.fx.Node, whose arguments may be anything."""

Pattern = Any
"""A name, which stands for any one node or number; a number; or an operation and the patterns of its arguments."""

OPERATIONS = {
    "add": aten.add.Tensor, "mul": aten.mul.Tensor, "div": aten.div.Tensor, "pow": aten.pow.Tensor_Scalar,
    "mean": aten.mean.dim, "rsqrt": aten.rsqrt.default, "neg": aten.neg.default, "exp": aten.exp.default,
    "tanh": aten.tanh.default, "sigmoid": aten.sigmoid.default, "silu": aten.silu.default,
}  # fmt: skip
SPLITS = (aten.split.Tensor, aten.split_with_sizes.default)
VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)

SQUARES = (("pow", "x", 2), ("mul", "x", "x"))
NORMS = [
    ("mul", "weights", ("mul", "x", ("rsqrt", ("add", ("mean", square), "eps")))) for square in SQUARES
]  # RMSNorm of Llama and most others; Gemma's multiplies with 1 + weights
CUBED = ("mul", ("mul", "gate", "gate"), "gate")
TANH = ("tanh", ("mul", ("add", "gate", ("mul", CUBED, 0.044715)), 0.7978845608028654))
GATES = [
    ("silu", ("mul", ("div", "gate", ("add", ("exp", ("neg", "gate")), 1)), "up")),
    ("silu", ("mul", ("mul", "gate", ("sigmoid", "gate")), "up")),
    ("silu", ("mul", ("silu", "gate"), "up")),
    ("gelu", ("mul", ("mul", ("mul", "gate", 0.5), ("add", TANH, 1)), "up")),
]


class Match(NamedTuple):
    """What the names of a pattern stand for, and the nodes from there to the one that was matched."""

    names: dict[str, Any]
    inside: frozenset[Node]


def match(pattern: Pattern, node: Node, known: Match | None = None) -> Match | None:
    """None when the node is something else."""
    names, inside = known or Match({}, frozenset())
    while getattr(node, "target", None) in (*VIEWS, prims.convert_element_type.default):
        inside |= {node}
        node = node.args[0]
    if isinstance(pattern, str):
        same = names.get(pattern, node) is node
        return Match({**names, pattern: node}, inside) if same else None
    if not isinstance(pattern, tuple):
        return Match(names, inside) if node == pattern else None
    operation, *wanted = pattern
    if getattr(node, "target", None) is not OPERATIONS[operation] or node.kwargs:
        return None
    given = node.args[: len(wanted)]
    for order in (given, given[::-1]) if operation in ("add", "mul") else (given,):
        found: Match | None = Match(names, inside | {node})
        for part, argument in zip(wanted, order, strict=True):
            found = found and match(part, argument, found)
        if found:
            return found
    return None


class Gated(NamedTuple):
    """`activation(gate) * up`; one product when gate and up are its halves."""

    products: list[Node]
    activation: str


def gated(node: Node) -> Gated | None:
    """What `node` is, when nothing else reads what it is made of. The products may be anything yet."""
    if node.target is not aten.mul.Tensor:
        return None
    for activation, pattern in GATES:
        found = match(pattern, node)
        if found is None:
            continue
        parts = [found.names["gate"], found.names["up"]]
        if not all(isinstance(part, torch.fx.Node) and _size(part) == _size(node) for part in parts):
            return None
        products, inside = parts, found.inside.union(parts)
        if all(part.target is operator.getitem and part.args[0].target in SPLITS for part in parts):
            split = parts[0].args[0]
            whole = match("whole", split.args[0])
            if whole is None or not _halves(parts, split, whole.names["whole"]):
                return None
            products = [whole.names["whole"]]
            inside = inside.union([split], products, whole.inside)
        alone = all(user in inside for inner in inside - {node} for user in inner.users)
        return Gated(products, activation) if alone else None
    return None


def _size(node: Node) -> tuple[int, torch.dtype]:
    value = node.meta["val"]
    return value.numel(), value.dtype


def _halves(parts: list[Node], split: Node, whole: Node) -> bool:
    """Whether they are the left and the right half of the columns."""
    columns = whole.meta["val"].shape[-1]
    widths = [split.args[0].meta["val"].shape[-1], *(2 * part.meta["val"].shape[-1] for part in parts)]
    return [part.args for part in parts] == [(split, 0), (split, 1)] and widths == [columns] * 3


def residual_sum(product: Node) -> Node | None:
    """The sum, of two tensors alike, that alone reads the product; None when there is no such sum."""
    node = product
    while len(node.users) == 1:
        (user,) = node.users
        if user.target is aten.add.Tensor and not user.kwargs:
            alike = all(isinstance(side, torch.fx.Node) and _alike(side, user) for side in user.args)
            return user if alike and user.args[0] is not user.args[1] else None
        if user.target not in VIEWS:
            return None
        node = user
    return None


class Norm(NamedTuple):
    """x * rsqrt(mean(x * x) + eps) * weights, the mean being over the columns of a row."""

    x: Node
    weights: Node
    eps: float


def norm(node: Node) -> Norm | None:
    """What `node` is."""
    found = next(filter(None, (match(pattern, node) for pattern in NORMS)), None)
    if found is None:
        return None
    result = Norm(**found.names)
    constant = getattr(result.weights, "op", None) in ("placeholder", "get_attr")
    if not constant or not isinstance(result.x, torch.fx.Node) or not isinstance(result.eps, float):
        return None
    x, weights = result.x.meta["val"], result.weights.meta["val"]
    (mean,) = (inner for inner in found.inside if inner.target is aten.mean.dim)
    of_rows = mean.args[1] in ([-1], [x.dim() - 1]) and weights.shape == x.shape[-1:]
    alike = x.dtype == weights.dtype == node.meta["val"].dtype and x.is_contiguous() and weights.is_contiguous()
    return result if of_rows and alike else None


def unviewed(node: Node) -> Node:
    """The tensor that a view is of: each layer looks at the same input through a view of its own."""
    while node.target in VIEWS:
        node = node.args[0]
    return node


def readers(node: Node) -> set[Node]:
    """What uses the tensor, through views or not."""
    found: set[Node] = set()
    for user in node.users:
        found |= readers(user) if user.target in VIEWS else {user}
    return found


def _alike(one: Node, other: Node) -> bool:
    """Same shape and dtype, both contiguous."""
    a, b = one.meta["val"], other.meta["val"]
    same: bool = a.shape == b.shape and a.dtype == b.dtype and a.is_contiguous() and b.is_contiguous()
    return same
