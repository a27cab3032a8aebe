"""The paper's layer-by-layer bounds: b1 (``norm``) and b2 (``absolute``).

Both follow the mean size of Delta through the network's graph, one layer at a time, replacing each
weight by its absolute value (b2) or each layer by its operator norm (b1). They need a graph
(``crashsim.model.graph``) of layers with a known bound.

With D_l = E|Delta a_l| elementwise, a crash with probability p at a layer gives
``D <- (1 - p) D + p |a|`` (the crashed value is -a away from the clean one, the surviving one still
carries the error of the layers below), a linear layer ``D <- |W| D``, and an activation of
Lipschitz constant at most 1 leaves D as it is. So |E Delta| <= D at the output.

Source: arXiv 1902.01686, bounds b1 and b2, there for one faulty layer.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from crashsim.analytic.error_sizes import (
    ErrorSize,
    norms_of,
    nothing,
    struck,
    through,
    through_max_pool,
)
from crashsim.coordinates.placement import Placement, check_acts_once, strikes_singly
from crashsim.errors import NotApplicableError
from crashsim.model.graph.model_graph import ModelGraph
from crashsim.model.graph.tracing import UntraceableError
from crashsim.model.graph.untraced import class_of, is_torchs
from crashsim.model.inputs import Inputs, read_inputs
from crashsim.model.sites.names import function_name
from crashsim.results.estimates import Estimates, deterministic
from crashsim.space import FaultSpace
from crashsim.working import worked

# Lipschitz constants: sup |phi'| of each activation function.
_LIPSCHITZ: dict[str, float] = {
    **dict.fromkeys("relu sigmoid tanh leaky_relu hardtanh softplus softsign relu6".split(), 1.0),
    **dict.fromkeys("hardsigmoid logsigmoid identity dropout elu celu".split(), 1.0),
    **{"gelu": 1.1290, "silu": 1.0999, "mish": 1.0885, "hardswish": 1.5, "selu": 1.7581},
}
_AFFINE = (nn.Linear, nn.modules.conv._ConvNd)
_AVERAGES = (
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)
_AVERAGE_FUNCTIONS = {
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    torch.mean, "mean",
}  # fmt: skip
_SHAPING = {torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.permute,
            "flatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose",
            "contiguous"}  # fmt: skip
_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}


@torch.inference_mode(False)
def layer_bounds(space: FaultSpace) -> Estimates:
    """``norm`` and ``absolute`` for each input and output.

    Args:
        space: in double precision, so that rounding does not undercut a bound; faults must be
            neuron crashes (of single units) or weight crashes.

    Raises:
        NotApplicableError: another fault, a layer without a known bound, several inputs or outputs,
            or parameters of several types; says which.
    """
    x = read_inputs(space.inputs)
    types = {p.dtype for p in space.model.parameters() if p.is_floating_point()}
    if len(types) > 1:
        raise NotApplicableError("defined for parameters of one floating-point type")
    for p in space.placements:
        check_acts_once(p)
        if not strikes_singly(p):
            raise NotApplicableError(
                f"defined for crashes of single units and weights, not {p.fault}"
            )
        if p.fault.is_varied:
            raise NotApplicableError(
                f"defined for one probability of all units of a site; those of {p.site.name!r} "
                "have rates of their own"
            )
    try:
        graph = ModelGraph(space.model, x.part(0, 1), tensors=space.tensors)
    except UntraceableError as error:
        raise NotApplicableError(str(error)) from error
    with torch.no_grad():
        found = _Propagation(graph, space).error_of_output(x)
    shape = (space.B, -1)
    size = found.size.reshape(shape).double().cpu().numpy()
    square = found.square.reshape(shape).double().cpu().numpy()
    norm = found.norms.amin(1, keepdim=True).expand(-1, space.K).double().cpu().numpy()
    note = "of |E Delta|, for any p (paper b1, with absolute weights)"
    absolute = "of |E Delta|, for any p (paper b2)"
    return (
        deterministic("norm", "mean", "bound", norm, note=note)
        + deterministic("absolute", "mean", "bound", size, note=absolute)
        + deterministic("absolute", "variance", "estimate", square, note="paper b2")
    )


class _Propagation:
    """Computes the nodes of a graph in turn and carries an ``ErrorSize`` beside every value."""

    def __init__(self, graph: ModelGraph, space: FaultSpace) -> None:
        self._graph, self._space = graph, space
        self._values: dict[fx.Node, Any] = {}
        self._errors: dict[fx.Node, ErrorSize | None] = {}
        self._placed = {
            p.site.key: p for p in space.placements if p.site.kind not in ("parameter", "input")
        }
        # By identity: layers may share one parameter, which has a single name.
        parameters = dict(graph.root.named_parameters())
        self._weights = {
            id(parameters[p.site.module]): p for p in space.placements if p.site.kind == "parameter"
        }
        self._seen: set[int] = set()
        self._struck = 0

    def error_of_output(self, x: Inputs) -> ErrorSize:
        last_use = {source: node for node in self._graph.nodes for source in node.all_input_nodes}
        for node in self._graph.nodes[:-1]:
            self._values[node] = self._graph.evaluate(node, self._values, x)
            self._errors[node] = self._error_at(node)
            worked(0.0)
            for source in node.all_input_nodes:
                if last_use[source] is node:
                    del self._values[source]
        if self._struck < len(self._space.placements):
            raise NotApplicableError("a faulty site is inside a layer that torch.fx does not enter")
        error = self._errors[self._graph.output]
        if error is None:
            raise NotApplicableError("the faults do not reach the output")
        return error

    def _error_at(self, n: fx.Node) -> ErrorSize | None:
        value = self._values[n]
        error = self._pass_on(n, value)
        placement = self._placement(n)
        if placement is None:
            return error
        self._struck += 1
        if not isinstance(value, Tensor):
            raise NotApplicableError(f"no bound is known for {placement.site.name}")
        return struck(error, value, placement.fault.change_probability)

    def _placement(self, n: fx.Node) -> Placement | None:
        if n.op == "placeholder":
            return next((p for p in self._space.placements if p.site.kind == "input"), None)
        key = self._graph.sites.get(n)
        return None if key is None else self._placed.get(key)

    def _pass_on(self, n: fx.Node, value: Any) -> ErrorSize | None:
        sources = n.all_input_nodes
        errors = [self._errors.get(source) for source in sources]
        module = self._graph.module_of(n)
        is_struck = any(error is not None for error in errors)
        if (is_struck or isinstance(module, _AFFINE)) and not _is_known(n, module):
            raise NotApplicableError(f"no bound is known for {_what(n, module)}: not torch's own")
        if isinstance(module, _AFFINE):
            if parametrize.is_parametrized(module):
                raise NotApplicableError(f"no bound is known for {_what(n, module)}: parametrised")
            return self._affine(module, self._values[sources[0]], errors[0])
        known = [error for error in errors if error is not None]
        if known and isinstance(value, tuple | list) and not isinstance(value, torch.Size):
            raise NotApplicableError(f"no bound is known for {_what(n, module)}")
        if not known or not isinstance(value, Tensor):
            return None
        if n.target in _ADD:
            terms = [s for s in map(self._error_of, n.args) if s is not None]
            if "alpha" in n.kwargs or any(s.size.shape != value.shape for s in terms):
                raise NotApplicableError("no bound is known for a sum that scales or broadcasts")
            return ErrorSize(
                sum((s.size for s in terms), torch.zeros_like(value)),
                sum((s.square for s in terms), torch.zeros_like(value)),
                torch.stack([s.norms for s in terms]).sum(0),
            )
        if n.target is torch.cat:
            pieces: Any = n.kwargs.get("tensors", n.args[0] if n.args else ())
            parts = [self._error_of(piece) or nothing(self._values[piece]) for piece in pieces]
            axis = n.kwargs.get("dim", n.args[1] if len(n.args) > 1 else 0)
            return ErrorSize(
                torch.cat([s.size for s in parts], dim=axis),
                torch.cat([s.square for s in parts], dim=axis),
                torch.stack([s.norms for s in parts]).sum(0),
            )
        if len(known) > 1:
            raise NotApplicableError(
                f"no bound is known for {_what(n, module)} of two faulty values"
            )
        return self._single(n, module, value, known[0])

    def _error_of(self, argument: Any) -> ErrorSize | None:
        return self._errors.get(argument) if isinstance(argument, fx.Node) else None

    def _single(self, n: fx.Node, module: Any, value: Tensor, error: ErrorSize) -> ErrorSize:
        """Through a node with one faulty argument."""
        lipschitz = _LIPSCHITZ.get(_activation(n, module))
        if lipschitz is not None:
            return ErrorSize(
                lipschitz * error.size, lipschitz**2 * error.square, lipschitz * error.norms
            )

        def again(x: Tensor) -> Tensor:
            """The node's own operation on another tensor."""
            values = {
                node: x if self._errors[node] is error else self._values[node]
                for node in n.all_input_nodes
            }
            out = self._graph.evaluate(n, values, None)
            assert isinstance(out, Tensor)
            return out

        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if not isinstance(module.running_var, Tensor):
                raise NotApplicableError("batch normalisation without fixed statistics")
            scale = (module.running_var + module.eps).rsqrt()
            scale = scale if module.weight is None else scale * module.weight.abs()
            column = scale.reshape(-1, *[1] * (value.dim() - 2))
            return ErrorSize(
                column * error.size, column**2 * error.square, scale.max() * error.norms
            )
        if isinstance(module, _AVERAGES) or n.target in _AVERAGE_FUNCTIONS:
            share = error.size.numel() / value.numel()  # how many values are averaged
            return ErrorSize(
                again(error.size), again(error.square) / share, through(again, error, None)
            )
        if (
            isinstance(module, nn.Flatten | nn.Unflatten)
            or n.target in _SHAPING
            or _is_part(n)
            or _is_padding(n, module)
        ):
            if len(value) != len(error.norms):
                raise NotApplicableError("no bound is known where examples are folded or unfolded")
            return ErrorSize(again(error.size), again(error.square), error.norms)
        if isinstance(module, nn.modules.pooling._MaxPoolNd):
            return through_max_pool(module, again, error)
        raise NotApplicableError(f"no bound is known for {_what(n, module)}")

    def _affine(self, module: nn.Module, x: Tensor, error: ErrorSize | None) -> ErrorSize | None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        zero = {} if module.bias is None else {"bias": torch.zeros_like(module.bias)}  # type: ignore[arg-type]

        def absolute(v: Tensor) -> Tensor:
            out: Tensor = functional_call(module, {"weight": weight.abs(), **zero}, (v,))
            return out

        def squared(v: Tensor) -> Tensor:
            out: Tensor = functional_call(module, {"weight": weight**2, **zero}, (v,))
            return out

        passed = None
        if error is not None:
            norms = through(absolute, error, weight if isinstance(module, nn.Linear) else None)
            passed = ErrorSize(absolute(error.size), squared(error.square), norms)
        placement = self._weights.get(id(weight))
        if id(module.bias) in self._weights:
            raise NotApplicableError("defined for weights, not for biases")
        if placement is None:
            return passed
        if id(weight) in self._seen:
            raise NotApplicableError("no bound is known for faulty weights that are used twice")
        self._seen.add(id(weight))
        self._struck += 1
        p = placement.fault.change_probability
        size, square = p * absolute(x.abs()), p * squared(x**2)
        crashed = ErrorSize(size, square, norms_of(size))
        if passed is None:
            return crashed
        return ErrorSize(
            (1 - p) * passed.size + crashed.size,
            passed.square + crashed.square,
            passed.norms + crashed.norms,
        )


