"""Graphs that other libraries exported, against the spikes that those libraries count.

The files of `data/` and what is in them: `data/make_exports.py`. The libraries are not needed here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from crashsim_hardware import (
    CONVENTIONS,
    ChipFaults,
    HardwareError,
    crash_statistics,
    read_nir,
    run,
)

pytest.importorskip("nir")

DATA = Path(__file__).parent / "data"
NAMES = sorted(path.stem for path in DATA.glob("*.nir"))


def read(name):
    with np.load(DATA / f"{name}.npz") as stored:
        return dict(stored)


MASKED = [name for name in NAMES if "dead" in read(name)]


def chip_of(name, **options):
    library, _, kind = name.partition("_")
    if library == "snntorch":
        options.setdefault("reset", kind.split("_")[-1])
    counted = read(name)
    options.setdefault("exporter", library)
    return read_nir(DATA / f"{name}.nir", steps=int(counted["steps"]), **options), counted


def share_equal(chip, counted, engine):
    found = run(chip, counted["x"], engine=engine, record=True).counts[-1][0]
    return (found == counted["counts"]).mean()


def test_every_library_is_here():
    assert {name.split("_")[0] for name in NAMES} == set(CONVENTIONS) - {"nir"}
    assert len(MASKED) >= 3


# The libraries compute in single precision: where a membrane comes within 1e-6 of its threshold, a
# spike of theirs is rounding. One input of the 200 of sinabs-bounded_conv has such a neuron.
ROUNDED = {"sinabs-bounded_conv": 2}


@pytest.mark.parametrize("name", NAMES)
def test_spike_for_spike(name):
    chip, counted = chip_of(name)
    assert counted["counts"].mean() > 0.5
    assert counted["counts"].std() > 0.5
    unequal = (1 - share_equal(chip, counted, "numpy")) * counted["counts"].size
    assert round(unequal) <= ROUNDED.get(name, 0)


@pytest.mark.parametrize("engine", ["brian2", "brian2-synapses"])
@pytest.mark.parametrize("name", [name for name in NAMES if "conv" not in name])
def test_brian2_has_the_same_spikes(name, engine):
    chip, counted = chip_of(name)
    few = {"x": counted["x"][:20], "counts": counted["counts"][:20]}
    if name.startswith(("sinabs", "rockpool")):
        with pytest.raises(HardwareError, match="one spike a step"):
            share_equal(chip, few, engine)
    else:
        assert share_equal(chip, few, engine) == 1.0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("snntorch_leaky_subtract", {"reset": "zero"}),
        ("snntorch_leaky_subtract", {"exporter": "nir"}),  # the reset comes at once
        ("snntorch_leaky_zero", {"reset": "late-zero"}),
        ("snntorch_recurrent_zero", {"exporter": "nir"}),
        ("sinabs_lif", {"exporter": "nir", "reset": "subtract", "dt": 1.0}),
        ("sinabs-bounded_conv", {"exporter": "sinabs"}),
        ("norse_lif", {"exporter": "nir", "reset": "zero", "dt": 1e-6}),
        ("spikingjelly_lif", {"start": "half"}),
    ],
)
def test_the_conventions_matter(name, options):
    """What the file does not say changes the counts: each is worth its word."""
    chip, counted = chip_of(name, **options)
    assert share_equal(chip, counted, "numpy") < 0.9


@pytest.mark.parametrize("name", MASKED)
def test_deaths_are_those_of_the_library(name):
    chip, counted = chip_of(name)
    x, steps = counted["x"][:4], int(counted["steps"])
    dead = ChipFaults(dead=[counted["dead"], None])
    found = run(chip, x, dead, engine="numpy", record=True).counts[-1]
    assert (found == counted["faulty"]).mean() >= 0.999
    theirs = (counted["faulty"] / steps).var(axis=0, ddof=1)
    assert theirs.sum() > 1e-3
    statistics = crash_statistics(chip, x, dead, engine="numpy")
    np.testing.assert_allclose(statistics.variance.value.sum(), theirs.sum(), rtol=0.02)
    delta = (counted["faulty"].astype(float) - counted["counts"][None, :4]).mean(0) / steps
    np.testing.assert_allclose(statistics.mean.value, delta, atol=1e-3)
    assert not statistics.noise.any()
