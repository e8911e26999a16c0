"""A traced step with operations written out in forms that a CPU runs faster: pools, and small convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .pools import ROWS, WINDOWS, written_pools
from .products import FORMS


def written_out(graph: torch.fx.GraphModule, arguments: Sequence[Tensor], products: bool) -> torch.fx.GraphModule:
    """`graph` with its pools written out, and with `products` its small convolutions; the rest stays as it is."""
    from torch.fx.experimental.proxy_tensor import make_fx

    # Beside products images are small; beside a library's convolutions loads must fill vectors.
    forms: dict[torch.fx.Node, Callable[..., Any]] = {**written_pools(graph, WINDOWS if products else ROWS)}
    if products:
        forms |= {node: FORMS[node.target] for node in graph.graph.nodes if node.target in FORMS}
    if not forms:
        return graph
    return make_fx(_Writer(graph, forms).run, tracing_mode="fake", _allow_non_fake_inputs=True)(*arguments)


class _Writer(torch.fx.Interpreter):
    """Runs a graph with some of its nodes in other forms; what a form has no answer for is run as it is."""

    def __init__(self, graph: torch.fx.GraphModule, forms: dict[torch.fx.Node, Callable[..., Any]]):
        super().__init__(graph)
        self.forms = forms

    def run_node(self, node: torch.fx.Node) -> Any:
        form = self.forms.get(node)
        if form is not None:
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            if (out := form(*args, **kwargs)) is not NotImplemented:
                return out
        return super().run_node(node)
