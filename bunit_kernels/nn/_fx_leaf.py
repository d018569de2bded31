"""Modules that ``torch.fx`` keeps as one node of its graphs, as it does PyTorch's own layers."""

from __future__ import annotations

from torch import fx, nn

from ._replace import has_hooks


def leaf_call(module: nn.Module, x: fx.Proxy, *arguments) -> fx.Proxy:
    """The call ``module(x, *arguments)`` as a node of the graph that is being traced; for a
    ``forward`` to return where its input is a proxy.

    Raises:
        TypeError: the traced model is ``module`` itself, or it has hooks, which would run once in
            tracing and again in each call of the traced model.
    """
    kind, tracer = type(module).__name__, x.tracer
    name = tracer.path_of_module(module)
    if not name:
        raise TypeError(
            f"torch.fx keeps a {kind} as one node and sees nothing in it: trace a module that "
            f"contains it, such as nn.Sequential(layer)"
        )
    if has_hooks(module):
        raise TypeError(
            f"torch.fx cannot trace {kind} {name!r} while it has hooks: remove them, or use a "
            "torch.fx.Tracer whose is_leaf_module is True for it"
        )
    return tracer.create_proxy("call_module", name, (x, *arguments), {})
