"""Every single fault, against runs of chips built with it, one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from crashsim_hardware import ChipFaults, HardwareError, convert, criticality, run


def test_maps_are_what_each_fault_does_alone(tiny, rng):
    """Against a chip whose weights lead nowhere, or are changed, rebuilt for every place."""
    chip = convert(tiny("relu"), rng.normal(size=(50, 5)), 60)
    x = rng.normal(0.4, 1.0, (4, 5))
    told = []
    kinds = ("dead-neuron", "saturated-synapse", "dead-synapse", "top-bit-flip")
    found = criticality(chip, x, kinds, progress=lambda *a: told.append(a))
    clean = run(chip, x, engine="numpy").outputs[0]
    assert np.array_equal(found.outputs, clean)
    assert [(m.fault, m.layer, m.moved.shape) for m in found.maps[:3]] == [
        ("dead-neuron", "layer 0", (8,)),
        ("dead-neuron", "layer 1", (6,)),
        ("saturated-synapse", "layer 0", (8, 5)),
    ]

    def rebuilt(place, weight):
        projections = list(chip.projections)
        projections[place] = projections[place].with_weight(weight)
        hidden = tuple(
            replace(h, projection=p) for h, p in zip(chip.hidden, projections, strict=False)
        )
        other = replace(chip, hidden=hidden, readout=projections[2])
        outputs = run(other, x, engine="numpy").outputs[0]
        moved = np.abs(outputs - clean).max(-1).mean()
        return moved, (outputs.argmax(-1) != clean.argmax(-1)).mean()

    by_key = {(m.fault, m.layer): m for m in found.maps}
    for place, layer in enumerate(("layer 0", "layer 1", "readout")):
        weight = chip.projections[place].weight
        step = np.abs(weight).max() / 127
        for index in np.ndindex(weight.shape):
            bit = weight[index] + (128 if round(weight[index] / step) < 0 else -128) * step
            for fault, value in (
                ("dead-synapse", 0.0),
                ("saturated-synapse", np.abs(weight).max()),
                ("top-bit-flip", bit),
            ):
                changed = weight.copy()
                changed[index] = _on_grid(value, chip.projections[place].fraction_bits)
                moved, classes = rebuilt(place, changed)
                one = by_key[fault, layer]
                assert one.moved[index] == pytest.approx(moved, rel=1e-9, abs=1e-12)
                assert one.changed[index] == classes
    for place in (0, 1):  # a dead neuron: all that it sends is lost
        for neuron in range(chip.sizes[place]):
            weight = chip.projections[place + 1].weight.copy()
            weight[:, neuron] = 0.0
            moved, classes = rebuilt(place + 1, weight)
            one = by_key["dead-neuron", f"layer {place}"]
            assert one.moved[neuron] == pytest.approx(moved, rel=1e-9, abs=1e-12)
            assert one.changed[neuron] == classes
    assert max(m.changed.max() for m in found.maps) > 0.2
    assert told[-1][0] == told[-1][1] == 8 + 6 + 3 * (40 + 48 + 18)


def _on_grid(value, bits):
    return value if bits is None else np.round(value * 2.0**bits) / 2.0**bits


def test_the_worst_are_the_largest(tiny, rng):
    chip = convert(tiny("relu"), rng.normal(size=(50, 5)), 60)
    x = rng.normal(0.4, 1.0, (4, 5))
    found = criticality(chip, x, ["dead-neuron", "saturated-neuron"])
    worst = found.worst(5)
    assert len(worst) == 5
    everything = sorted(
        ((c, m) for each in found.maps for c, m in zip(each.changed, each.moved, strict=True)),
        key=lambda pair: (-pair[0], -pair[1]),
    )
    assert [(w.changed, w.moved) for w in worst] == everything[:5]
    one = worst[0]
    struck = [np.zeros((1, n), bool) for n in chip.sizes]
    struck[int(one.layer.split()[1])][0, one.index[0]] = True
    field = {"dead-neuron": "dead", "saturated-neuron": "stuck"}[one.fault]
    outputs = run(chip, x, ChipFaults(**{field: struck}), engine="numpy").outputs[0]
    assert one.moved == np.abs(outputs - found.outputs).max(-1).mean()


def test_maps_have_the_shape_of_the_layer(conv, rng):
    chip = convert(conv("relu"), rng.random((20, 1, 8, 8)), 10)
    found = criticality(chip, rng.random((1, 1, 8, 8)), ["dead-neuron", "dead-synapse"])
    shapes = [m.moved.shape for m in found.maps]
    assert shapes[:3] == [(4, 8, 8), (6, 4, 4), (10,)]
    assert shapes[3:] == [p.weight.shape for p in chip.projections]


def test_unknown_faults_are_refused(tiny, rng):
    chip = convert(tiny("relu"), rng.normal(size=(50, 5)), 6)
    for wrong in ("dead-neuron", [], ["melted"]):
        with pytest.raises(HardwareError, match="faults must be some of"):
            criticality(chip, np.zeros((1, 5)), wrong)
