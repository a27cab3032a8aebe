"""How sites are named: the outputs of modules and functions, inputs, parameters.

Whoever finds sites in a running model, in its graph or while it trains asks here, so that all of
them mean the same site by the same name:

- a module is named by its dotted path, ``layer1.0.relu``; its second call in a forward pass is
  ``layer1.0.relu#1``;
- an activation function is named after the module whose ``forward`` calls it, ``encoder:relu``;
- of the tensors that a module returns, the first bears the module's name; the others are named
  beside it, ``lstm:h_n``, ``attend:1``;
- what a layer reads is ``fc2:input``, where neurons before it are computed by no module;
- an input is ``input``, or ``input.NAME`` where there are several;
- a parameter has its full name, ``layer1.0.weight``.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from torch import nn

from crashsim.model.nested import Names
from crashsim.model.sites.layer_kinds import is_recurrent, is_recurrent_cell

ACTIVATION_FUNCTIONS = frozenset(
    "relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ selu selu_ celu celu_ gelu silu mish "
    "sigmoid sigmoid_ tanh tanh_ softplus softsign hardtanh hardtanh_ hardswish hardsigmoid "
    "logsigmoid prelu threshold".split()
)
# The name, in the place of a function, of what a module reads.
INPUT = "input"
# What the items that recurrent layers return are called; None for what bears the layer's own name.
_STATES: dict[Names, str | None] = {
    ("0",): None,
    ("1",): "h_n",
    ("1", "0"): "h_n",
    ("1", "1"): "c_n",
}
_CELL_STATES: dict[Names, str | None] = {("0",): None, ("1",): "c_n"}


class SiteKey(NamedTuple):
    """A site inside a model, as a key: which call of which module or function.

    Attributes:
        module: dotted path of the module that is called, or whose ``forward`` calls the function;
            of a parameter, its full name.
        function: the activation function, without the underscore of its version in place; or
            which of the tensors that a module returns, beside the first.
        call: number of calls of the same in the same forward pass before this one.
    """

    module: str
    function: str | None = None
    call: int = 0

    @property
    def name(self) -> str:
        """What users call the site."""
        name = self.module if self.function is None else f"{self.module}:{self.function}"
        return f"{name}#{self.call}" if self.call else name


class CallNumbers:
    """Numbers the calls of each module and function within one forward pass."""

    def __init__(self) -> None:
        self._calls: Counter[tuple[str, str | None]] = Counter()

    def key(self, module: str, function: str | None) -> SiteKey:
        """The key of the next call."""
        call = self._calls[module, function]
        self._calls[module, function] += 1
        return SiteKey(module, function, call)

    def clear(self) -> None:
        """Starts a forward pass."""
        self._calls.clear()


def input_name(name: str) -> str:
    """The name of an input's site; the input's own name is empty where there is one input."""
    return f"input.{name}" if name else "input"


def function_name(function: object) -> str:
    """The name of a torch function, of a method (``"relu_"``) or of an operator of torch.export."""
    name = function if isinstance(function, str) else getattr(function, "__name__", "")
    return str(name).partition(".")[0]  # relu.default


def activation_function(function: object) -> str | None:
    """The name of an activation function in the names of sites; None for any other function."""
    name = function_name(function)
    return name.rstrip("_") if name in ACTIVATION_FUNCTIONS else None


def item_name(module: nn.Module, names: Names) -> str | None:
    """The name of a tensor among those that a module returns, by the way to it.

    None for the first, which bears the module's own name.
    """
    known = _STATES if is_recurrent(module) else None
    if is_recurrent_cell(module):
        known = _CELL_STATES
    if known is not None and names in known:
        return known[names]
    return None if names in ((), ("0",)) else ".".join(names)
