"""Feed-forward networks as plain arrays: layers, the graph they compile to, and crash faults.

`Network([Linear(w, b), "relu", Linear(v, c)], input_shape=(64,))` is the whole language: a list of
layers, where an activation is its name or an `Activation`. Compiled, it is a list of nodes in
topological order, each an affine map (dense or sparse matrix), an activation, a maximum over
windows or a sum; what the certificates and remainders work on.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import scipy.sparse

from crashsim_theory.activations import Activation, activation
from crashsim_theory.arrays import Array, ArrayLike, as_array, as_probability
from crashsim_theory.errors import TheoryError
from crashsim_theory.layers import Flatten, Layer, MaxPool2d, Residual, affine_matrix, pool_windows

Site: TypeAlias = int | tuple[int, ...] | Literal["input"]


@dataclass(frozen=True, eq=False)
class AffineMap:
    """x -> W x + b on flat vectors, W dense or scipy.sparse."""

    weight: Any
    bias: Array

    def __call__(self, values: Array) -> Array:
        """W x + b for every row x of values (..., in)."""
        return np.asarray(self.linear(values) + self.bias)

    def linear(self, values: Array) -> Array:
        """W x for every row x of values (..., in)."""
        if scipy.sparse.issparse(self.weight):
            return np.asarray((self.weight @ values.reshape(-1, values.shape[-1]).T).T).reshape(
                *values.shape[:-1], -1
            )
        return np.asarray(values @ self.weight.T)

    def adjoint(self, rows: Array) -> Array:
        """A W for coefficient rows A (r, out)."""
        if scipy.sparse.issparse(self.weight):
            return np.asarray((self.weight.T @ rows.T).T)
        return np.asarray(rows @ self.weight)

    @functools.cached_property
    def absolute(self) -> AffineMap:
        """The map with |W| and |b|."""
        return AffineMap(abs(self.weight), np.abs(self.bias))


@dataclass(frozen=True, eq=False)
class WindowMaximum:
    """y_j = max of x over windows[j]; windows (out, k) padded by repeating members."""

    windows: Any


@dataclass(frozen=True)
class Sum:
    """The sum of all parents."""


Operation: TypeAlias = AffineMap | Activation | WindowMaximum | Sum | None


@dataclass(frozen=True, eq=False)
class Node:
    """One step of the compiled network: its operation (None at the input), parents and shape."""

    operation: Operation
    parents: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))


class Network:
    """A compiled feed-forward network.

    Args:
        layers: in order.
        input_shape: of one input, (features,) or (channels, height, width).

    Attributes:
        nodes: in topological order; node 0 is the input, the last one the output.
        sites: the node of every site: "input", i for the output of layers[i], and (i, j) for that
            of layer j inside the branch of the Residual layers[i].

    Raises:
        TheoryError: a layer whose weight does not fit the shape that reaches it.
    """

    def __init__(self, layers: Sequence[Layer], input_shape: Sequence[int]) -> None:
        self.nodes: list[Node] = [Node(None, (), tuple(int(n) for n in input_shape))]
        self.sites: dict[Site, int] = {"input": 0}
        self._extend(layers, 0, ())
        self.output_size = self.nodes[-1].size

    def _extend(self, layers: Sequence[Layer], start: int, path: tuple[int, ...]) -> int:
        at = start
        for position, layer in enumerate(layers):
            site: Site = (*path, position) if path else position
            try:
                at = self._append(layer, at, (*path, position))
            except (ValueError, IndexError) as error:
                if isinstance(error, TheoryError):
                    raise
                shape = self.nodes[at].shape
                remedy = f"{type(layer).__name__} does not fit input shape {shape}: {error}"
                raise TheoryError(f"layers[{site}]", layer, remedy) from None
            self.sites[site] = at
        return at

    def _append(self, layer: Layer, at: int, path: tuple[int, ...]) -> int:
        shape = self.nodes[at].shape
        if isinstance(layer, Residual):
            branch = self._extend(layer.branch, at, path)
            shortcut = self._extend(layer.shortcut, at, (*path, -1)) if layer.shortcut else at
            if self.nodes[branch].size != self.nodes[shortcut].size:
                raise ValueError(f"branch gives {self.nodes[branch].shape}")
            return self._node(Sum(), (branch, shortcut), self.nodes[branch].shape)
        if isinstance(layer, str | Activation):
            return self._node(activation(layer), (at,), shape)
        if isinstance(layer, Flatten):
            size = self.nodes[at].size
            identity = scipy.sparse.identity(size, format="csr")
            return self._node(AffineMap(identity, np.zeros(size)), (at,), (size,))
        if isinstance(layer, MaxPool2d):
            stride = layer.stride or layer.kernel
            windows, pooled = pool_windows(shape, layer.kernel, stride, layer.padding)
            inside = windows >= 0
            first = windows[np.arange(len(windows)), inside.argmax(1)]
            filled = np.where(inside, windows, first[:, np.newaxis])
            return self._node(WindowMaximum(filled), (at,), pooled)
        weight, bias, out = affine_matrix(layer, shape)
        return self._node(AffineMap(weight, bias), (at,), out)

    def _node(self, operation: Operation, parents: tuple[int, ...], shape: tuple[int, ...]) -> int:
        self.nodes.append(Node(operation, parents, shape))
        return len(self.nodes) - 1

    def __call__(
        self, inputs: ArrayLike, faults: CrashFaults | None = None, crashed: Any = None
    ) -> Array:
        """Outputs (M, K) for inputs (*input_shape) or (M, *input_shape).

        Args:
            inputs: one input or a batch.
            faults: where coordinates strike; needed with `crashed`.
            crashed: which coordinates crash, (M, C) of 0 and 1.
        """
        values = as_array("inputs", inputs).reshape(-1, self.nodes[0].size)
        masks = None
        if crashed is not None and faults is not None:
            masks = np.atleast_2d(as_array("crashed", crashed))
            values = np.broadcast_to(values, (max(len(values), len(masks)), values.shape[1]))
        results: list[Array] = []
        for index, node in enumerate(self.nodes):
            value = apply(node.operation, [results[parent] for parent in node.parents] or [values])
            if masks is not None and faults is not None:
                for ids in faults.members_at(self, index):
                    hit = np.where(ids >= 0, masks[:, ids], 0.0)
                    value = value * (1 - hit)
            results.append(value)
        return results[-1]


def apply(operation: Operation, values: Sequence[Array]) -> Array:
    """The operation on its parents' values (..., n)."""
    if operation is None:
        return values[0]
    if isinstance(operation, Sum):
        return np.asarray(sum(values[1:], start=values[0]))
    if isinstance(operation, WindowMaximum):
        return np.asarray(values[0][..., operation.windows].max(-1))
    return operation(values[0])


