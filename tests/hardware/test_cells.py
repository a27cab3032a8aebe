"""Cells of conductance against explicit matrices, a nodal analysis, and published laws."""

from __future__ import annotations

import numpy as np
import pytest
from crashsim_hardware import (
    ChipFaults,
    Drift,
    HardwareError,
    IrDrop,
    Levels,
    PcmDrift,
    PcmProgramming,
    StuckCells,
    Variation,
    convert,
    device,
    phase_change,
    reference,
    run,
    sample_cells,
    sample_stuck_cells,
)
from crashsim_hardware.faults.phase_change import drift_exponents
from crashsim_hardware.streams import Stream, generator


@pytest.fixture
def chip(tiny, rng):
    return convert(tiny("relu"), rng.normal(size=(100, 5)), 200)


def pairs(weight):
    """G+ and G- of a weight matrix, as a crossbar's designer writes them down."""
    largest = np.abs(weight).max()
    return np.where(weight > 0, weight, 0) / largest, np.where(weight < 0, -weight, 0) / largest


def uniform(rng, low, high, shape):
    return np.where((u := rng.random(shape)) < low, 1.0, np.where(u < low + high, 0.0, np.nan))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_each_effect_is_the_conductance_matrix(chip, place):
    """Drift, variation, levels and stuck cells, cell by cell from the same random numbers."""
    masks, seed = 4, 7
    weight = chip.projections[place].weight
    plus, minus = pairs(weight)

    def normals(order=0):
        shape = (masks, 2, *weight.shape)
        return generator(seed, Stream.CELL, place, order).standard_normal(shape)

    def read(effect):
        return sample_cells(chip, effect, masks, seed).weights[place]

    largest = np.abs(weight).max()
    n = normals()
    for mask in range(masks):
        one, two = n[mask]
        expected = largest * (
            plus * 50.0 ** -abs(0.06 + 0.02 * one) - minus * 50.0 ** -abs(0.06 + 0.02 * two)
        )
        found = read(Drift(500.0, 0.06, 0.02, start=10.0))[mask]
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)
        varied = largest * (
            np.maximum(plus * (1 + 0.1 * one), 0) - np.maximum(minus * (1 + 0.1 * two), 0)
        )
        np.testing.assert_allclose(read(Variation(0.1))[mask], varied, rtol=1e-13, atol=1e-15)
        spread = largest * (np.maximum(plus + 0.1 * one, 0) - np.maximum(minus + 0.1 * two, 0))
        found = read(Variation(0.1, absolute=True))[mask]
        np.testing.assert_allclose(found, spread, rtol=1e-13, atol=1e-15)
    levels = largest * (np.round(plus * 7) - np.round(minus * 7)) / 7
    np.testing.assert_allclose(read(Levels(8))[0], levels, rtol=1e-13, atol=1e-15)
    shape = (masks, 2, *weight.shape)
    stuck = uniform(generator(seed, Stream.CELL, place, 0), 0.1, 0.2, shape)
    cells = np.where(np.isnan(stuck), np.stack([plus, minus]), stuck)
    expected = largest * (cells[:, 0] - cells[:, 1])
    found = read(StuckCells(0.1, 0.2))
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)
    assert np.array_equal(found, sample_stuck_cells(chip, 0.1, 0.2, masks, seed).weights[place])


def test_the_chip_computes_with_the_faulty_matrix(tiny, rng):
    """Outputs are those of a chip that stores the changed weights; the network's, with its own."""
    chip = convert(tiny("relu"), rng.normal(size=(100, 5)), 200)
    x = rng.normal(size=(3, 5))
    effects = [Levels(16), Variation(0.1), StuckCells(0.05, 0.05), Drift(1e4, 0.05, 0.01)]
    faults = sample_cells(chip, effects, 3, 1)
    found = run(chip, x, faults, engine="numpy")
    from dataclasses import replace

    from crashsim_hardware.chip import round_to_grid

    for mask in range(3):
        changed = [
            p.with_weight(round_to_grid(w[mask], p.fraction_bits))
            for p, w in zip(chip.projections, faults.weights, strict=True)
        ]
        other = replace(
            chip,
            hidden=tuple(
                replace(h, projection=p) for h, p in zip(chip.hidden, changed[:-1], strict=True)
            ),
            readout=changed[-1],
        )
        np.testing.assert_allclose(
            run(other, x, engine="numpy").outputs[0], found.outputs[mask], rtol=1e-12
        )
    exact = reference(chip, x, faults).outputs
    clean = reference(chip, x).outputs
    assert np.abs(exact - clean).max() > 0.1
    assert np.abs(exact - found.outputs).max() < 0.25 * np.abs(exact - clean).max()


