"""What a run of the chip shows beside its estimates, as plain data for JSON and pictures."""

from __future__ import annotations

from typing import Any

import crashsim_hardware as chips
import numpy as np
from crashsim_hardware.engines.running import Engine

from crashsim.arrays import Floats
from crashsim.results.schema import (
    ActivityFacts,
    DeviceFacts,
    LayerRasterFacts,
    RasterFacts,
    RateFacts,
    SpikeFacts,
)

_RASTER_NEURONS = 120  # per layer, so that the picture stays small
_ACTIVITY_RUNS = 64


def raster_facts(drawn: chips.Raster) -> RasterFacts:
    """Spikes of the clean and the crashed chip, thinned to some neurons of each layer."""
    layers: list[LayerRasterFacts] = []
    for clean, crashed, dead in zip(drawn.clean, drawn.crashed, drawn.dead, strict=True):
        n = len(dead)
        # Dead neurons first, then evenly spread ones: the picture is about the dead.
        order = np.argsort(~dead, kind="stable")
        kept = np.sort(order[np.unique(np.linspace(0, n - 1, min(n, _RASTER_NEURONS)).astype(int))])
        row = np.full(n, -1)
        row[kept] = np.arange(len(kept))
        layers.append(
            {
                "neurons": len(kept),
                "dead": row[dead & (row >= 0)].tolist(),
                "clean": _thin_spikes(clean, row),
                "crashed": _thin_spikes(crashed, row),
            }
        )
    return {"duration": drawn.duration, "layers": layers}


def _thin_spikes(spikes: chips.Spikes, row: Any) -> SpikeFacts:
    rows = row[spikes.neurons]
    kept = rows >= 0
    return {
        "times": np.round(spikes.times[kept], 6).tolist(),
        "rows": rows[kept].tolist(),
    }


def rate_facts(network: chips.Network, inputs: Floats, clean: chips.RunResult) -> list[RateFacts]:
    """Activations of the network and of the chip, a few hundred per layer."""
    assert clean.rates is not None
    exact = network.forward(inputs).hidden
    found: list[RateFacts] = []
    for truth, rates in zip(exact, clean.rates, strict=True):
        thin = max(1, truth.size // 400)
        found.append(
            {
                "network": truth.ravel()[::thin].tolist(),
                "chip": rates[0].ravel()[::thin].tolist(),
            }
        )
    return found


def device_facts(device: chips.Device) -> DeviceFacts:
    return {
        "name": device.name,
        "title": device.title,
        "citation": device.citation,
        "url": device.url,
        "parameters": [
            {"name": p.name, "value": p.value, "status": p.status, "note": p.note}
            for p in device.parameters
        ],
    }


def activity_facts(
    chip: chips.Chip,
    inputs: Floats,
    broken: chips.ChipFaults,
    clean: chips.RunResult,
    engine: Engine,
) -> ActivityFacts:
    """Spikes and synaptic operations of an inference, without faults and with them.

    Averages over the inputs, and over as many of the masks as a short run affords.
    """
    masks = min(broken.count, max(1, _ACTIVITY_RUNS // len(inputs)))
    struck = chips.run(chip, inputs, broken, engine=engine, record=True, rows=(0, masks))
    assert clean.counts is not None
    assert struck.counts is not None
    both = clean.counts, struck.counts
    spikes, operations = (
        [float(np.mean(measure(counts))) for counts in both]
        for measure in (
            lambda counts: sum(np.abs(count).sum(-1) for count in counts),
            lambda counts: chips.synaptic_operations(chip, counts),
        )
    )
    return {
        "neurons": sum(chip.sizes),
        "masks": masks,
        "spikes": spikes[0],
        "spikes_broken": spikes[1],
        "operations": operations[0],
        "operations_broken": operations[1],
    }
