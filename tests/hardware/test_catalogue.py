"""Every fault of the catalogue means the same in all engines, and what its definition says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from crashsim_hardware import (
    Chip,
    ChipFaults,
    HardwareError,
    convert,
    reference,
    run,
    sample_column_deaths,
    sample_held,
    sample_leak_variation,
    sample_perturbed_synapses,
    sample_refractory_variation,
    sample_row_deaths,
    sample_stuck,
    sample_stuck_synapses,
)

KINDS = {
    "relu": ("relu", {"refractory": 1e-3}),
    "lif": ("relu", {"neuron": "lif"}),
    "sigmoid": ("sigmoid", {"tau_syn": 0.005}),
    "tanh": ("tanh", {"tau_syn": 0.005, "refractory": 1e-3}),
}


def chip_of(tiny, rng, kind: str, steps: int = 40) -> Chip:
    activation, options = KINDS[kind]
    return convert(tiny(activation), rng.normal(0.3, 1.0, (50, 5)), steps, **options)


def layers(chip, build):
    return [build(size) for size in chip.sizes]


FIELDS = {
    "held": lambda chip, rng: sample_held(chip, 0.4, 3, 1, rate=0.3),
    "leaks": lambda chip, rng: ChipFaults(
        leaks=layers(chip, lambda n: rng.uniform(0.0, 3.0, (3, n)))
    ),
    "refractory": lambda chip, rng: ChipFaults(
        refractory=layers(chip, lambda n: rng.integers(0, 6, (3, n)))
    ),
    "gains": lambda chip, rng: ChipFaults(
        gains=layers(chip, lambda n: rng.normal(1.0, 0.5, (3, n)))
    ),
    "offsets": lambda chip, rng: ChipFaults(
        offsets=layers(chip, lambda n: rng.normal(0.0, 0.2, (3, n)))
    ),
    "read noise": lambda chip, rng: ChipFaults(read_noise=0.3, masks=3),
    "adc": lambda chip, rng: ChipFaults(adc_bits=4, adc_range=0.5, masks=3),
    "held for some steps": lambda chip, rng: replace(
        sample_held(chip, 0.4, 3, 1, rate=0.3), window=(chip.total_steps // 2, chip.total_steps - 5)
    ),
    "held for some steps, with pauses of their own": lambda chip, rng: replace(
        FIELDS["refractory"](chip, rng),
        held=FIELDS["held"](chip, rng).held,
        window=(chip.total_steps // 2, chip.total_steps - 5),
    ),
}
WITHOUT_SYNAPSES = {"read noise", "adc"}


def run_all(chip, x, faults, **options):
    oracle = run(chip, x, faults, engine="numpy", record=True, **options)
    dense = faults.by_step or faults.window is not None
    engines = ["brian2"] if dense else ["brian2", "brian2-synapses"]
    for engine in engines:
        result = run(chip, x, faults, engine=engine, record=True, **options)
        for layer, (ours, theirs) in enumerate(zip(result.counts, oracle.counts, strict=True)):
            assert np.array_equal(ours, theirs), (engine, layer)
        np.testing.assert_allclose(result.outputs, oracle.outputs, rtol=1e-12, atol=1e-12)
    return oracle


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FIELDS)
def test_engines_agree_to_the_spike(tiny, rng, kind, name):
    chip = chip_of(tiny, rng, kind)
    faults = FIELDS[name](chip, rng)
    x = rng.normal(0.3, 1.0, (2, 5))
    clean = run(chip, x, engine="numpy").outputs
    broken = run_all(chip, x, faults, seed=3)
    if not (name == "leaks" and kind != "lif"):  # the others have no leak
        assert not np.allclose(broken.outputs, clean, atol=1e-9)
    together = replace(
        FIELDS["refractory"](chip, rng),
        held=FIELDS["held"](chip, rng).held,
        gains=FIELDS["gains"](chip, rng).gains,
        thresholds=layers(chip, lambda n: rng.uniform(0.6, 1.5, (3, n))),
        stuck=sample_stuck(chip, 0.1, 3, 2).stuck,
    )
    run_all(chip, x, together, phases="random")


def test_results_do_not_depend_on_the_cut(tiny, rng):
    chip = chip_of(tiny, rng, "relu")
    faults = replace(FIELDS["read noise"](chip, rng), masks=130, adc_bits=5)
    x = rng.normal(0.3, 1.0, (3, 5))
    whole = run(chip, x, faults, engine="numpy", seed=2).outputs
    for copies in (64, 200):
        cut = run(chip, x, faults, engine="numpy", seed=2, copies=copies).outputs
        assert np.array_equal(cut, whole)
    assert not np.array_equal(run(chip, x, faults, engine="numpy", seed=3).outputs, whole)


@pytest.mark.parametrize("kind", ["relu", "tanh"])
def test_held_neurons_fire_at_their_rate(tiny, rng, kind):
    """Counts within one spike of rate x steps, at the distances that the rate says."""
    chip = chip_of(tiny, rng, kind, steps=400)
    rates = (0.0, 0.013, 0.25, 0.5) if kind == "relu" else (-0.5, -0.1, 0.3, 0.5)
    held = [np.full((1, size), np.nan) for size in chip.sizes]
    held[0][0, :4] = rates
    found = run(chip, rng.normal(size=(2, 5)), ChipFaults(held=held), engine="numpy", record=True)
    expected = np.array(rates) * chip.duration(0)
    assert np.abs(found.counts[0][0, :, :4] - expected).max() <= 1.0
    exact = reference(chip, np.zeros((1, 5)), ChipFaults(held=held)).hidden[0][0, 0, :4]
    np.testing.assert_allclose(exact, np.array(rates) * chip.hidden[0].scale[:4])
    with pytest.raises(HardwareError, match="fire from"):
        sample_held(chip, 0.1, 2, 0, rate=0.6)


def test_gains_and_offsets_are_those_of_the_network(tiny, rng):
    """a -> gain a + offset at every neuron, by the network's own forward pass."""
    network = tiny("sigmoid")
    chip = convert(network, rng.normal(size=(200, 5)), 3000, tau_syn=0.02)
    gains = [rng.normal(1.0, 0.5, (4, n)) for n in chip.sizes]
    offsets = [rng.normal(0.0, 0.3, (4, n)) for n in chip.sizes]
    x = rng.normal(size=(3, 5))
    found = run(chip, x, ChipFaults(gains=gains, offsets=offsets), engine="numpy").outputs
    by_hand = [offset * layer.scale for offset, layer in zip(offsets, chip.hidden, strict=True)]
    exact = network.forward(x, gain=gains, offset=by_hand).outputs
    clean = network.forward(x).outputs
    assert np.abs(found - exact).max() < 0.05 * np.abs(exact - clean).max()
    told = reference(chip, x, ChipFaults(gains=gains, offsets=offsets)).outputs
    np.testing.assert_allclose(told, exact)