def test_compensation_restores_the_mean_weight(chip):
    plain = sample_cells(chip, Drift(1e6, 0.05, 0.02), 3, 0)
    scaled = sample_cells(chip, Drift(1e6, 0.05, 0.02, compensated=True), 3, 0)
    for projection, one, two in zip(chip.projections, plain.weights, scaled.weights, strict=True):
        before = np.abs(projection.weight).mean()
        for mask in range(3):
            assert np.abs(one[mask]).mean() < 0.7 * before
            factor = before / np.abs(one[mask]).mean()  # aihwkit's: mean |output| of unit vectors
            np.testing.assert_allclose(two[mask], factor * one[mask], rtol=1e-12)
    same = sample_cells(chip, Drift(1e6, 0.05, compensated=True), 1, 0)  # all drift alike
    for projection, read in zip(chip.projections, same.weights, strict=True):
        np.testing.assert_allclose(read[0], projection.weight, rtol=1e-12, atol=1e-15)


def test_before_the_first_read_nothing_drifts(chip):
    read = sample_cells(chip, Drift(0.5, 0.1, start=1.0), 1, 0).weights[0][0]
    np.testing.assert_allclose(read, chip.projections[0].weight, rtol=1e-14)


def published_pcm(target, g_prog, seconds, normals):
    """aihwkit 1.2.0's PCMLikeNoiseModel, written out in micro-siemens from its documentation."""
    programmed, exponents, noise = normals
    g_max = 25.0
    relative = np.clip(np.abs(target) / g_max, 1e-7, None)
    mean = np.clip(-0.0155 * np.log(relative) + 0.0244, 0.049, 0.1)
    deviation = np.clip(-0.0125 * np.log(relative) - 0.0059, 0.008, 0.045)
    nu = np.abs(mean + deviation * exponents)
    if g_prog is None:
        r = target / g_max
        sigma = 0.26348 + 1.9650 * r - 1.1731 * r**2
        g_prog = np.clip(target + sigma * programmed, 0.0, None)
    t = seconds + 20.0
    drifted = g_prog * (t / 20.0) ** -nu
    q = np.clip(0.0088 / np.clip((g_prog / g_max) ** 0.65, 1e-3, None), None, 0.2)
    sigma = q * np.sqrt(np.log((t + 250e-9) / (2 * 250e-9)))
    return np.clip(drifted + np.abs(drifted) * sigma * noise, 0.0, None), g_prog


