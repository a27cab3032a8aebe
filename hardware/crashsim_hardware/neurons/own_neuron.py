"""A neuron of one's own: equations, a threshold, a reset, and a rate curve, as text.

The same text is run by numpy and by brian2, a forward-Euler step at a time: t counts time steps,
and potentials are in units of the threshold.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import CodeType
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.arguments import is_number, whole
from crashsim_hardware.errors import HardwareError

__all__ = ["OwnNeuron"]

Floats = NDArray[Any]

_EQUATION = re.compile(r"d([A-Za-z]\w*)/dt\s*=\s*(.+)")
_STATEMENT = re.compile(r"([A-Za-z]\w*)\s*([-+*/]?)=(?!=)\s*(.+)")
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": np.abs, "ceil": np.ceil, "clip": np.clip, "cos": np.cos, "exp": np.exp,
    "floor": np.floor, "int": lambda x: np.asarray(x).astype(np.int64), "log": np.log,
    "sign": np.sign, "sin": np.sin, "sqrt": np.sqrt, "tanh": np.tanh,
}  # fmt: skip
_LOGIC: dict[str, Callable[..., Any]] = {
    "_and": np.logical_and,
    "_or": np.logical_or,
    "_not": np.logical_not,
}
_ALLOWED = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.Name, ast.Load,
    ast.Constant, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.Mod, ast.USub, ast.UAdd,
    ast.Not, ast.And, ast.Or, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq,
)  # fmt: skip
_GIVEN = frozenset({"charge", "drive", "theta"})
_TAKEN = frozenset(
    {"t", "dt", "i", "N", "q", "active", "start", "stop", "held", "is_held", "silent", "pi", "e",
     "xi", "weight", "crossed", "lastspike", "not_refractory"}
)  # fmt: skip


@dataclass(frozen=True)
class OwnNeuron:
    """A spiking neuron in equations.

    equations: lines ``dX/dt = ...``, one for each state, of which one is the membrane ``v``; all
        right sides see the states before the step. They may name the states, the parameters,
        ``charge`` (what arrived in this step) and ``drive`` (the constant current), in arithmetic
        and the functions abs, ceil, clip, cos, exp, floor, int, log, sign, sin, sqrt, tanh.
    threshold: when a spike is emitted, such as ``v >= theta``. It must name ``theta``, which is 1
        but for faults (and a rounding error below it, so that ties fire): a dead neuron's is
        infinite, a saturated one's minus infinite.
    reset: lines such as ``v -= 1`` or ``w = w + 0.1``, for the neurons that fire, one after the
        other.
    parameters: numbers that the text names.
    initial: where states start, 0 unless said; the start of a run is added to ``v``.
    rate: the rate curve: spikes per step of an array of constant drives, if known.
    refractory: whole steps after a spike in which none can follow.

    Raises HardwareError for text that says something else.
    """

    equations: str
    threshold: str
    reset: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    initial: Mapping[str, float] = field(default_factory=dict)
    rate: Callable[[Floats], Floats] | None = None
    refractory: int = 0

    leak: ClassVar[float] = 0.0
    synapse: ClassVar[None] = None
    curve: ClassVar[Literal["own"]] = "own"
    bipolar: ClassVar[bool] = False
    on_grid: ClassVar[bool] = False
    settling: ClassVar[int] = 0

    def __post_init__(self) -> None:
        whole("refractory", self.refractory, 0, 2**31)
        if "v" not in self.derivatives:
            raise HardwareError('equations need a membrane, a line "dv/dt = ..."')
        for name, value in (*self.parameters.items(), *self.initial.items()):
            if not is_number(value) or not math.isfinite(value):
                raise HardwareError(f"{name} must be a finite number, got {value!r:.80}")
        names = [*self.derivatives, *self.parameters]
        clash = sorted(
            {n for n in names if n in _GIVEN | _TAKEN or n[:4] == "new_" or names.count(n) > 1}
        )
        if clash:
            raise HardwareError(f"{', '.join(sorted(clash))}: names that are taken; choose others")
        strange = sorted(self.initial.keys() - self.derivatives.keys())
        if strange:
            raise HardwareError(f"initial names {', '.join(strange)}, which no equation does")
        known = frozenset(names) | _GIVEN
        for text in self.derivatives.values():
            _checked(text, known - {"theta"})
        for _, text in self.resets:
            _checked(text, known - {"charge", "drive"})
        if "theta" not in _checked(self.threshold, known - {"charge", "drive"}):
            raise HardwareError(
                f"threshold = {self.threshold!r} must name theta, by which neurons die and vary: "
                'write "v >= theta"'
            )

    @cached_property
    def derivatives(self) -> dict[str, str]:
        """The right side of each state's equation."""
        found: dict[str, str] = {}
        for line in _lines(self.equations):
            match = _EQUATION.fullmatch(line)
            if match is None or match[1] in found:
                raise HardwareError(f"equation {line!r}: give one line dX/dt = ... for each state")
            found[match[1]] = match[2]
        return found

    @cached_property
    def resets(self) -> list[tuple[str, str]]:
        """The states that a spike changes, and to what, in order."""
        found = []
        for line in _lines(self.reset):
            match = _STATEMENT.fullmatch(line)
            if match is None or match[1] not in self.derivatives:
                raise HardwareError(f"reset {line!r}: give lines such as v -= 1, of the states")
            name, operator, text = match.groups()
            found.append((name, f"{name} {operator} ({text})" if operator else text))
        return found

    @cached_property
    def code(self) -> tuple[dict[str, CodeType], CodeType, list[tuple[str, CodeType]]]:
        """Equations, threshold and resets, compiled for `evaluate`."""
        right = {name: _compiled(text) for name, text in self.derivatives.items()}
        return right, _compiled(self.threshold), [(n, _compiled(t)) for n, t in self.resets]

    @staticmethod
    def evaluate(code: CodeType, values: Mapping[str, Any]) -> Any:
        """What a compiled expression is for arrays of its names."""
        names = {"__builtins__": {}, **_FUNCTIONS, **_LOGIC}
        return eval(code, names, dict(values))  # checked: arithmetic of known names alone

    @property
    def max_rate(self) -> float:
        """Highest firing rate, in spikes per step."""
        return 1.0 / (1 + self.refractory)


