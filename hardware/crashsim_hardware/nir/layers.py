"""The layers of spiking neurons in a flat NIR graph, in order, and the ways between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.errors import HardwareError
from crashsim_hardware.transforms import Scale, Transform, apply, weight_of, with_weight

from .flat_graph import FlatGraph
from .neurons import flat, is_spiking
from .transforms import append

__all__ = ["Path", "Paths", "layer_order"]

Floats = NDArray[Any]

_MOST_PATHS = 64  # into one node


@dataclass(frozen=True, eq=False)
class Path:
    """A way from one layer of neurons, or the Input, to the next: transforms without biases."""

    source: str
    transforms: tuple[Transform, ...]
    delay: int


@dataclass
class Paths:
    """What comes into the nodes of a graph: paths from neurons or the Input, and constant drive."""

    nir: Any
    graph: FlatGraph
    dt: float
    within: list[str] = field(default_factory=list)
    drives: dict[str, Floats] = field(default_factory=dict)

    def into(self, name: str) -> list[Path]:
        """All paths that end in a node. Raises HardwareError for a loop without neurons."""
        if name in self.within:
            raise HardwareError(f"node {name!r} is in a loop without neurons")
        self.within.append(name)
        found = [path for source in self.graph.into[name] for path in self._out_of(source)]
        self.within.pop()
        if len(found) > _MOST_PATHS:
            raise HardwareError(f"more than {_MOST_PATHS} ways lead to the node {name!r}")
        return found

    def _out_of(self, name: str) -> list[Path]:
        node = self.graph.nodes[name]
        if name == self.graph.input or is_spiking(self.nir, node):
            return [Path(name, (), 0)]
        paths = self.into(name)
        if isinstance(node, self.nir.Delay):
            return [late for path in paths for late in self._delayed(name, node, path)]
        transform = self._transform(name, node)
        return [self._longer(path, transform, name) for path in paths]

    def _transform(self, name: str, node: Any) -> Transform | None:
        """A node without its bias; None where it passes on what it gets."""
        if name in self.graph.transforms:
            transform = self.graph.transforms[name]
            weight = weight_of(transform)
            return transform if weight is None else with_weight(transform, weight)
        if isinstance(node, self.nir.Input | self.nir.Output):
            return None
        successors = [n for n, into in self.graph.into.items() if name in into]
        if successors != [self.graph.output]:
            raise HardwareError(
                f"node {name!r} is a {type(node).__name__}, a membrane without spikes, which can "
                "be read out before the Output and not run anywhere else"
            )
        shape = self.graph.shapes[name]
        gain = flat(node.r, shape, name)
        if isinstance(node, self.nir.I):
            gain = gain * self.dt
        elif hasattr(node, "w_in"):
            gain = gain * flat(node.w_in, shape, name)
        return Scale(gain.reshape(shape))

    @staticmethod
    def _longer(path: Path, transform: Transform | None, name: str) -> Path:
        if transform is None:
            return path
        pending = list(path.transforms)
        append(pending, transform, name)
        return Path(path.source, tuple(pending), path.delay)

    def _delayed(self, name: str, node: Any, path: Path) -> list[Path]:
        shape = self.graph.shapes[name]
        steps = np.rint(flat(node.delay, shape, name) / self.dt).astype(np.int64)
        if (steps < 0).any() or (steps > 10**6).any():
            raise HardwareError(f"node {name!r} has a delay that is not from 0 to 10^6 steps")
        if self.drive_into(name).any():
            raise HardwareError(f"node {name!r} delays a constant: put it before the bias")
        lengths = np.unique(steps)
        if len(lengths) == 1:
            return [Path(path.source, path.transforms, path.delay + int(lengths[0]))]
        late = []
        for length in lengths:
            longer = self._longer(path, Scale((steps == length).reshape(shape) * 1.0), name)
            late.append(Path(path.source, longer.transforms, path.delay + int(length)))
        return late

    def drive_into(self, name: str) -> Floats:
        """The constant that the biases before a node add up to, in the shape of what it gets."""
        total: Any = 0.0
        for source in self.graph.into[name]:
            total = total + self._drive_out_of(source)
        return np.asarray(total, dtype=np.float64)

    def _drive_out_of(self, name: str) -> Floats:
        node, shape = self.graph.nodes[name], self.graph.shapes[name]
        if name == self.graph.input or is_spiking(self.nir, node):
            return np.zeros(shape)
        if name not in self.drives:
            value = self.drive_into(name)
            if name in self.graph.transforms:
                value = apply(self.graph.transforms[name], value, value.ndim)
            elif hasattr(node, "r"):  # LI, I, CubaLI
                transform = self._transform(name, node)
                value = value if transform is None else apply(transform, value, value.ndim)
                if hasattr(node, "v_leak"):
                    value = value + flat(node.v_leak, shape, name).reshape(shape)
            self.drives[name] = value
        return self.drives[name]


def layer_order(start: str, sources: dict[str, list[str]], last: str) -> list[str]:
    """The layers such that spikes go forwards but for loops, which close in the step after.

    start: the Input; sources: of every layer; last: the layer that is read.

    Raises HardwareError where the layer that is read cannot be the last.
    """
    after: dict[str, list[str]] = {name: [] for name in (start, *sources)}
    for target, names in sources.items():
        for name in names:
            after[name].append(target)
    done: list[str] = []
    back: set[tuple[str, str]] = set()
    stack, open_nodes = [(start, iter(after[start]))], {start}
    seen = {start}
    while stack:
        name, following = stack[-1]
        onward = next(following, None)
        if onward is None:
            stack.pop()
            open_nodes.discard(name)
            done.append(name)
        elif onward in open_nodes:
            back.add((name, onward))
        elif onward not in seen:
            seen.add(onward)
            open_nodes.add(onward)
            stack.append((onward, iter(after[onward])))
    order = [name for name in reversed(done) if name != start]
    follows = {target for target in after[last] if (last, target) not in back}
    if follows:
        raise HardwareError(
            f"the Output reads {last!r}, whose spikes go on to {min(follows)!r}; only the last "
            "layer can be read"
        )
    return [*(name for name in order if name != last), last]