@pytest.mark.parametrize("seconds", [0.0, 3600.0, 3.15e7])
def test_phase_change_cells_follow_the_published_law(seconds):
    """Programming, drift and read noise in siemens, from the same normal numbers."""
    rng = np.random.Generator(np.random.Philox(key=3))
    target = rng.random((1, 2, 30, 40)) ** 3
    target[0, 0, 0, :5] = 0.0
    shape = (6, *target.shape[1:])
    draws = np.random.Generator(np.random.Philox(key=4))
    programmed, exponents, noise = (draws.standard_normal(shape) for _ in range(3))

    class Given:
        def __init__(self, *arrays):
            self.arrays = list(arrays)

        def standard_normal(self, shape):
            return self.arrays.pop(0)

    cells = np.broadcast_to(target, shape)
    ours = PcmProgramming()(cells, target, Given(programmed))
    held = PcmDrift(seconds, read=1.0)(ours, target, Given(exponents, noise))
    theirs, g_prog = published_pcm(25 * cells, None, seconds, (programmed, exponents, noise))
    np.testing.assert_allclose(25 * ours, g_prog, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(25 * held, theirs, rtol=1e-11, atol=1e-12)


def test_drift_exponents_have_the_published_range():
    mean, deviation = drift_exponents(np.array([1.0, 0.5, 0.1, 1e-3, 0.0]))
    assert mean[0] == 0.049
    assert mean[-1] == 0.1
    assert mean[2] == pytest.approx(0.0244 + 0.0155 * np.log(10))
    assert deviation[0] == 0.008
    assert deviation[-1] == 0.045
    assert deviation[2] == pytest.approx(-0.0059 + 0.0125 * np.log(10))


def test_the_device_is_the_law(chip):
    parameters = {"time": 3600, "compensated": 0, "programming": 1, "drift": 1, "read": 1}
    found = device("pcm", **parameters).sample(chip, 4, 5)
    expected = sample_cells(chip, phase_change(3600.0), 4, 5)
    for one, two in zip(found.weights, expected.weights, strict=True):
        assert np.array_equal(one, two)
    later = device("pcm", **{**parameters, "time": 1e7}).sample(chip, 200, 5)
    ratio = np.abs(later.weights[0]).mean() / np.abs(chip.projections[0].weight).mean()
    assert 0.4 < ratio < 0.6  # (1e7 / 20)^-0.05 is 0.52
    kept = device("pcm", **{**parameters, "time": 1e7, "compensated": 1}).sample(chip, 200, 5)
    ratio = np.abs(kept.weights[0]).mean() / np.abs(chip.projections[0].weight).mean()
    assert ratio == pytest.approx(1.0, abs=0.1)


def nodal(conductances, a, voltages):
    """Currents of a crossbar by Kirchhoff's laws, with a resistance a in every segment of a line.

    conductances: (rows, columns). Rows are driven left of column 0, columns end at 0 V below.
    """
    rows, columns = conductances.shape
    size = 2 * rows * columns
    equations, right = np.zeros((size, size)), np.zeros(size)

    def word(i, j):
        return i * columns + j

    def bit(i, j):
        return rows * columns + i * columns + j

    def join(one, other, g, driven=0.0):
        equations[one, one] += g
        if other is None:
            right[one] += g * driven
        else:
            equations[other, other] += g
            equations[one, other] -= g
            equations[other, one] -= g

    for i in range(rows):
        for j in range(columns):
            if j:
                join(word(i, j), word(i, j - 1), 1 / a)
            else:
                join(word(i, j), None, 1 / a, voltages[i])
            if i + 1 < rows:
                join(bit(i, j), bit(i + 1, j), 1 / a)
            else:
                join(bit(i, j), None, 1 / a)
            join(word(i, j), bit(i, j), conductances[i, j])
    potentials = np.linalg.solve(equations, right)
    return np.array([potentials[bit(rows - 1, j)] / a for j in range(columns)])


def test_ir_drop_is_the_linear_term_of_the_nodal_equations():
    rng = np.random.Generator(np.random.Philox(key=1))
    g = rng.random((5, 4))  # rows, columns
    errors = []
    for a in (2e-3, 1e-3):
        effect = IrDrop(a)
        cells = np.zeros((1, 2, 4, 5))
        cells[0, 0] = g.T
        read = effect(cells, cells, rng)[0, 0].T
        exact = np.array([nodal(g, a, unit) for unit in np.eye(5)])
        assert np.abs(exact - g).max() > 5 * a
        errors.append(np.abs(read - exact).max())
    assert errors[0] < 0.1 * np.abs(exact - g).max()
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.1)  # of second order


def test_ir_drop_cuts_arrays_into_crossbars():
    rng = np.random.Generator(np.random.Philox(key=2))
    cells = rng.random((2, 2, 7, 9))
    whole = IrDrop(1e-3, rows=4, columns=5)(cells, cells, rng)
    for columns in (slice(0, 5), slice(5, 7)):
        for rows in (slice(0, 4), slice(4, 8), slice(8, 9)):
            part = cells[:, :, columns, rows]
            np.testing.assert_allclose(
                IrDrop(1e-3)(part, part, rng), whole[:, :, columns, rows], rtol=1e-14
            )
    with pytest.raises(HardwareError, match="no first-order model"):
        IrDrop(0.1)(cells, cells, rng)


def test_effects_of_ones_own(chip):
    def halved(cells, target, rng):
        return cells / 2

    read = sample_cells(chip, [halved, Levels(1025)], 2, 0).weights[0]
    expected = chip.projections[0].weight / 2
    assert np.abs(read - expected).max() <= np.abs(expected).max() * 2 / 1024
    with pytest.raises(HardwareError, match="must return finite conductances"):
        sample_cells(chip, lambda cells, target, rng: cells[0], 2, 0)
    with pytest.raises(HardwareError, match="must be callables"):
        sample_cells(chip, [3], 2, 0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Levels(1), "count"),
        (lambda: Variation(-0.1), "std"),
        (lambda: Drift(-1.0, 0.1), "time"),
        (lambda: Drift(1.0, 0.1, start=0.0), "start"),
        (lambda: StuckCells(0.6, 0.6), "stuck twice"),
        (lambda: IrDrop(float("nan")), "resistance"),
        (lambda: PcmDrift(float("inf")), "time"),
        (lambda: PcmProgramming(-1.0), "scale"),
    ],
)
def test_effects_without_meaning_are_refused(build, message):
    with pytest.raises(HardwareError, match=message):
        build()


def test_cells_and_other_faults_go_together(chip, rng):
    faults = sample_cells(chip, Variation(0.1), 3, 0)
    from dataclasses import replace

    both = replace(faults, dead=[np.ones((3, 8), bool), None])
    assert isinstance(both, ChipFaults)
    found = run(chip, rng.normal(size=(1, 5)), both, engine="numpy", record=True)
    assert not found.counts[0].any()
