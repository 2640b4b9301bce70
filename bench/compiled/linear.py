"""Linear layers of a few rows that read the same input, done together: query, key and value; gate and up.

`Linears` is a pass over the graph that Inductor is about to compile. One kernel that runs four times as long spends a
quarter of the time on its start and end, when the memory is not busy. For the same reason it also does what the model
has between two products: the norm in front of them, the gate, the residual behind.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from . import fuse, int4, weight_bytes
from .fuse import Node

MOST_ROWS = 64
"""Above, a library's matrix product is as fast."""
TOGETHER = 4
"""Layers that one kernel can do."""

aten = torch.ops.aten
INT4 = torch.ops.bench.int4_linear.default
BYTES = torch.ops.bench.byte_linear.default
PACKED = (INT4, BYTES)
"""Products whose weights are no floats; `args` are x, weights, scale."""


@torch.library.custom_op("bench::linears", mutates_args=())
def linears(
    x: torch.Tensor, weights: list[torch.Tensor], scales: list[torch.Tensor], rounded: bool,
    norm: torch.Tensor | None, eps: float, residual: torch.Tensor | None, activation: str, early: bool,
) -> list[torch.Tensor]:  # fmt: skip
    """x @ w.T for each of at most `TOGETHER` weights [columns, inputs]; x is [rows, inputs], contiguous.

    `scales`: empty for floats; of weights that are words of 4-bit integers as `int4` packs them, or bytes, with a scale
    for each column, `rounded` to the dtype of x. `norm`: weights [inputs] of an RMSNorm of x. `activation` (silu, or
    gelu by tanh; "" for none): the one result is activation(gate) * up of two weights, or of the halves of one.
    `residual`, of the shape of the one result, is added to it. Only INT4 has this for several rows, too. `early` is
    `Device.launches_early`.
    """
    if x.device.type == "cpu":
        return reference(x, weights, scales, rounded, norm, eps, residual, activation)
    if weights[0].dtype == torch.int32:
        from . import int4_cuda

        return int4_cuda.run(x, weights, scales, norm, eps, residual, activation, early)
    from . import linear_kernel

    return linear_kernel.run(x, weights, scales, rounded, norm, eps, residual, activation, early)


def reference(
    x: torch.Tensor, weights: list[torch.Tensor], scales: list[torch.Tensor], rounded: bool,
    norm: torch.Tensor | None, eps: float, residual: torch.Tensor | None, activation: str,
) -> list[torch.Tensor]:  # fmt: skip
    """In plain torch, rounding where the models do."""
    if norm is not None:
        wide = x.float()
        x = norm * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    if weights[0].dtype == torch.int32:
        weights = [int4.expand(words, scale) for words, scale in zip(weights, scales, strict=True)]
    elif scales:
        dtype = x.dtype if rounded else scales[0].dtype
        floats = (weight_bytes.expand(codes, scale, dtype) for codes, scale in zip(weights, scales, strict=True))
        weights = [each.to(x.dtype) for each in floats]
    results = [x @ w.T for w in weights]
    if activation:
        gate, up = results if len(results) == 2 else results[0].chunk(2, dim=-1)
        function = torch.nn.functional
        results = [(function.silu(gate) if activation == "silu" else function.gelu(gate, approximate="tanh")) * up]
    return results if residual is None else [residual + results[0]]