@dataclass(frozen=True, eq=False)
class CrashFaults:
    """Independent crash coordinates and the sites they strike.

    Attributes:
        p: crash probability of each coordinate, (C,).
        members: for every site, the coordinate that each of its neurons crashes with (-1: never);
            neurons with the same coordinate, in one layer or several, crash together.
    """

    p: Any
    members: Mapping[Site, Any]

    def __post_init__(self) -> None:
        p = np.atleast_1d(as_probability("p", self.p))
        members = {}
        for site, ids in self.members.items():
            array = np.asarray(ids)
            if not np.issubdtype(array.dtype, np.integer) or np.any(array >= len(p)):
                raise TheoryError(f"members[{site!r}]", ids, f"give integers below {len(p)}")
            members[site] = array.reshape(-1)
        object.__setattr__(self, "p", p)
        object.__setattr__(self, "members", members)

    def members_at(self, network: Network, index: int) -> list[Any]:
        """The coordinate ids of the neurons of node `index`; empty where nothing crashes."""
        found = []
        for site, ids in self.members.items():
            if site not in network.sites:
                raise TheoryError("site", site, f"choose one of {list(network.sites)}")
            if network.sites[site] == index:
                if len(ids) != network.nodes[index].size:
                    remedy = f"site {site!r} has {network.nodes[index].size} neurons"
                    raise TheoryError("members", len(ids), remedy)
                found.append(ids)
        return found


def neuron_crashes(network: Network, sites: Mapping[Site, ArrayLike]) -> CrashFaults:
    """Every neuron of each site crashes on its own, with the site's p (a scalar or one each)."""
    p: list[Array] = []
    members: dict[Site, Any] = {}
    start = 0
    for site, probability in sites.items():
        if site not in network.sites:
            raise TheoryError("site", site, f"choose one of {list(network.sites)}")
        size = network.nodes[network.sites[site]].size
        p.append(np.broadcast_to(as_probability("p", probability), (size,)))
        members[site] = np.arange(start, start + size)
        start += size
    if not p:
        raise TheoryError("sites", sites, "give at least one site")
    return CrashFaults(np.concatenate(p), members)
