"""Codes: their law against the enumeration of all errors with a decoder written here."""

import itertools

import numpy as np
import pytest
from crashsim_theory import TheoryError
from crashsim_theory.codes import parity, secded, tripled


def enumerated(code, p):
    """Right, detected and silent: every error of every weight, decoded by a plain search."""
    n, k = len(code.columns), code.data
    totals = {"right": 0.0, "detected": 0.0, "silent": 0.0}
    for error in range(1 << n):
        bits = [i for i in range(n) if error >> i & 1]
        syndrome = 0
        for i in bits:
            syndrome ^= code.columns[i]
        chance = p ** len(bits) * (1 - p) ** (n - len(bits))
        left = set(bits)
        if syndrome:
            suspect = [i for i in range(n) if code.columns[i] == syndrome]
            if not code.corrects or not suspect:
                totals["detected"] += chance
                continue
            left ^= {suspect[0]}
        totals["silent" if any(i < k for i in left) else "right"] += chance
    return totals


@pytest.mark.parametrize("code", [secded(4), secded(8), parity(8), secded(8).shortened(5)])
@pytest.mark.parametrize("p", [1e-3, 0.2])
def test_law_equals_the_enumeration_of_every_error(code, p):
    found, wanted = code.law(p), enumerated(code, p)
    assert wanted["silent"] > 0
    for end, value in wanted.items():
        assert getattr(found, end) == pytest.approx(value, rel=1e-12)


def test_every_double_error_of_72_64_is_detected_and_every_single_one_corrected():
    code = secded(64)
    assert (len(code.columns), code.checks) == (72, 8)
    assert len(set(code.columns)) == 72
    for i, j in itertools.combinations(range(72), 2):
        assert code.decisions[code.columns[i] ^ code.columns[j]] == -1
    assert [code.decisions[c] for c in code.columns] == list(range(72))


def test_triples_of_72_64_are_counted_as_a_search_counts_them():
    columns = np.array(secded(64).columns)
    pairs = columns[:, None] ^ columns[None]
    known = np.zeros(256, dtype=bool)
    known[columns] = True
    silent = sum(
        known[pairs[i, i + 1 :][:, None] ^ columns[None]][
            np.arange(71 - i)[:, None] + i + 1 < np.arange(72)[None]
        ].sum()
        for i in range(72)
    )
    assert secded(64).counts[3].silent == silent > 1000


def test_an_uncorrectable_word_at_1e5_is_as_rare_as_two_flips_of_72():
    law = secded(64).law(1e-5)
    assert law.detected + law.silent == pytest.approx(72 * 71 / 2 * 1e-10, rel=1e-3)
    assert secded(64).law(1e-9).silent == pytest.approx(
        secded(64).counts[3].silent * 1e-27, rel=1e-6
    )


def test_tripled_is_the_majority_of_three():
    p = 0.3
    wanted = sum(
        np.prod([p if hit else 1 - p for hit in hits])
        for hits in itertools.product([0, 1], repeat=3)
        if sum(hits) > 1
    )
    assert tripled(p) == pytest.approx(wanted)


@pytest.mark.parametrize("data", [0, 257, 2.5])
def test_wrong_sizes_are_refused(data):
    with pytest.raises(TheoryError, match="data"):
        secded(data)
    with pytest.raises(TheoryError, match="p = "):
        parity(8).law(1.5)
