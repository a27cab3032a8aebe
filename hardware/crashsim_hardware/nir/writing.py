"""Writing a chip as a NIR graph."""

from __future__ import annotations

import itertools
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.chip import Chip, Projection, Spiking
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.neurons.point_neuron import PointNeuron
from crashsim_hardware.rate_network import attach_bias

from .reading import load_nir
from .stepped_writing import stepped_graph
from .transforms import node_of

__all__ = ["nir_graph", "write_nir"]

Floats = NDArray[Any]


def write_nir(chip: Chip, path: str | Path) -> None:
    """Write `chip` to a NIR file; see `nir_graph`. Raises HardwareError for what is no path."""
    if not isinstance(path, str | Path) or not str(path):
        raise HardwareError(f"path must be the name of a file, got {path!r:.80}")
    nir, graph = load_nir(), nir_graph(chip)
    # Written beside its place: what is there stays whole, whatever happens.
    place = Path(os.path.realpath(path))
    beside = place.with_name(f".{place.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        nir.write(str(beside), graph)
        os.replace(beside, place)
    finally:
        beside.unlink(missing_ok=True)


def nir_graph(chip: Chip) -> Any:
    """`chip` as a `nir.NIRGraph` in units of its threshold, with dt and the reset as metadata.

    The layers' scales are part of the weights: the graph computes the same outputs from the same
    inputs. A chip that was read from another library's graph is written with its branches, loops
    and delays, and the rules of its neurons as metadata of their nodes. Read again, both are the
    chip that they were. Raises HardwareError for what NIR cannot say: current-to-frequency neurons,
    neurons of one's own, a refractory period, different resets.
    """
    nir = load_nir()
    if not all(isinstance(layer.neuron, PointNeuron) for layer in chip.hidden):
        return stepped_graph(nir, chip)
    if chip.wires or any(layer.source is not None or layer.delay for layer in chip.hidden):
        raise HardwareError(
            "branches, loops and delays are written for chips of SteppedNeuron alone; residual "
            "connections are branches"
        )
    resets = {layer.neuron.reset for layer in chip.hidden}
    if len(resets) != 1:
        raise HardwareError("a NIR graph written here has one kind of reset, this chip has two")
    metadata: dict[str, Any] = {"dt": chip.physics.dt, "reset": resets.pop()}
    bits = chip.hidden[0].projection.fraction_bits
    if bits is not None:
        metadata["fraction_bits"] = bits
    names, nodes = ["input"], {"input": nir.Input({"input": np.array(chip.input_shape)})}

    def add(kind: str, node: Any) -> None:
        name = f"{len(names)}_{kind}"
        names.append(name)
        nodes[name] = node

    for index, layer in enumerate(chip.hidden):
        for kind, node in _wiring(nir, layer.projection, _kept(layer, index), f"layer {index}"):
            add(kind, node)
        add("neurons", _neurons(nir, layer, index, chip.physics.dt))
    for kind, node in _wiring(nir, chip.readout, 1.0, "the readout"):
        add(kind, node)
    names.append("output")
    nodes["output"] = nir.Output({"output": np.array(chip.readout.output_shape)})
    edges = list(itertools.pairwise(names))
    return nir.NIRGraph(nodes, edges, metadata=metadata, type_check=False)


def _kept(layer: Spiking, index: int) -> Any:
    """What is left of a charge after the leak between delivery and threshold; see read_nir."""
    return 1.0 - layer.neuron.leak if index and layer.neuron.synapse is None else 1.0


def _neurons(nir: Any, layer: Spiking, index: int, dt: float) -> Any:
    neuron, shape = layer.neuron, layer.projection.output_shape
    if neuron.curve != "linear" or neuron.gain != 1.0:
        raise HardwareError(
            f"hidden layer {index} has {neuron.curve} current-to-frequency neurons, which NIR has "
            "no node for; only ReLU networks can be written"
        )
    if neuron.refractory:
        raise HardwareError(f"hidden layer {index} is refractory, which NIR cannot say")
    one = np.ones(shape)
    if neuron.synapse is not None:
        if not neuron.leak:
            raise HardwareError(f"hidden layer {index}: a CubaLIF node needs a leaky membrane")
        return nir.CubaLIF(
            tau_syn=one * dt / neuron.synapse,
            tau_mem=one * dt / neuron.leak,
            r=one / neuron.leak,
            v_leak=0.0 * one,
            v_threshold=one,
            v_reset=0.0 * one,
            w_in=one,
        )
    if neuron.leak:
        return nir.LIF(
            tau=one * dt / neuron.leak,
            r=one / neuron.leak,
            v_leak=0.0 * one,
            v_threshold=one,
            v_reset=0.0 * one,
        )
    return nir.IF(r=one / dt, v_threshold=one, v_reset=0.0 * one)


def _wiring(nir: Any, projection: Projection, gain: float, where: str) -> list[tuple[str, Any]]:
    if projection.pool is not None:
        raise HardwareError(f"{where} takes a maximum over neurons, which NIR has no node for")
    transforms = attach_bias(projection.transforms, projection.bias, projection.shape, gain, where)
    nodes: list[tuple[str, Any]] = []
    shape = projection.shape
    for transform in transforms:
        node, shape = node_of(nir, transform, shape)
        nodes.append((type(node).__name__.lower().removesuffix("2d"), node))
    return nodes
