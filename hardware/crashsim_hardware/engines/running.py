"""Run masks x inputs on a chip, with any of the three engines."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from crashsim_hardware.arguments import whole
from crashsim_hardware.chip import Chip, quantise
from crashsim_hardware.errors import HardwareError
from crashsim_hardware.faults.chip_faults import ChipFaults

from .block import MASKS, Activity, Block, Phases, blocks
from .inputs import flat_signals
from .readouts import Readout, check_readout, read_outputs

__all__ = ["Engine", "Progress", "RunResult", "as_faults", "run", "simulator"]

Floats = NDArray[Any]
Engine = Literal["brian2", "brian2-synapses", "numpy"]
Progress = Callable[[int, int], None]

# masks x inputs at once: in the cache for numpy; few enough runs for brian2's fixed cost per run
COPIES: dict[str, int] = {"numpy": 256, "brian2": 2048, "brian2-synapses": 64}


NEURONS = 1 << 19
"""Neurons simulated at once, at most about: bounds the memory of large layers."""


@dataclass(frozen=True, eq=False)
class RunResult:
    """What M masks of B inputs gave.

    outputs: (M, B, K), the readout in the network's units.
    counts: per hidden layer, spikes (M, B, n_l), or None when not asked for.
    rates: the same as activations in the network's units, or None.
    """

    outputs: Floats
    counts: tuple[Floats, ...] | None = None
    rates: tuple[Floats, ...] | None = None


class _Told:
    """Counts the steps of all copies, and passes on each hundredth of them."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self.copies = 0

    def __call__(self) -> None:
        """One step of the `copies` at work is done."""
        before, self._done = self._done, self._done + self.copies
        if self._progress is not None and before * 100 // self._total < (
            self._done * 100 // self._total
        ):
            self._progress(self._done, self._total)


class Simulator(Protocol):
    """An engine, ready for blocks of one chip."""

    def __call__(
        self,
        block: Block,
        *,
        trains: bool = False,
        firsts: bool = False,
        told: Callable[[], None] | None = None,
    ) -> Activity:
        """Simulate one block; what is kept beside the counts as `numpy_engine.simulate` says."""


def as_faults(chip: Chip, faults: Any) -> ChipFaults:
    """`faults` as ChipFaults: None is one clean mask, a sequence of arrays is `dead` neurons."""
    if not isinstance(chip, Chip):
        raise HardwareError(f"chip must be a Chip, as convert returns, got {chip!r:.80}")
    if faults is None:
        return ChipFaults(masks=1)
    broken = faults if isinstance(faults, ChipFaults) else ChipFaults(dead=faults)
    broken.check(chip)
    return broken


@contextmanager
def simulator(chip: Chip, engine: str) -> Iterator[Simulator]:
    """The engine of that name for `chip`; anything it changed is restored on leaving."""
    if engine == "numpy":
        from . import numpy_engine

        yield partial(numpy_engine.simulate, chip)
    elif engine in ("brian2", "brian2-synapses"):
        # imported on use: brian2 takes a second to load and installs a signal handler
        module = importlib.import_module(".brian2_engine", __package__)
        opened = module.session(chip, synapses=engine == "brian2-synapses")
        with cast(AbstractContextManager[Simulator], opened) as opened_simulator:
            yield opened_simulator
    else:
        raise HardwareError(
            f'engine must be "brian2", "brian2-synapses" or "numpy", got {engine!r}'
        )


def run(
    chip: Chip,
    inputs: Any,
    faults: Any = None,
    *,
    engine: Engine = "numpy",
    seed: int = 0,
    phases: Phases | None = None,
    record: bool = False,
    replica: int = 0,
    copies: int | None = None,
    readout: Readout = "count",
    progress: Progress | None = None,
    rows: tuple[int, int] | None = None,
) -> RunResult:
    """Outputs of `chip` for every mask and input.

    Parameters
    ----------
    inputs: (B, *chip.input_shape), constant currents; or (B, T, *chip.input_shape), trains, of
        which the first layer sees entry t in step t of its window, T = chip.total_steps.
    faults: ChipFaults; or a sequence of dead-neuron masks, (M, n_l) or None per hidden layer; or
        None for the clean chip (M = 1).
    engine: "numpy" without brian2, the fastest; "brian2" delivers spikes with dense matrix
        products between NeuronGroups, "brian2-synapses" with `Synapses` objects. All give the
        same spikes.
    seed: of the initial phases, of release failures and of the noise of reads.
    phases: initial membranes at half the threshold ("half": the smallest error of one clean
        read of a converted network), at "zero", or uniform in [0, v_th) ("random": unbiased
        counts, for statistics); default where the chip starts.
    record: also return spike counts and rates.
    replica: another independent draw of phases, releases and noise of reads for the same seed.
    copies: masks x inputs simulated at once; changes memory and speed, never results.
    readout: what the outputs are: of mean rates ("count"), how early the read neurons first fire
        ("first-spike"), or their membranes at the end ("membrane"); see `read_outputs`.
    progress: called with the time steps of all masks x inputs that are done, and with their
        number, about a hundred times.

    rows: the masks from rows[0], a multiple of 64, to before rows[1] alone: M is their number, and
        they give what they give among all.

    Raises HardwareError for arrays that do not fit the chip.
    """
    broken = as_faults(chip, faults)
    start, stop = (0, broken.count) if rows is None else rows
    if not 0 <= start < stop <= broken.count or start % MASKS:
        raise HardwareError(
            f"rows must be from a multiple of {MASKS} to at most {broken.count}, got {rows!r}"
        )
    x = flat_signals(chip, inputs)
    check_readout(chip, readout)
    held = broken.layer("held", len(chip.hidden) - 1)
    if engine == "brian2-synapses" and readout == "membrane" and held is not None:
        raise HardwareError(
            "neurons that are stuck at a rate fire by themselves where Synapses carry their "
            "spikes, so that their membranes are others; use engine='brian2' or 'numpy'"
        )
    seed, replica = whole("seed", seed, 0), whole("replica", replica, 0)
    if copies is not None:
        copies = whole("copies", copies, 1)
    phases = chip.start if phases is None else phases
    if not isinstance(engine, str) or not isinstance(phases, str):
        raise HardwareError(f"engine and phases must be names, got {engine!r} and {phases!r}")
    if broken.weight_bits is not None:
        chip = quantise(chip, broken.weight_bits)
    size = copies or max(1, min(COPIES.get(engine, 256), NEURONS // sum(chip.sizes)))
    outputs = np.empty((stop - start, len(x), chip.readout.bias.size))
    counts = [np.empty((stop - start, len(x), size)) for size in chip.sizes] if record else None
    work = blocks(
        chip, x, broken, phases=phases, seed=seed, replica=replica, copies=size, rows=(start, stop)
    )
    told = _Told(progress, outputs.shape[0] * outputs.shape[1] * chip.total_steps)
    with simulator(chip, engine) as simulate:
        for block in work:
            first = block.first_mask - start
            place = slice(first, first + block.masks)
            columns = slice(block.first_input, block.first_input + block.inputs)
            told.copies = block.masks * block.inputs
            activity = simulate(block, firsts=readout == "first-spike", told=told)
            outputs[place, columns] = read_outputs(chip, block, activity, readout)
            if counts is not None:
                for kept, count in zip(counts, activity.counts, strict=True):
                    kept[place, columns] = count
    if counts is None:
        return RunResult(outputs)
    return RunResult(outputs, tuple(counts), chip.rates(tuple(counts)))
