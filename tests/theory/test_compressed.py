"""Cells in place of coordinates: Chernoff and saddlepoint against the dense surrogate."""

import numpy as np
import pytest
from crashsim_theory import Bernoulli, Coordinates, LinearSurrogate
from crashsim_theory.tails.compressed import compress
from crashsim_theory.tails.estimates import chernoff_tail, saddlepoint_tail
from crashsim_theory.tails.gain_chunks import GainChunk


def _both(seed: int, p: tuple[float, ...] = (0.01, 0.2)):
    rng = np.random.default_rng(seed)
    chunks, gains, chances = [], [], []
    for chance in p:
        slopes = rng.standard_normal((3, 40)) * np.exp(2 * rng.standard_normal(40))
        moved = rng.standard_normal((40, 4)) * 2.0 ** np.arange(4)
        chunks.append(GainChunk(slopes, moved, chance))
        gains.append((slopes[:, :, None] * moved).reshape(3, -1))
        chances.append(np.full(160, chance))
    shift = rng.standard_normal(3)
    coordinates = Coordinates([Bernoulli(np.concatenate(chances))])
    dense = LinearSurrogate(shift, np.concatenate(gains, -1), coordinates)
    return dense, compress(shift, chunks)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_tails_are_those_of_all_coordinates(seed, mirrored):
    dense, rows = _both(seed)
    dense, rows = (dense.negative, rows.negative) if mirrored else (dense, rows)
    index = np.arange(3)
    largest = dense.shift + np.maximum(dense.gains, 0).sum(-1)
    for share in (0.1, 0.2, 0.4):
        level = dense.mean + share * (largest - dense.mean)
        exact = np.diagonal(dense.chernoff(level, "upper"))
        found = chernoff_tail(rows, index, level)
        assert (found >= exact * (1 - 1e-9)).all()  # stays a bound
        assert (exact > 0).all()
        assert (exact < 0.99).all()
        np.testing.assert_allclose(found, exact, rtol=0.02)
        wanted = np.diagonal(dense.saddlepoint(level, "upper"))
        np.testing.assert_allclose(saddlepoint_tail(rows, index, level), wanted, rtol=0.02)


def test_a_sum_keeps_its_mean_and_largest_value():
    dense, rows = _both(9)
    mean, variance, _ = rows.moments(np.arange(3), np.zeros(3))
    np.testing.assert_allclose(mean, dense.mean, rtol=1e-12)
    np.testing.assert_allclose(variance, dense.variance, rtol=1e-4)
    assert (variance >= dense.variance).all()
    np.testing.assert_allclose(
        rows.maximum()[0], dense.shift + np.maximum(dense.gains, 0).sum(-1), rtol=1e-12
    )


def test_certain_faults_shift_and_impossible_ones_do_nothing():
    gains, moved = np.array([[2.0, -3.0]]), np.ones(2)
    rows = compress(np.zeros(1), [GainChunk(gains, moved, 1.0), GainChunk(10 * gains, moved, 0.0)])
    np.testing.assert_allclose(rows.shift, [-1.0])
    assert chernoff_tail(rows, np.array([0, 0]), np.array([-1.0, -0.9])).tolist() == [1.0, 0.0]
