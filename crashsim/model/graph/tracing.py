"""Tracing by ``torch.fx`` that leaves nothing behind in the process.

``torch.fx.symbolic_trace`` replaces ``nn.Module.__call__``, ``nn.Module.__getattr__`` and functions
of ``math`` while it works, for whatever runs meanwhile in other threads. Here each
module of a twin hands its calls and its parameters to the tracer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn

# The number that a node is, where the model's code computes it from sizes; TypeError otherwise.
Number = Callable[[fx.Node], float]


class UntraceableError(Exception):
    """A model cannot be followed from operation to operation; the message says why."""


class Tracer(fx.Tracer):
    """Writes down what a twin computes.

    Args:
        leaves: modules without others inside to be kept whole, by path, beside torch's own.
        number: evaluates numbers where the model's code needs them (``math.sqrt(x.shape[-1])``).
    """

    def __init__(self, leaves: Collection[str] = (), number: Number | None = None) -> None:
        super().__init__()
        self._leaves, self._number = leaves, number
        self._qualname_counter = defaultdict(int)  # torch's own is one for all tracers
        self._parameters: list[tuple[nn.Module, str, fx.Proxy]] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        usual = super().is_leaf_module(m, module_qualified_name)
        return usual or (module_qualified_name in self._leaves and not any(m.children()))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def follow(self, root: nn.Module, run: Callable[[], Any]) -> fx.Graph:
        """The graph of what ``run`` returns.

        Args:
            root: a twin of the caller's own.
            run: calls the twin, on stand-ins that it makes with ``placeholder``.
        """
        self.root, self.root_module_name = root, type(root).__name__
        self.submodule_paths = {module: path for path, module in root.named_modules()}
        self.graph = fx.Graph(tracer_cls=type(self))
        self.tensor_attrs = {
            value: f"{path}.{name}" if path else name
            for path, module in root.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        }
        with self._tracing():
            output = run()
        self.create_node("output", "output", (self.create_arg(output),), {})
        for node in self.graph.nodes:
            if node.op == "get_attr" and not node.users:
                self.graph.erase_node(node)
        self.graph.lint()
        return self.graph

    def placeholder(self, name: str) -> fx.Proxy:
        """A stand-in for a tensor of the input."""
        found: fx.Proxy = self.create_proxy("placeholder", name, (), {})
        return found

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Within the block, the twin's modules run as usual."""
        modules = list(self.submodule_paths or ())
        calls = [vars(module).pop("_compiled_call_impl") for module in modules]
        for module, name, _ in self._parameters:
            del vars(module)[name]
        try:
            yield
        finally:
            for module, call in zip(modules, calls, strict=True):
                vars(module)["_compiled_call_impl"] = call
            for module, name, proxy in self._parameters:
                vars(module)[name] = proxy

    def number(self, node: fx.Node) -> float:
        if self._number is None:
            raise TypeError("a number is needed of what is known only when the model runs")
        with self._paused():
            return self._number(node)

    @contextmanager
    def _tracing(self) -> Iterator[None]:
        """Within the block, the twin's modules hand their calls and parameters over."""
        modules = list(self.submodule_paths or ())
        try:
            for module in modules:
                # Where torch.compile puts what is to run instead, for a single module.
                vars(module)["_compiled_call_impl"] = self._caller(module)
            yield
        finally:
            for module in modules:
                vars(module).pop("_compiled_call_impl", None)
            for module, name, _ in self._parameters:
                vars(module).pop(name, None)
            self._parameters.clear()

    def show_parameters(self) -> None:
        """Puts stand-ins in the place of the twin's parameters.

        Once there are placeholders, which come first.
        """
        proxies: dict[int, fx.Proxy] = {}
        names = {id(parameter): name for name, parameter in self.root.named_parameters()}
        for module in self.submodule_paths or ():
            for name, parameter in module._parameters.items():
                if parameter is None or name in vars(module):
                    continue
                if id(parameter) not in proxies:
                    target = names[id(parameter)]
                    proxies[id(parameter)] = self.create_proxy("get_attr", target, (), {})
                proxy = proxies[id(parameter)]
                vars(module)[name] = proxy
                self._parameters.append((module, name, proxy))

    def _caller(self, module: nn.Module) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return self.call_module(module, module._call_impl, args, kwargs)

        return call


class _Proxy(fx.Proxy):
    """A stand-in for a value; of a size that does not depend on the batch, the number is known."""

    def __float__(self) -> float:
        assert isinstance(self.tracer, Tracer)
        return self.tracer.number(self.node)
