"""Rasters hold the spikes that the counts count."""

from __future__ import annotations

import numpy as np
import pytest
from crashsim_hardware import HardwareError, convert, raster, run, sample_dead


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_rasters_and_counts_agree(tiny, rng, activation):
    chip = convert(tiny(activation), rng.normal(size=(50, 5)), 40, tau_syn=0.004)
    x, faults = rng.normal(size=5), sample_dead(chip, 0.5, 3, 1)
    pictures = [
        raster(chip, x, faults, mask=2, engine=e) for e in ("numpy", "brian2", "brian2-synapses")
    ]
    counts = run(chip, x[None], faults, engine="numpy", record=True).counts
    for picture in pictures:
        for index, (spikes, count) in enumerate(zip(picture.crashed, counts, strict=True)):
            total = np.zeros(chip.sizes[index])
            np.add.at(total, spikes.neurons, spikes.polarity)
            assert np.array_equal(total, count[2, 0])
            assert not np.isin(spikes.neurons, np.flatnonzero(picture.dead[index])).any()
            assert np.all(spikes.times < picture.duration)
            assert np.array_equal(spikes.times, pictures[0].crashed[index].times)
        np.testing.assert_allclose(
            picture.clean[0].activations, chip.hidden[0].scale * picture.clean[0].rates * 1e-3
        )
        assert len(picture.clean[0].times) > len(picture.crashed[0].times) > 0


def test_latency_is_in_the_times(tiny, rng):
    chip = convert(tiny("relu"), rng.normal(size=(50, 5)), 40)
    picture = raster(chip, np.ones(5) * 2, None, engine="numpy")
    assert picture.clean[1].times.min() >= 1e-3
    assert picture.duration == pytest.approx(41e-3)
    with pytest.raises(HardwareError, match="mask must be from 0 to 0"):
        raster(chip, np.ones(5), None, mask=1)
