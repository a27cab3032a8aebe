"""The paper's layer-by-layer bounds: b1 (``norm``) and b2 (``absolute``).

Both follow the mean size of Delta through the network's graph, one layer at a time, replacing each
weight by its absolute value (b2) or each layer by its operator norm (b1). They need a graph that
``torch.fx`` can trace, of layers with a known bound.

With D_l = E|Delta a_l| elementwise, a crash with probability p at a layer gives
``D <- (1 - p) D + p |a|`` (the crashed value is -a away from the clean one, the surviving one still
carries the error of the layers below), a linear layer ``D <- |W| D``, and an activation of
Lipschitz constant at most 1 leaves D as it is. So |E Delta| <= D at the output.

Source: arXiv 1902.01686, bounds b1 and b2, there for one faulty layer.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from crashsim.coordinates.placement import Placement, strikes_singly
from crashsim.errors import NotApplicableError
from crashsim.model.tracing import UntraceableError, trace
from crashsim.model.twins.twin import twin_of
from crashsim.model.untraced import class_of, is_torchs, overwritten, unseen
from crashsim.results.estimate import Estimate, deterministic
from crashsim.space import FaultSpace

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


@dataclass(frozen=True)
class _Spread:
    """Bounds carried along the graph for one value a of shape (B, ...).

    Attributes:
        size: E|Delta a|, elementwise (b2).
        square: the sum of p W^2 h^2 over paths, elementwise (b2's variance).
        norms: (B, 3) the 1-, 2- and infinity-norm of the error (b1).
    """

    size: Tensor
    square: Tensor
    norms: Tensor


@torch.inference_mode(False)
def layer_bounds(space: FaultSpace) -> list[Estimate]:
    """``norm`` and ``absolute`` for each input and output.

    Args:
        space: in double precision, so that rounding does not undercut a bound; faults must be
            neuron crashes (of single units) or weight crashes.

    Raises:
        NotApplicableError: another fault, a layer without a known bound, several inputs or outputs,
            or parameters of several types; says which.
    """
    inputs = space.inputs
    types = {p.dtype for p in space.model.parameters() if p.is_floating_point()}
    if len(types) > 1:
        raise NotApplicableError("defined for parameters of one floating-point type")
    for p in space.placements:
        if not strikes_singly(p):
            raise NotApplicableError(
                f"defined for crashes of single units and weights, not {p.fault}"
            )
    told = unseen(space.model)
    if told:
        raise NotApplicableError(told)
    try:
        with torch.no_grad():  # as it is run: forward may ask
            graph, model = trace(twin_of(space.model, space.tensors))
    except UntraceableError as error:
        raise NotApplicableError(str(error)) from error
    overwriting = overwritten(graph)
    if overwriting is not None:
        raise NotApplicableError(f"{overwriting.name} overwrites a value that is needed later")
    with torch.no_grad():
        spread = _Propagation(graph, model, space).spread_of_output(inputs)
    shape = (space.B, -1)
    size = spread.size.reshape(shape).double().cpu().numpy()
    square = spread.square.reshape(shape).double().cpu().numpy()
    norm = spread.norms.amin(1, keepdim=True).expand(-1, space.K).double().cpu().numpy()
    note = "of |E Delta|, for any p (paper b1, with absolute weights)"
    return [
        *deterministic("norm", "mean", "bound", norm, note=note),
        *deterministic(
            "absolute", "mean", "bound", size, note="of |E Delta|, for any p (paper b2)"
        ),
        *deterministic("absolute", "variance", "estimate", square, note="paper b2"),
    ]


class _Propagation(fx.Interpreter):
    """Runs the traced graph and carries a ``_Spread`` beside every value."""

    def __init__(self, graph: fx.GraphModule, model: nn.Module, space: FaultSpace) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # NotApplicableError says all there is to say
        self._space = space
        self._spreads: dict[fx.Node, _Spread | None] = {}
        self._calls: Counter[tuple[str, str | None]] = Counter()
        self._output: _Spread | None = None
        self._placed = {
            (p.site.module, p.site.function, p.site.call): p
            for p in space.placements
            if p.site.kind not in ("parameter", "input")
        }
        # By identity: layers may share one parameter, which has a single name.
        parameters = dict(model.named_parameters())
        self._weights = {
            id(parameters[p.site.module]): p for p in space.placements if p.site.kind == "parameter"
        }
        self._seen: set[int] = set()
        self._struck = 0

    def spread_of_output(self, inputs: Tensor) -> _Spread:
        self.run(inputs.clone())
        if self._struck < len(self._space.placements):
            raise NotApplicableError("a faulty site is inside a layer that torch.fx does not enter")
        if self._output is None:
            raise NotApplicableError("the faults do not reach the output")
        return self._output

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "output":
            source = n.args[0]
            self._output = self._spreads.get(source) if isinstance(source, fx.Node) else None
            return value
        spread = self._pass_on(n, value)
        placement = self._placement(n)
        if placement is not None:
            self._struck += 1
            if not isinstance(value, Tensor):
                raise NotApplicableError(f"no bound is known for {placement.site.name}")
            spread = _struck(spread, value, placement.fault.change_probability)
        self._spreads[n] = spread
        return value

    def _placement(self, n: fx.Node) -> Placement | None:
        if n.op == "placeholder":
            return next((p for p in self._space.placements if p.site.kind == "input"), None)
        if n.op == "call_module":
            key: tuple[str, str | None] = (str(n.target), None)
        elif n.op in ("call_function", "call_method"):
            stack = n.meta.get("nn_module_stack") or {}
            key = (next(reversed(stack), ""), _name(n.target))
        else:
            return None
        call = self._calls[key]
        self._calls[key] += 1
        return self._placed.get((*key, call))

    def _pass_on(self, n: fx.Node, value: Any) -> _Spread | None:
        sources = n.all_input_nodes
        spreads = [self._spreads.get(source) for source in sources]
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        struck = any(spread is not None for spread in spreads)
        if (struck or isinstance(module, _AFFINE)) and not _is_known(n, module):
            raise NotApplicableError(f"no bound is known for {_what(n, module)}: not torch's own")
        if isinstance(module, _AFFINE):
            if parametrize.is_parametrized(module):
                raise NotApplicableError(f"no bound is known for {_what(n, module)}: parametrised")
            return self._affine(module, self.env[sources[0]], spreads[0])
        known = [spread for spread in spreads if spread is not None]
        if known and isinstance(value, tuple | list) and not isinstance(value, torch.Size):
            raise NotApplicableError(f"no bound is known for {_what(n, module)}")
        if not known or not isinstance(value, Tensor):
            return None
        if n.target in _ADD:
            terms = [s for s in map(self._spread_of, n.args) if s is not None]
            if "alpha" in n.kwargs or any(s.size.shape != value.shape for s in terms):
                raise NotApplicableError("no bound is known for a sum that scales or broadcasts")
            return _Spread(
                sum((s.size for s in terms), torch.zeros_like(value)),
                sum((s.square for s in terms), torch.zeros_like(value)),
                torch.stack([s.norms for s in terms]).sum(0),
            )
        if n.target is torch.cat:
            pieces: Any = n.kwargs.get("tensors", n.args[0] if n.args else ())
            parts = [self._spread_of(piece) or _nothing(self.env[piece]) for piece in pieces]
            axis = n.kwargs.get("dim", n.args[1] if len(n.args) > 1 else 0)
            return _Spread(
                torch.cat([s.size for s in parts], dim=axis),
                torch.cat([s.square for s in parts], dim=axis),
                torch.stack([s.norms for s in parts]).sum(0),
            )
        if len(known) > 1:
            raise NotApplicableError(
                f"no bound is known for {_what(n, module)} of two faulty values"
            )
        return self._single(n, module, value, known[0])

    def _spread_of(self, argument: Any) -> _Spread | None:
        return self._spreads.get(argument) if isinstance(argument, fx.Node) else None

    def _single(self, n: fx.Node, module: Any, value: Tensor, spread: _Spread) -> _Spread:
        """Through a node with one faulty argument."""
        lipschitz = _LIPSCHITZ.get(_activation(n, module))
        if lipschitz is not None:
            return _Spread(
                lipschitz * spread.size, lipschitz**2 * spread.square, lipschitz * spread.norms
            )

        def again(x: Tensor) -> Tensor:
            """The node's own operation on another tensor."""
            arguments = fx.node.map_arg(
                (n.args, n.kwargs),
                lambda node: x if self._spreads.get(node) is spread else self.env[node],
            )
            out = getattr(self, n.op)(n.target, *arguments)
            assert isinstance(out, Tensor)
            return out

        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if not isinstance(module.running_var, Tensor):
                raise NotApplicableError("batch normalisation without fixed statistics")
            scale = (module.running_var + module.eps).rsqrt()
            scale = scale if module.weight is None else scale * module.weight.abs()
            column = scale.reshape(-1, *[1] * (value.dim() - 2))
            return _Spread(
                column * spread.size, column**2 * spread.square, scale.max() * spread.norms
            )
        if isinstance(module, _AVERAGES) or n.target in _AVERAGE_FUNCTIONS:
            share = spread.size.numel() / value.numel()  # how many values are averaged
            return _Spread(
                again(spread.size), again(spread.square) / share, _through(again, spread, None)
            )
        if isinstance(module, nn.Flatten | nn.Unflatten) or n.target in _SHAPING:
            if len(value) != len(spread.norms):
                raise NotApplicableError("no bound is known where examples are folded or unfolded")
            return _Spread(again(spread.size), again(spread.square), spread.norms)
        if isinstance(module, nn.modules.pooling._MaxPoolNd):
            return _max_pool(module, again, spread)
        raise NotApplicableError(f"no bound is known for {_what(n, module)}")

    def _affine(self, module: nn.Module, x: Tensor, spread: _Spread | None) -> _Spread | None:
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
        if spread is not None:
            norms = _through(absolute, spread, weight if isinstance(module, nn.Linear) else None)
            passed = _Spread(absolute(spread.size), squared(spread.square), norms)
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
        crashed = _Spread(size, square, _norms(size))
        if passed is None:
            return crashed
        return _Spread(
            (1 - p) * passed.size + crashed.size,
            passed.square + crashed.square,
            passed.norms + crashed.norms,
        )


def _is_known(n: fx.Node, module: nn.Module | None) -> bool:
    return is_torchs(n) if module is None else class_of(module) is not None


def _struck(spread: _Spread | None, value: Tensor, p: float) -> _Spread:
    """After crashes with probability p of each element of ``value``."""
    crashed = _Spread(p * value.abs(), p * value**2, p * _norms(value))
    if spread is None:
        return crashed
    return _Spread(
        (1 - p) * spread.size + crashed.size,
        spread.square + crashed.square,
        spread.norms + crashed.norms,
    )


def _nothing(value: Tensor) -> _Spread:
    zero = torch.zeros_like(value)
    return _Spread(zero, zero, _norms(zero))


def _max_pool(
    module: nn.modules.pooling._MaxPoolNd, again: Callable[[Tensor], Tensor], spread: _Spread
) -> _Spread:
    """Through a max pool: |Delta max| is at most the largest |Delta| of the window.

    The expectation of the largest may be as much as the sum of the expectations.
    """
    axes = spread.size.dim() - 2
    kernel, stride, padding, dilation = (
        (value,) * axes if isinstance(value, int) else tuple(value)
        for value in (module.kernel_size, module.stride, module.padding, module.dilation)
    )
    if stride != kernel or set(dilation) != {1}:
        raise NotApplicableError("no bound is known for a max pool whose windows overlap")
    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1]
    count = math.prod(kernel)
    total = count * average(spread.size, kernel, kernel, padding, module.ceil_mode)
    growth = torch.tensor([1.0, math.sqrt(count), count]).to(spread.norms)
    return _Spread(total, again(spread.square), growth * spread.norms)


