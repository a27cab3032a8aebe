"""Points and their sampling: exact laws, streams that share nothing."""

import itertools

import numpy as np
import pytest
from scipy import stats

from crashsim.arguments import check_seed
from crashsim.coordinates.drawing import (
    MAX_BLOCK,
    MAX_CHANGES,
    _common,
    _rare,
    sample_block,
    sample_points,
    samples_per_block,
)
from crashsim.coordinates.placement import Placement
from crashsim.coordinates.points import Listed, Points, Written, join
from crashsim.coordinates.streams import Stream, generator
from crashsim.errors import ArgumentError
from crashsim.faults import GainNoise, NeuronCrash, WeightCrash
from crashsim.model.sites.site import Site


def place(*faults_and_sizes):
    placements, start = [], 0
    for i, (fault, size) in enumerate(faults_and_sizes):
        placements.append(
            Placement(Site(f"s{i}", "activation", (size,)), fault, start, start + size)
        )
        start += size
    return placements


def test_streams_of_different_blocks_and_seeds_share_no_numbers():
    blocks = [(seed, Stream.MONTE_CARLO, b) for seed, b in ((0, 0), (0, 1), (0, 1000), (1, 0))]
    others = [(seed, stream, 0) for seed in (0, 2**64 - 1) for stream in Stream if stream]
    draws = [
        set(generator(*which).integers(0, 2**63, 10_000).tolist()) for which in blocks + others
    ]
    for first, second in itertools.combinations(draws, 2):
        assert not first & second


def test_a_block_is_the_same_whenever_it_is_drawn():
    placements = place((NeuronCrash(0.2), 7), (GainNoise(0.3), 2))
    first, again = sample_block(placements, 5, 3), sample_block(placements, 5, 3)
    np.testing.assert_array_equal(first.dense(), again.dense())
    assert not np.array_equal(first.dense(), sample_block(placements, 5, 4).dense())
    assert not np.array_equal(first.dense(), sample_block(placements, 6, 3).dense())


@pytest.mark.parametrize("p", [1e-3, 0.05, 0.3, 0.5, 0.9, 0.999])
def test_bernoulli_draws_follow_their_law(p):
    n, blocks = 6, 40
    placements = place((NeuronCrash(p), n))
    e = np.concatenate([sample_block(placements, 11, b).dense() for b in range(blocks)])
    assert e.shape == (blocks * MAX_BLOCK, n)
    assert set(np.unique(e)) <= {0.0, 1.0}
    s = len(e)
    # Positions: each coordinate's frequency, within 5 standard errors.
    error = np.sqrt(p * (1 - p) / s)
    np.testing.assert_array_less(np.abs(e.mean(0) - p), 5 * error)
    # Pairs of coordinates, and of the same coordinate in consecutive samples.
    both = (e.T @ e / s)[np.triu_indices(n, 1)]
    pair_error = np.sqrt(p**2 * (1 - p**2) / s)
    np.testing.assert_array_less(np.abs(both - p**2), 5 * pair_error)
    follow = (e[1:] * e[:-1]).mean(0)
    np.testing.assert_array_less(np.abs(follow - p**2), 7 * pair_error)
    # Counts: chi-square against the binomial law.
    counts = np.bincount(e.sum(1).astype(int), minlength=n + 1)
    expected = s * stats.binom.pmf(np.arange(n + 1), n, p)
    likely = expected > 5
    seen = np.append(counts[likely], counts[~likely].sum())
    wanted = np.append(expected[likely], expected[~likely].sum())
    statistic = ((seen - wanted) ** 2 / np.maximum(wanted, 1e-9))[wanted > 1].sum()
    assert stats.chi2.sf(statistic, max(1, (wanted > 1).sum() - 1)) > 1e-5


def test_the_first_and_last_coordinate_and_sample_can_be_hit():
    e = sample_block(place((NeuronCrash(0.5), 3)), 0, 0).dense()
    for corner in (e[0:64, 0], e[0:64, -1], e[-64:, 0], e[-64:, -1]):
        assert 0 < corner.mean() < 1


def test_certain_and_impossible_faults():
    e = sample_block(place((NeuronCrash(0.0), 3), (NeuronCrash(1.0), 2)), 0, 0).dense()
    np.testing.assert_array_equal(e, np.tile([0, 0, 0, 1, 1], (len(e), 1)))


@pytest.mark.parametrize("p", [1e-300, 1e-20, 1e-16])
def test_tiny_probabilities_draw_nothing_and_do_not_overflow(p):
    points = sample_block(place((WeightCrash(p), 10**7)), 0, 0)
    assert points.count == MAX_BLOCK
    assert len(points.rows) == 0


def test_rare_faults_come_at_their_rate():
    size, p, blocks = 10**6, 1e-7, 60
    placements = place((WeightCrash(p), size))
    hits = sum(len(sample_block(placements, 3, b).rows) for b in range(blocks))
    expected = size * p * blocks * MAX_BLOCK
    assert abs(hits - expected) < 5 * np.sqrt(expected)