def test_read_noise_has_its_law(tiny, rng):
    """A readout of rates by 400 steps of noisy reads, against the sum over the spikes."""
    chip = chip_of(tiny, rng, "relu", steps=400)
    x = rng.normal(0.3, 1.0, (1, 5))
    level, masks = 0.2, 3000
    noisy = replace(ChipFaults(masks=masks), read_noise=level)
    clean = run(chip, x, engine="numpy", record=True)
    # only the readout's reads: layers before it have none
    still = replace(chip, hidden=chip.hidden[:1], readout=chip.hidden[1].projection)
    counts = clean.counts[0][0, 0]
    found = run(still, x, noisy, engine="numpy").outputs[:, 0]
    mean = run(still, x, engine="numpy").outputs[0, 0]
    weight = still.readout.weight
    std = level * np.abs(weight).max() * np.sqrt(counts.sum()) / still.duration(0)
    assert np.abs(found.mean(0) - mean).max() < 5 * std / np.sqrt(masks)
    np.testing.assert_allclose(found.std(0), std, rtol=0.07)


def test_read_noise_of_convolutions_counts_their_windows(conv, rng):
    """The variance of each column is that of the cells it sums, pooling and padding included."""
    from crashsim_hardware.engines.block import blocks
    from crashsim_hardware.engines.reading import Reading

    chip = convert(conv("relu"), rng.random((20, 1, 8, 8)), 10)
    faults = ChipFaults(read_noise=0.5, masks=600)
    work = blocks(chip, np.zeros((1, 64)), faults, phases="half", seed=1, replica=0, copies=600)
    block = next(work)
    projection = chip.hidden[1].projection  # pools, then a grouped convolution with padding
    spikes = (rng.random((1, 1, 256)) < 0.4).astype(float)
    reading = Reading(projection, block, 1)
    zero = np.zeros((block.masks, 1, projection.bias.size))
    drawn = np.concatenate([reading(zero, spikes, step) for step in range(8)])[:, 0]
    pooled = spikes.reshape(4, 4, 2, 4, 2).sum((2, 4))
    padded = np.pad(pooled, ((0, 0), (1, 1), (1, 1)))
    expected = np.zeros((6, 4, 4))
    for group, inputs in enumerate((padded[:2], padded[2:])):
        for i in range(4):
            for j in range(4):
                cells = (inputs[:, i : i + 3, j : j + 3] ** 2).sum()
                expected[3 * group : 3 * group + 3, i, j] = cells
    largest = np.abs(projection.weight).max()
    np.testing.assert_allclose(
        drawn.std(0), 0.5 * largest * np.sqrt(expected.ravel()), rtol=0.1, atol=1e-6
    )


def test_converters_round_each_sum(tiny, rng):
    """A readout by a converter, against the rounding of each step's sum by hand."""
    chip = chip_of(tiny, rng, "relu", steps=30)
    still = replace(chip, hidden=chip.hidden[:1], readout=chip.hidden[1].projection)
    x = rng.normal(0.3, 1.0, (2, 5))
    weight = still.readout.weight
    full = 0.6 * max(np.maximum(weight, 0).sum(1).max(), np.maximum(-weight, 0).sum(1).max())
    unit = full / 7
    trains = _trains(still, x)
    sums = trains @ weight.T
    words = np.clip(np.round(sums / unit), -7, 7) * unit
    expected = words.sum(0) / still.duration(0) + still.readout.bias
    found = run(still, x, ChipFaults(adc_bits=4, adc_range=0.6), engine="numpy").outputs[0]
    grid = 2.0**-still.readout.fraction_bits if still.readout.fraction_bits else 1e-12
    assert np.abs(found - expected).max() <= grid
    assert np.abs(expected - (sums.sum(0) / still.duration(0) + still.readout.bias)).max() > 0.01


