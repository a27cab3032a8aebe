"""Bits counted by value, against the same coordinates counted one by one."""

import numpy as np
import pytest
from crashsim_theory import GainChunk
from crashsim_theory.sums.profile import profiles_of_chunks
from crashsim_theory.sums.tails import central_moments, tails
from crashsim_theory.sums.word_steps import ListedWords, profile_of_words, word_steps


def flips(n, scale, rng, bits=8):
    """What flips of two's complement words of random values move them by, (n, bits)."""
    stored = rng.integers(0, 1 << bits, n)
    place = np.where(np.arange(bits) < bits - 1, 1 << np.arange(bits), -(1 << (bits - 1)))
    return scale * np.where((stored[:, None] >> np.arange(bits)) & 1, -place, place)


def cases():
    rng = np.random.default_rng(3)
    n = 4000
    stuck = flips(n, 0.01, rng)
    return {
        "int8": ([flips(n, 0.01, rng)], [1e-3]),
        "two layers": ([flips(n, 0.01, rng), flips(n, 0.3, rng)], [1e-3, 1e-3]),
        "a scale for each channel": ([flips(n, rng.random((n, 1)) + 0.1, rng)], [1e-3]),
        "two rates": ([flips(n, 0.01, rng), flips(n, 0.01, rng)], [1e-3, 1e-4]),
        "16 bits": ([flips(n, 1e-4, rng, 16)], [1e-3]),
        "stuck at 0": ([np.where(stuck < 0, stuck, 0.0)], [1e-3]),
        "neurons": ([np.ones((n, 1))], [1e-3]),
    }


@pytest.mark.parametrize("case", cases())
def test_the_law_is_that_of_bits_counted_one_by_one(case):
    displacements, rates = cases()[case]
    rng = np.random.default_rng(4)
    slopes = [rng.standard_t(3, len(d)).astype(np.float32) for d in displacements]
    steps = word_steps(displacements, [np.asarray(p) for p in rates])
    assert steps is not None
    found = profile_of_words(steps, slopes, -1.0)
    chunks = [
        GainChunk(s[None], d, p) for s, d, p in zip(slopes, displacements, rates, strict=True)
    ]
    (wanted,) = profiles_of_chunks(chunks, np.array([-1.0]))
    mean, variance, third = central_moments(wanted)
    assert central_moments(found)[0] == pytest.approx(mean, abs=1e-9 * np.sqrt(variance))
    assert central_moments(found)[1] == pytest.approx(variance, rel=1e-4)
    assert central_moments(found)[2] == pytest.approx(third, abs=1e-3 * variance**1.5)
    levels = mean + np.sqrt(variance) * np.array([0.5, 2.0, 4.0])
    assert tails(found, levels, "upper") == pytest.approx(tails(wanted, levels, "upper"), rel=0.02)
    assert np.all((found.low <= found.gains) & (found.gains <= found.high))


def test_what_is_no_power_of_two_is_left_alone():
    rng = np.random.default_rng(5)
    assert word_steps([rng.random((50, 4))], [np.asarray(1e-3)]) is None
    assert word_steps([np.ones((50, 1))], [rng.random((50, 1))]) is None


def test_slopes_that_vanish():
    (step,) = word_steps([np.ones((9, 1))], [np.asarray(0.1)])
    profile = profile_of_words([step], [np.zeros(9, np.float32)], 2.0)
    assert profile.mean() == 2.0
    assert not len(profile.gains)


def test_words_that_are_listed_once():
    """Every word's displacements once, and which each value is: the same law."""
    rng = np.random.default_rng(6)
    words, which = np.unique(flips(4000, 1.0, rng), axis=0, return_inverse=True)
    which, step = which.reshape(-1), rng.choice([0.5, 2.0], 4000)
    rates, slopes = [np.asarray(1e-3)], [rng.standard_t(3, 4000)]
    by_word = word_steps([ListedWords(which, step, words)], rates)
    by_value = word_steps([words[which] * step[:, None]], rates)
    assert by_word is not None
    assert by_value is not None
    found, wanted = (profile_of_words(s, slopes, 0.5) for s in (by_word, by_value))
    assert len(found.gains) > 50
    np.testing.assert_allclose(found.gains, wanted.gains, rtol=1e-12)
    np.testing.assert_allclose(found.counts, wanted.counts)
