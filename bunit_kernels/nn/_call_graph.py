"""Which module takes another's output, read off a network's forward pass."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict

from torch import fx, nn

from ._stacked_layer import StackedLayer

#: A module by name; ``None`` for a function, and for what cannot be told.
Call = str | None


class CallGraph:
    """What follows what in ``model.forward``, called with its default arguments.

    Read by ``torch.fx``, stacked layers and PyTorch's own modules as leaves. A module that cannot
    be traced is a leaf too, and so that nothing be concluded from it, its children count as called
    by something unknown; each of them is then traced by itself. Neighbours in an ``nn.Sequential``
    follow each other in any case. The model is neither run nor changed.
    """

    def __init__(self, model: nn.Module):
        tensors = (*model.parameters(), *model.buffers())
        model = copy.deepcopy(model, {id(t): t for t in tensors})  # what forward sets, is set there
        self._names = {id(module): name for name, module in model.named_modules()}
        self._users: dict[str, set[Call]] = defaultdict(set)
        self._sources: dict[str, set[Call]] = defaultdict(set)
        self._read(model)

    def partner(self, name: str) -> str | None:
        """The module that always takes the output of module ``name``, alone does, and takes nothing
        else; else ``None``."""
        users = self._users.get(name, {None})
        follower = next(iter(users)) if len(users) == 1 else None
        if follower is None or self._sources[follower] != {name}:
            return None
        return follower

    def _read(self, module: nn.Module) -> None:
        tracer = _Tracer()
        try:
            graph = tracer.trace(module, _defaults(module))
        except Exception:  # a forward may do, and raise, anything
            self._read_opaque(module)
            return
        for node in graph.nodes:
            self._read_node(module, node)
        for opaque in tracer.opaque:
            self._read_opaque(opaque)

    def _read_node(self, root: nn.Module, node: fx.Node) -> None:
        if node.op == "get_attr":  # a module's parameter, used past the module
            owner = root.get_submodule(node.target.rpartition(".")[0])
            self._users[self._names[id(owner)]].add(None)
        if node.op != "call_module":
            return
        name = self._names[id(root.get_submodule(node.target))]
        users = [self._call(root, user) for user in node.users]
        self._users[name].add(users[0] if len(users) == 1 else None)
        inputs = node.all_input_nodes
        self._sources[name].add(self._call(root, inputs[0]) if len(inputs) == 1 else None)

    def _call(self, root: nn.Module, node: fx.Node) -> Call:
        if node.op == "call_module":
            return self._names[id(root.get_submodule(node.target))]
        return None

    def _read_opaque(self, module: nn.Module) -> None:
        children = list(module.children())
        names = [self._names[id(child)] for child in children]
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            names = [self._names[id(child)] for child in module]  # one may stand there twice
            calls = [None, *names, None]
            for i, name in enumerate(names):
                self._sources[name].add(calls[i])
                self._users[name].add(calls[i + 2])
        else:
            for name in names:
                self._sources[name].add(None)
                self._users[name].add(None)
        for child in children:
            if next(child.children(), None) is not None:
                self._read(child)


class _Tracer(fx.Tracer):
    def __init__(self):
        super().__init__()
        self.opaque: list[nn.Module] = []

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, StackedLayer) or super().is_leaf_module(module, name)

    def call_module(self, module, forward, args, kwargs):
        """As in ``fx.Tracer``; a module that cannot be traced becomes a leaf."""
        stack, last = self.module_stack.copy(), next(iter(reversed(self.graph.nodes)))
        opaque = len(self.opaque)
        if not any(module is known for known in self.opaque):
            try:
                return super().call_module(module, forward, args, kwargs)
            except Exception:
                self.module_stack = stack
                while (node := next(iter(reversed(self.graph.nodes)))) is not last:
                    self.graph.erase_node(node)
                del self.opaque[opaque:]  # those within it are found again
                self.opaque.append(module)
        return self.create_proxy("call_module", self.path_of_module(module), args, kwargs)


def _defaults(module: nn.Module) -> dict[str, object] | None:
    """The arguments of ``forward`` that a caller may leave out."""
    parameters = inspect.signature(module.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} or None
