"""A voter's coefficient: what the search finds lies between what theory proves from both sides."""

from itertools import combinations

import numpy as np
import pytest
import torch

from crashsim.errors import ArgumentError
from crashsim.protection.robustness import published_robustness, voter_robustness
from crashsim.protection.voters import VOTERS, make_voter

NO_BOUND = {"mean", "majority", "multi-krum"}


@pytest.mark.parametrize("name", [v for v in VOTERS if v not in NO_BOUND])
@pytest.mark.parametrize(("copies", "f"), [(5, 1), (7, 2)])
def test_the_search_stays_below_the_published_bound(name, copies, f):
    found = voter_robustness(name, copies, f)
    assert found.bound is not None
    assert found.least == f / (copies - 2 * f)
    # Every voter has votes that are as bad as the best voter's worst: the search finds them.
    assert 0.99 * found.least <= found.found <= found.bound


def test_the_trimmed_mean_is_the_best_there_can_be_and_the_mean_the_worst():
    assert voter_robustness("trimmed-mean", 7, 2).found == pytest.approx(2 / 3, rel=1e-3)
    assert voter_robustness("mean", 7, 2).found > 1e6


def test_the_median_of_three_on_a_line():
    """Honest copies at 0 and 1: the median is off by 1/2 at most, as far as each of them is."""
    assert voter_robustness("median", 3, 1, outputs=1).found == pytest.approx(1.0, rel=1e-3)


def test_a_function_of_ones_own():
    def first(outputs):
        return outputs[0]

    found = voter_robustness(first, 5, 1)
    assert (found.voter, found.bound) == ("first", None)
    # The first copy at 1, the other honest ones at 0: (3/4)^2 over (9 + 3) / 16 / 4.
    assert found.found == pytest.approx(3.0, rel=0.02)


def test_minimum_diameter_looks_through_all_sets(randn):
    outputs = randn(7, 4, 3)
    vote = make_voter("minimum-diameter", 7, 2)(outputs)
    for b in range(4):
        sets = list(combinations(range(7), 5))
        widest = [
            max(float((outputs[i, b] - outputs[j, b]).norm()) for i, j in combinations(rows, 2))
            for rows in sets
        ]
        best = list(sets[int(np.argmin(widest))])
        assert torch.allclose(vote[b], outputs[best, b].mean(0))


def test_minimum_diameter_leaves_out_copies_that_are_not_finite(randn):
    outputs = randn(5, 2, 3)
    outputs[3] = torch.inf
    outputs[4] = torch.nan
    vote = make_voter("minimum-diameter", 5, 2)(outputs)
    assert torch.allclose(vote, outputs[:3].mean(0))


@pytest.mark.parametrize(("copies", "f"), [(5, 0), (4, 2), (2, 1)])
def test_wrong_numbers_of_bad_copies(copies, f):
    with pytest.raises(ArgumentError):
        voter_robustness("median", copies, f)


def test_too_many_sets():
    with pytest.raises(ArgumentError, match="multi-krum"):
        make_voter("minimum-diameter", 41, 20)


def test_voters_without_a_bound():
    assert published_robustness("multi-krum", 7, 2) is None