def _lines(text: Any) -> list[str]:
    if not isinstance(text, str):
        raise HardwareError(f"a neuron is described by text, got {text!r:.80}")
    parts = (line.partition("#")[0].strip() for line in re.split(r"[\n;]", text))
    return [part for part in parts if part]


def _checked(text: str, known: frozenset[str]) -> set[str]:
    """The names in an expression. Raises HardwareError for more than arithmetic of known names."""
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise HardwareError(f"{text!r} is no expression ({error.msg})") from None
    names: set[str] = set()
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED):
            raise HardwareError(f"{text!r}: {type(node).__name__} is more than arithmetic")
        if isinstance(node, ast.Constant) and not is_number(node.value):
            raise HardwareError(f"{text!r}: {node.value!r} is no number")
        if isinstance(node, ast.Compare) and len(node.ops) > 1:
            raise HardwareError(f"{text!r}: join comparisons with and")
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            if called not in _FUNCTIONS or node.keywords:
                raise HardwareError(f"{text!r}: functions are {', '.join(_FUNCTIONS)}")
        if isinstance(node, ast.Name) and node.id not in _FUNCTIONS:
            names.add(node.id)
    unknown = sorted(names - known)
    if unknown:
        raise HardwareError(
            f"{text!r} names {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    return names


class _Logic(ast.NodeTransformer):
    """``and``, ``or`` and ``not`` of arrays."""

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        name = "_and" if isinstance(node.op, ast.And) else "_or"
        joined = node.values[0]
        for value in node.values[1:]:
            joined = ast.Call(ast.Name(name, ast.Load()), [joined, value], [])
        return joined

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Not):
            return ast.Call(ast.Name("_not", ast.Load()), [node.operand], [])
        return node


def _compiled(text: str) -> CodeType:
    tree = ast.fix_missing_locations(_Logic().visit(ast.parse(text, mode="eval")))
    return compile(tree, "<neuron>", "eval")