def test_normal_draws_have_their_deviation():
    placements = place((NeuronCrash(0.1), 2), (GainNoise(0.25), 3))
    e = np.concatenate([sample_block(placements, 0, b).dense() for b in range(10)])[:, 2:]
    assert stats.kstest(e.ravel() / 0.25, "norm").pvalue > 1e-5
    assert np.abs(np.corrcoef(e.T)[np.triu_indices(3, 1)]).max() < 5 / np.sqrt(len(e))


def test_blocks_are_smaller_where_much_changes():
    many = place((GainNoise(0.1), 10**6))
    assert samples_per_block(many) == MAX_CHANGES // 10**6
    assert samples_per_block(place((GainNoise(0.1), 10**8))) == 1
    assert samples_per_block(place((NeuronCrash(0.01), 100))) == MAX_BLOCK


def test_parts_join_to_the_whole():
    points = sample_block(place((NeuronCrash(0.3), 5)), 0, 0)
    whole = points.dense()
    cuts = [0, 1, 2, 100, 101, 1000, MAX_BLOCK]
    parts = [points.part(a, b).dense() for a, b in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    nested = points.part(10, 500).part(5, 20)
    np.testing.assert_array_equal(nested.dense(), whole[15:30])
    assert points.part(7, 7).dense().shape == (0, 5)


def test_points_written_out_and_listed_are_the_same_points():
    placements = place((NeuronCrash(0.3), 5), (NeuronCrash(0.05), 30), (GainNoise(0.2), 3))
    points = sample_block(placements, 0, 0)
    assert {type(change) for change in points.changes} == {Listed, Written}
    listed = Points(points.count, points.base, points.rows, points.columns, points.values)
    np.testing.assert_array_equal(listed.dense(), points.dense())
    assert (np.diff(points.rows) >= 0).all()
    some = np.array([3, 700, 5, 5])
    for change in points.changes:
        chosen = Points.of(4, points.base, [change.among(some)]).dense()
        span = slice(change.start, change.stop)
        np.testing.assert_array_equal(chosen[:, span], points.dense()[some, span])


def test_fewer_samples_are_the_first_of_more():
    placements = place((NeuronCrash(0.3), 5), (NeuronCrash(0.05), 30), (GainNoise(0.2), 3))
    many = sample_points(placements, 4, 2 * MAX_BLOCK + 100)
    assert many.dense().shape == (2 * MAX_BLOCK + 100, 38)
    for count in (1, 100, MAX_BLOCK, MAX_BLOCK + 1):
        few = sample_points(placements, 4, count)
        np.testing.assert_array_equal(few.dense(), many.dense()[:count])
    halves = [many.part(0, 1500), many.part(1500, many.count)]
    np.testing.assert_array_equal(join(halves).dense(), many.dense())


@pytest.mark.parametrize("p", [0.1, 0.1 + 1e-9, 26 / 256, 0.25, 0.5, 0.5 + 1e-9, 255.5 / 256])
def test_rare_and_common_draws_follow_one_law(p):
    """Gaps and bytes, at the borders of the ways in which they are drawn."""
    rng, n = np.random.default_rng(0), 2_000_000
    _, columns = _rare(rng, p, 1, n)
    bytes_ = np.flatnonzero(_common(rng, p, n))
    for hits in (columns, bytes_):
        assert abs(len(hits) - n * p) < 5 * np.sqrt(n * p * (1 - p))
        gaps = np.diff(hits) - 1  # geometric: k failures with probability (1 - p)^k p
        seen = np.bincount(np.minimum(gaps, 3), minlength=4)
        wanted = len(gaps) * np.array([p, (1 - p) * p, (1 - p) ** 2 * p, (1 - p) ** 3])
        likely = wanted > 20
        statistic = ((seen - wanted)[likely] ** 2 / wanted[likely]).sum()
        assert stats.chi2.sf(statistic, likely.sum() - 1) > 1e-5


def test_a_block_of_many_rows_and_few_columns():
    """Hits fall into their rows, wherever the numbers drawn at once end."""
    placements = place((NeuronCrash(0.09), 1000))
    points = sample_block(placements, 2, 0)
    e = points.dense()
    assert e.sum() == len(points.rows) > 80_000
    error = np.sqrt(0.09 * 0.91 / len(e))
    assert np.abs(e.mean(0) - 0.09).max() < 5.5 * error
    assert np.abs(e.mean(1) - 0.09).max() < 5.5 * np.sqrt(0.09 * 0.91 / 1000)


def test_points_one_at_a_time():
    base = np.array([0.1, 0.2, 0.3])
    points = Points.one_at_a_time(base, np.array([0, 2]), np.array([1.0, 5.0]))
    np.testing.assert_array_equal(points.dense(), [[1, 0.2, 0.3], [0.1, 0.2, 5]])
    np.testing.assert_array_equal(Points.at(base).dense(), base[None])


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "0", None, True, np.float64(3)])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ArgumentError, match="seed="):
        check_seed(seed)


@pytest.mark.parametrize("seed", [0, 2**64 - 1, np.int64(7)])
def test_good_seeds(seed):
    assert check_seed(seed) == int(seed)
    assert sample_block(place((NeuronCrash(0.5), 1)), check_seed(seed), 0).count