def _is_part(n: fx.Node) -> bool:
    """Whether it is a slice of a value, of all its examples: each number once at most."""
    if n.target is not operator.getitem:
        return False
    index: Any = n.args[1]
    axes = index if isinstance(index, tuple) else (index,)
    known = all(axis is None or isinstance(axis, int | slice) for axis in axes)
    return known and axes[0] == slice(None)


def _is_padding(n: fx.Node, module: nn.Module | None) -> bool:
    """Whether it puts zeros around a value."""
    if isinstance(module, nn.ConstantPad1d | nn.ConstantPad2d | nn.ConstantPad3d):
        return module.value == 0
    given: dict[str, Any] = dict(zip(("mode", "value"), n.args[2:], strict=False)) | n.kwargs
    is_constant = given.get("mode", "constant") == "constant"
    return n.target is F.pad and is_constant and not given.get("value")


def _is_known(n: fx.Node, module: nn.Module | None) -> bool:
    return is_torchs(n) if module is None else class_of(module) is not None


def _activation(n: fx.Node, module: Any) -> str:
    """Name of the activation function at a node, as in the table; '' for anything else."""
    name = _function(n) if module is None else type(module).__name__.lower()
    name = {"leakyrelu": "leaky_relu"}.get(name, name)
    if name.startswith("dropout"):
        return "dropout"
    alpha = getattr(module, "alpha", n.kwargs.get("alpha", 1.0))
    slope: Any = getattr(module, "negative_slope", n.kwargs.get("negative_slope", 0.01))
    steep = (name in ("elu", "celu") and alpha != 1.0) or (name == "leaky_relu" and abs(slope) > 1)
    return "" if steep else name


def _what(n: fx.Node, module: Any) -> str:
    return f"{_function(n)}()" if module is None else f"{n.target} ({type(module).__name__})"


def _function(n: fx.Node) -> str:
    """The name of a function, without the underscore of its version in place."""
    return function_name(n.target).rstrip("_")