@linears.register_fake
def _(
    x: torch.Tensor, weights: list[torch.Tensor], scales: list[torch.Tensor], rounded: bool,
    norm: torch.Tensor | None, eps: float, residual: torch.Tensor | None, activation: str, early: bool,
) -> list[torch.Tensor]:  # fmt: skip
    columns = [each.shape[0] for each in scales or weights]
    if activation:
        columns = [sum(columns) // 2]
    return [x.new_empty((x.shape[0], each)) for each in columns]


class Group(NamedTuple):
    """What one kernel does."""

    products: list[Node]
    whole: Node | None = None
    """The gated product, or the sum with a residual, that is its one result; None when the products are its results."""
    activation: str = ""


class Linears(CustomGraphPass):
    """Replace matrix products of at most `MOST_ROWS` rows with weights by `linears`."""

    def __init__(self, early: bool, fp8: bool = False) -> None:
        self.early, self.fp8 = early, fp8

    def uuid(self) -> Any:
        """For Inductor's cache."""
        files = (__file__, fuse.__file__, int4.__file__, weight_bytes.__file__)
        return get_hash_for_files(files, f"{self.early} {self.fp8}")

    def __call__(self, graph: torch.fx.Graph) -> None:
        """Change the graph in place."""
        weight_bytes.replace(graph, MOST_ROWS, self.fp8)
        products = {node: None for node in graph.nodes if self._is_product(node)}
        order = {node: number for number, node in enumerate(graph.nodes)}
        groups = sorted(self._groups(graph, products), key=lambda group: order[group.whole or group.products[0]])
        for group in groups:
            self._replace(graph, group, products)
        graph.eliminate_dead_code()

    def _is_product(self, node: Node) -> bool:
        if node.op != "call_function" or node.target not in (aten.mm.default, aten.addmm.default, *PACKED):
            return False
        value = _x(node).meta["val"]
        few = isinstance(value.shape[0], int) and value.shape[0] <= MOST_ROWS and value.is_contiguous()
        return few and self._weights(node) is not None

    def _weights(self, node: Node) -> Node | None:
        """The weights [columns, inputs] that the product reads transposed; None when it is something else."""
        if node.target in PACKED:
            return node.args[1]
        turned = node.args[-1]
        swapped = turned.target == aten.permute.default and list(turned.args[1]) == [1, 0]
        if swapped or turned.target == aten.t.default:
            weights = turned.args[0]
            value = weights.meta["val"]
            fits = weights.op in ("placeholder", "get_attr") and value.is_contiguous()
            if fits and value.dtype in (torch.float16, torch.bfloat16):
                found: Node = weights
                return found
        return None

    def _groups(self, graph: torch.fx.Graph, products: dict[Node, None]) -> Iterator[Group]:
        left = dict(products)
        for node in graph.nodes:
            gate = fuse.gated(node)
            if gate and self._fits_gate(gate.products, left):
                yield Group(gate.products, node, gate.activation)
                for product in gate.products:
                    del left[product]
        shared: dict[tuple[Any, ...], list[Node]] = {}
        for node in left:
            shared.setdefault(_input(node), []).append(node)
        sums: set[Node] = set()
        for nodes in shared.values():
            whole = fuse.residual_sum(nodes[0]) if len(nodes) == 1 and _does_more(nodes[0]) else None
            if whole is None or whole in sums:
                for start in range(0, len(nodes), TOGETHER):
                    yield Group(nodes[start : start + TOGETHER])
            else:
                sums.add(whole)
                yield Group(nodes, whole)

    def _fits_gate(self, nodes: list[Node], left: dict[Node, None]) -> bool:
        return (
            all(node in left and _does_more(node) for node in nodes)
            and len({(*_input(node), node.meta["val"].shape) for node in nodes}) == 1
        )

    def _replace(self, graph: torch.fx.Graph, group: Group, products: dict[Node, None]) -> None:
        """Nodes that are replaced stay until no group needs to recognise them."""
        weights = [self._weights(node) for node in group.products]
        first, whole = group.products[0], group.whole
        scales = [node.args[2] for node in group.products if node.target in PACKED]
        rounded = first.target is BYTES and first.args[3]
        values = [node.meta["val"] for node in group.products]
        with graph.inserting_before(whole or first):
            x, norm, eps = _x(first), None, 0.0
            found = fuse.norm(fuse.unviewed(x)) if first.target is INT4 or x.meta["val"].shape[0] == 1 else None
            if found and fuse.readers(fuse.unviewed(x)) <= products.keys():
                x, norm, eps = _view(graph, found.x, x.meta["val"].shape), found.weights, found.eps
            residual = None
            if whole is not None:
                values = [whole.meta["val"].reshape(first.meta["val"].shape[0], -1)]
                if not group.activation:
                    residual = next(side for side in whole.args if fuse.unviewed(side) is not first)
                    residual = _view(graph, residual, values[0].shape)
            arguments = (x, weights, scales, rounded, norm, eps, residual, group.activation, self.early)
            together = graph.call_function(torch.ops.bench.linears.default, arguments)
            together.meta["val"] = values
            parts = [graph.call_function(operator.getitem, (together, index)) for index in range(len(values))]
            for part, value in zip(parts, values, strict=True):
                part.meta["val"] = value
            if whole is not None:
                whole.replace_all_uses_with(_view(graph, parts[0], whole.meta["val"].shape))
                return
        for node, part in zip(group.products, parts, strict=True):
            result = part
            if node.target == aten.addmm.default:
                with graph.inserting_before(node):
                    result = graph.call_function(aten.add.Tensor, (part, node.args[0]))
                    result.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(result)


def _x(product: Node) -> Node:
    """What the product reads."""
    return product.args[0 if product.target in PACKED else -2]


def _input(product: Node) -> tuple[Any, ...]:
    """What products have in common that one kernel can do: the input, the number of rows, and the kind of weights."""
    x = _x(product)
    kind = product.target if product.target in PACKED else None
    coded = (product.args[1].meta["val"].dtype, product.args[2].meta["val"].dtype, product.args[3:]) if kind else None
    return fuse.unviewed(x), x.meta["val"].shape[0], kind, coded


def _does_more(product: Node) -> bool:
    """Whether its kernel can do what is around it. Several rows of floats took longer with that (docs/LOG.md)."""
    if product.target is INT4:
        return True
    rows: int = _x(product).meta["val"].shape[0]
    return rows == 1 and product.target in (aten.mm.default, BYTES)


def _view(graph: torch.fx.Graph, node: Node, shape: torch.Size) -> Node:
    if node.meta["val"].shape == shape:
        return node
    view = graph.call_function(aten.reshape.default, (node, list(shape)))
    view.meta["val"] = node.meta["val"].reshape(shape)
    return view
