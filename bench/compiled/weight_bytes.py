"""Products with weights that a library keeps in bytes (int8, fp8) with a scale for each row, and makes floats of.

Found in Inductor's graph as libraries write them: the scale goes to the weights in front of the product, or to what
comes out of it. What is written in another way becomes, for one row, a sum that Inductor joins with the floats'
making; otherwise these would be written to memory and read again in every step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .fuse import VIEWS

aten, prims = torch.ops.aten, torch.ops.prims

Node = Any
"""torch.fx.Node, whose arguments may be anything."""

CONVERT = prims.convert_element_type.default
TURNS = (aten.permute.default, aten.t.default)


@torch.library.custom_op("bench::byte_linear", mutates_args=())
def byte_linear(x: torch.Tensor, weights: torch.Tensor, scale: torch.Tensor, rounded: bool) -> torch.Tensor:
    """x @ (weights * scale).T: weights [columns, inputs] in bytes, a scale for each column, `rounded` to x's dtype.

    In a graph, it says what has been found there; `linear.linears` computes it.
    """
    return (x.float() @ expand(weights, scale, x.dtype if rounded else scale.dtype).T).to(x.dtype)


@byte_linear.register_fake
def _(x: torch.Tensor, weights: torch.Tensor, scale: torch.Tensor, rounded: bool) -> torch.Tensor:
    return x.new_empty((x.shape[0], weights.shape[0]))


def expand(weights: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weights as floats of 32 bits, when their scales are rounded to `dtype`."""
    return weights.float() * scale.to(dtype).float().view(-1, 1)


class Found(NamedTuple):
    """A product, what is known of its weights, and the node that is its result."""

    weights: Node
    scale: Node
    rounded: bool
    result: Node


def replace(graph: torch.fx.Graph, most_rows: int, fp8: bool) -> None:
    """Make products of at most `most_rows` rows `byte_linear`, or sums, in place. `fp8`: whether kernels read that."""
    graph.eliminate_dead_code()  # what was decomposed for nothing may still hold the weights
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in (aten.mm.default, aten.addmm.default):
            continue
        *bias, x, weights = node.args
        rows = x.meta["val"].shape[0]
        found = _found(node, x, weights) if isinstance(rows, int) and rows <= most_rows and not node.kwargs else None
        if found and (fp8 or found.weights.meta["val"].dtype == torch.int8):
            arguments = (x, found.weights, found.scale, found.rounded)
            with graph.inserting_before(found.result):
                made = _call(graph, torch.ops.bench.byte_linear.default, *arguments)
                if bias:
                    made = _call(graph, aten.add.Tensor, made, *bias)
            found.result.replace_all_uses_with(made)
        elif rows == 1 and not bias and _from_bytes(weights):
            _sum(graph, node)
    graph.eliminate_dead_code()


def _found(product: Node, x: Node, weights: Node) -> Found | None:
    """What the product is; None when it is something else."""
    columns = product.meta["val"].shape[1]
    scale: Node | None = None
    turned = True  # [inputs, columns], as the product reads them
    if len(weights.users) > 1:
        return None
    while weights.target in (CONVERT, aten.mul.Tensor, *TURNS):
        if weights.target is aten.mul.Tensor:
            per_column = (1, columns) if turned else (columns, 1)
            if scale is not None or not _shaped(weights.args[1], per_column):
                return None
            scale = weights.args[1]
        elif weights.target in TURNS:
            if weights.target is aten.permute.default and list(weights.args[1]) != [1, 0]:
                return None
            turned = not turned
        weights = weights.args[0]
    result = product
    if scale is None and len(product.users) == 1 and product.target is aten.mm.default:
        (result,) = product.users
        if result.target is not aten.mul.Tensor:
            return None
        scale = result.args[1 if result.args[0] is product else 0]
        if not (_shaped(scale, (columns,)) or _shaped(scale, (1, columns))):
            return None
    constant = None if scale is None else _constant(scale)
    if scale is None or constant is None or turned or weights.op not in ("placeholder", "get_attr"):
        return None
    value, floats = weights.meta["val"], x.meta["val"]
    right = (
        value.dtype in (torch.int8, torch.float8_e4m3fn)
        and floats.dtype in (torch.float16, torch.bfloat16)
        and value.is_contiguous()
        and floats.is_contiguous()
        and (result.meta["val"].shape, result.meta["val"].dtype) == (product.meta["val"].shape, floats.dtype)
    )
    applied, kept = scale.meta["val"].dtype, constant.meta["val"].dtype
    return Found(weights, constant, applied != kept, result) if right and applied in (kept, floats.dtype) else None


def _shaped(node: Node, size: tuple[int, ...]) -> bool:
    return isinstance(node, torch.fx.Node) and tuple(node.meta["val"].shape) == size


def _constant(scale: Node) -> Node | None:
    """The input of the graph that the scales are, in the same order; None when they are computed."""
    while scale.target in (CONVERT, aten.unsqueeze.default, *VIEWS, *TURNS):
        scale = scale.args[0]
    value = scale.meta["val"]
    return scale if scale.op in ("placeholder", "get_attr") and value.is_contiguous() else None


def _from_bytes(node: Node) -> bool:
    """Whether it is computed in the graph from an input of one byte each."""
    if node.op in ("placeholder", "get_attr") or len(node.users) > 1:
        return False
    while node.target in (CONVERT, aten.mul.Tensor, *TURNS):
        node = node.args[0]
    return node.op in ("placeholder", "get_attr") and bool(node.meta["val"].dtype.itemsize == 1)


def _sum(graph: torch.fx.Graph, node: Node) -> None:
    x, weights = node.args
    with graph.inserting_before(node):
        turned = _call(graph, aten.permute.default, _call(graph, CONVERT, x, torch.float32), [1, 0])
        product = _call(graph, aten.mul.Tensor, _call(graph, CONVERT, weights, torch.float32), turned)
        total = _call(graph, aten.sum.dim_IntList, product, [0], True)
        result = _call(graph, CONVERT, total, node.meta["val"].dtype)
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _call(graph: torch.fx.Graph, target: Any, *arguments: Any) -> Node:
    made = graph.call_function(target, arguments)
    values = (item.meta["val"] if isinstance(item, torch.fx.Node) else item for item in arguments)
    made.meta["val"] = target(*values)
    return made