def _trains(chip, x):
    from crashsim_hardware.engines.block import blocks
    from crashsim_hardware.engines.numpy_engine import simulate

    work = blocks(chip, x, ChipFaults(masks=1), phases="half", seed=0, replica=0, copies=8)
    return simulate(chip, next(work), trains=True).trains[0][:, 0].astype(float)


def test_varied_leaks_and_pauses_act_as_on_a_chip_built_so(tiny, rng):
    """A factor on every leak is another time constant; a longer pause another neuron."""
    x = rng.normal(0.3, 1.0, (2, 5))
    lif = chip_of(tiny, rng, "lif")
    twice = replace(
        lif,
        hidden=tuple(
            replace(h, neuron=replace(h.neuron, leak=2 * h.neuron.leak)) for h in lif.hidden
        ),
    )
    leaks = [np.full((1, n), 2.0) for n in lif.sizes]
    one = run(lif, x, ChipFaults(leaks=leaks), engine="numpy", record=True)
    two = run(twice, x, engine="numpy", record=True)
    assert all(map(np.array_equal, one.counts, two.counts))
    relu = chip_of(tiny, rng, "relu")
    slow = replace(
        relu, hidden=tuple(replace(h, neuron=replace(h.neuron, refractory=3)) for h in relu.hidden)
    )
    pauses = [np.full((1, n), 3) for n in relu.sizes]
    one = run(relu, x, ChipFaults(refractory=pauses), engine="numpy", record=True)
    two = run(slow, x, engine="numpy", record=True)
    assert all(map(np.array_equal, one.counts, two.counts))
    with pytest.raises(HardwareError, match="no neuron of this chip is leaky"):
        sample_leak_variation(relu, 0.1, 2, 0)
    drawn = sample_refractory_variation(relu, 1.0, 500, 0).refractory[0]
    assert (drawn >= 0).all()
    assert drawn.mean() == pytest.approx(1.08, abs=0.05)  # of max(0, round(1 + N))


def test_lines_of_crossbars_break_together(tiny, rng):
    chip = chip_of(tiny, rng, "relu")
    rows = sample_row_deaths(chip, 0.3, 200, 0, rows=4, columns=3).dead_synapses[0]
    assert rows.shape == (200, 8, 5)
    for first in (0, 3, 6):  # outputs of one crossbar share their rows, and no more
        tile = rows[:, first : first + 3]
        assert (tile == tile[:, :1]).all()
    assert (rows[:, 0] != rows[:, 3]).any()
    columns = sample_column_deaths(chip, 0.3, 200, 0, rows=4, columns=3).dead_synapses[0]
    assert (columns[:, :, :4] == columns[:, :, :1]).all()
    assert (columns[:, :, 4] != columns[:, :, 0]).any()
    for dead in (rows, columns):
        assert dead.mean() == pytest.approx(0.3, abs=0.03)


def test_synapses_stick_and_vary(tiny, rng):
    chip = chip_of(tiny, rng, "relu")
    stored = chip.hidden[0].projection.weight
    largest = np.abs(stored).max()
    for value in (1.0, -1.0, 0.25):
        read = sample_stuck_synapses(chip, 0.2, 400, 0, value=value).weights[0]
        stuck = read != stored
        np.testing.assert_allclose(read[stuck], value * largest)
        assert stuck.mean() == pytest.approx(0.2, abs=0.02)
    read = sample_perturbed_synapses(chip, 0.1, 400, 0, p=0.5).weights[0]
    relative = read / stored - 1.0
    assert (relative == 0).mean() == pytest.approx(0.5, abs=0.03)
    assert relative[relative != 0].std() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ChipFaults(read_noise=-1.0), "read_noise"),
        (lambda: ChipFaults(adc_bits=1), "adc_bits"),
        (lambda: ChipFaults(adc_range=0.0), "adc_range"),
        (lambda: ChipFaults(leaks=[[[-1.0]]]), "leaks"),
        (lambda: ChipFaults(refractory=[[[0.5]]]), "refractory"),
        (lambda: ChipFaults(gains=[[[np.inf]]]), "gains"),
        (lambda: ChipFaults(gains=[[[2.0]]], window=(0, 3)), "window: .* there are none"),
    ],
)
def test_values_without_meaning_are_refused(build, message):
    with pytest.raises(HardwareError, match=message):
        build()


@pytest.mark.parametrize("name", sorted(WITHOUT_SYNAPSES))
def test_synapses_one_by_one_have_no_columns(tiny, rng, name):
    chip = chip_of(tiny, rng, "relu")
    with pytest.raises(HardwareError, match="whole columns"):
        run(chip, np.zeros((1, 5)), FIELDS[name](chip, rng), engine="brian2-synapses")
