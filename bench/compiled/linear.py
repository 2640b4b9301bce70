"""Linear layers of a few rows that read the same input, done together: query, key and value; gate and up.

`Linears` is a pass over the graph that Inductor is about to compile. One kernel that runs four times as long spends a
quarter of the time on its start and end, when the memory is not busy.

Where a library's layer of one row turns bytes (int8, fp8) into floats first, the product becomes a sum, which Inductor
joins with that: otherwise the floats of all weights would be written to memory and read again in every step.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

MOST_ROWS = 64
"""Above, a library's matrix product is as fast."""
TOGETHER = 4
"""Layers that one kernel can do."""

aten, prims = torch.ops.aten, torch.ops.prims

Node = Any
"""torch.fx.Node, whose arguments may be anything."""


@torch.library.custom_op("bench::linears", mutates_args=())
def linears(x: torch.Tensor, weights: list[torch.Tensor], early: bool) -> list[torch.Tensor]:
    """x @ w.T for each of at most `TOGETHER` weights [columns, inputs]; x is [rows, inputs], contiguous.

    `early` is `Device.launches_early`.
    """
    if x.device.type == "cpu":
        return [x @ w.T for w in weights]
    from .linear_kernel import run

    return run(x, weights, early)


@linears.register_fake
def _(x: torch.Tensor, weights: list[torch.Tensor], early: bool) -> list[torch.Tensor]:
    return [x.new_empty((x.shape[0], w.shape[0])) for w in weights]


class Linears(CustomGraphPass):
    """Replace products of at most `MOST_ROWS` rows with weights by `linears`, and of one row with bytes by sums."""

    def __init__(self, early: bool) -> None:
        self.early = early

    def uuid(self) -> Any:
        """For Inductor's cache."""
        return get_hash_for_files((__file__,), str(self.early))

    def __call__(self, graph: torch.fx.Graph) -> None:
        """Change the graph in place."""
        graph.eliminate_dead_code()  # a product that was decomposed for nothing may still hold its operands
        shared: dict[tuple[Node, int], list[Node]] = {}
        for node in graph.nodes:
            if node.op == "call_function" and node.target in (aten.mm.default, aten.addmm.default):
                x = node.args[-2]
                if self._weights(node) is not None and self._few_rows(x):
                    shared.setdefault((_unviewed(x), x.meta["val"].shape[0]), []).append(node)
                elif node.target == aten.mm.default and x.meta["val"].shape[0] == 1 and _from_bytes(node.args[1]):
                    self._sum(graph, node)
        for nodes in shared.values():
            for start in range(0, len(nodes), TOGETHER):
                self._replace(graph, nodes[start : start + TOGETHER])
        graph.eliminate_dead_code()

    def _weights(self, node: Node) -> Node | None:
        """The weights [columns, inputs] that the product reads transposed; None when it is something else."""
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

    def _few_rows(self, x: Node) -> bool:
        value = x.meta["val"]
        return isinstance(value.shape[0], int) and value.shape[0] <= MOST_ROWS and value.is_contiguous()

    def _sum(self, graph: torch.fx.Graph, node: Node) -> None:
        def call(target: Any, *arguments: Any) -> Node:
            made = graph.call_function(target, arguments)
            made.meta["val"] = target(
                *(item.meta["val"] if isinstance(item, torch.fx.Node) else item for item in arguments)
            )
            return made

        x, weights = node.args
        with graph.inserting_before(node):
            turned = call(aten.permute.default, call(prims.convert_element_type.default, x, torch.float32), [1, 0])
            product = call(aten.mul.Tensor, call(prims.convert_element_type.default, weights, torch.float32), turned)
            total = call(aten.sum.dim_IntList, product, [0], True)
            result = call(prims.convert_element_type.default, total, node.meta["val"].dtype)
        node.replace_all_uses_with(result)
        graph.erase_node(node)

    def _replace(self, graph: torch.fx.Graph, nodes: list[Node]) -> None:
        weights = [self._weights(node) for node in nodes]
        values = [node.meta["val"] for node in nodes]
        with graph.inserting_before(nodes[0]):
            together = graph.call_function(torch.ops.bench.linears.default, (nodes[0].args[-2], weights, self.early))
            together.meta["val"] = values
            parts = [graph.call_function(operator.getitem, (together, index)) for index in range(len(nodes))]
            for part, value in zip(parts, values, strict=True):
                part.meta["val"] = value
        for node, part in zip(nodes, parts, strict=True):
            result = part
            if node.target == aten.addmm.default:
                with graph.inserting_before(node):
                    result = graph.call_function(aten.add.Tensor, (part, node.args[0]))
                    result.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(result)
            graph.erase_node(node)


def _from_bytes(node: Node) -> bool:
    """Whether weights are computed in the graph from an input of one byte each."""
    if node.op in ("placeholder", "get_attr") or len(node.users) > 1:
        return False
    while node.target in (prims.convert_element_type.default, aten.mul.Tensor, aten.permute.default, aten.t.default):
        node = node.args[0]
    return node.op in ("placeholder", "get_attr") and bool(node.meta["val"].dtype.itemsize == 1)


def _unviewed(node: Node) -> Node:
    """The tensor that a view is of: each layer looks at the same input through a view of its own."""
    while node.target in (aten.view.default, aten._unsafe_view.default, aten.reshape.default):
        node = node.args[0]
    return node