def _norms(value: Tensor) -> Tensor:
    """1-, 2- and infinity-norm of each example, (B, 3)."""
    flat = value.reshape(len(value), -1)
    return torch.stack([flat.norm(q, dim=1) for q in (1, 2, math.inf)], dim=1)


def _through(
    absolute: Callable[[Tensor], Tensor], spread: _Spread, matrix: Tensor | None
) -> Tensor:
    """Norms after a linear layer, given by its absolute value |A| as an operator.

    The largest row and column sums of |A| are its infinity- and 1-norm. The 2-norm is that of |A|,
    if the matrix is given, else at most their geometric mean (Schur's test). The 2-norm of A itself
    is no bound: crashes that pull a kink in opposite ways add up where A's entries cancel.
    """
    with torch.inference_mode(False), torch.enable_grad():
        one = torch.ones_like(spread.size[:1], requires_grad=True)
        rows = absolute(one)
        (columns,) = torch.autograd.grad(rows, one, torch.ones_like(rows))
    norm_inf, norm_1 = rows.detach().max(), columns.max()
    norm_2 = (norm_inf * norm_1).sqrt()
    if matrix is not None:
        norm_2 = torch.linalg.matrix_norm(matrix.abs().double(), 2).to(norm_1)
    return spread.norms * torch.stack([norm_1, norm_2, norm_inf])


def _activation(n: fx.Node, module: Any) -> str:
    """Name of the activation function at a node, as in the table; '' for anything else."""
    name = _name(n.target) if module is None else type(module).__name__.lower()
    name = {"leakyrelu": "leaky_relu"}.get(name, name)
    if name.startswith("dropout"):
        return "dropout"
    alpha = getattr(module, "alpha", n.kwargs.get("alpha", 1.0))
    slope: Any = getattr(module, "negative_slope", n.kwargs.get("negative_slope", 0.01))
    steep = (name in ("elu", "celu") and alpha != 1.0) or (name == "leaky_relu" and abs(slope) > 1)
    return "" if steep else name


def _name(target: Any) -> str:
    return str(target if isinstance(target, str) else getattr(target, "__name__", "")).rstrip("_")


def _what(n: fx.Node, module: Any) -> str:
    return f"{n.target} ({type(module).__name__})" if module is not None else f"{_name(n.target)}()"
