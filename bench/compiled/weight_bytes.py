"""Products of one row with weights that a library keeps in bytes (int8, fp8) and turns into floats in front of them.

As a sum, Inductor joins the product with that. Otherwise the floats of all weights would be written to memory and read
again in every step.
"""

from __future__ import annotations

from typing import Any

import torch

aten, prims = torch.ops.aten, torch.ops.prims

Node = Any
"""torch.fx.Node, whose arguments may be anything."""


def sums(graph: torch.fx.Graph) -> None:
    """Replace these products in place."""
    graph.eliminate_dead_code()  # what was decomposed for nothing may still hold the weights
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is aten.mm.default:
            x, weights = node.args
            if x.meta["val"].shape[0] == 1 and _from_bytes(weights):
                _sum(graph, node)


def _from_bytes(node: Node) -> bool:
    """Whether it is computed in the graph from an input of one byte each."""
    if node.op in ("placeholder", "get_attr") or len(node.users) > 1:
        return False
    while node.target in (prims.convert_element_type.default, aten.mul.Tensor, aten.permute.default, aten.t.default):
        node = node.args[0]
    return node.op in ("placeholder", "get_attr") and bool(node.meta["val"].dtype.itemsize == 1)


def _sum(graph: torch.fx.Graph, node: Node) -> None:
    def call(target: Any, *arguments: Any) -> Node:
        made = graph.call_function(target, arguments)
        values = (item.meta["val"] if isinstance(item, torch.fx.Node) else item for item in arguments)
        made.meta["val"] = target(*values)
        return made

    x, weights = node.args
    with graph.inserting_before(node):
        turned = call(aten.permute.default, call(prims.convert_element_type.default, x, torch.float32), [1, 0])
        product = call(aten.mul.Tensor, call(prims.convert_element_type.default, weights, torch.float32), turned)
        total = call(aten.sum.dim_IntList, product, [0], True)
        result = call(prims.convert_element_type.default, total, node.meta["val"].dtype)
    node.replace_all_uses_with(result)
    graph.erase_node(node)
