"""Factored gains in chunks say what dense surrogates say."""

from typing import Any

import numpy as np
import pytest
from crashsim_theory import (
    Bernoulli,
    Coordinates,
    GainChunk,
    LinearSurrogate,
    TheoryError,
    chunk_of,
    mean_of_chunks,
    variance_of_chunks,
)


def _both() -> tuple[list[GainChunk], LinearSurrogate]:
    rng = np.random.default_rng(0)
    gains, moved = rng.normal(size=(3, 200)), rng.normal(size=(200, 8))
    plain = rng.normal(size=(3, 50)).astype(np.float32)
    p, bits = 0.01 * np.arange(1, 51), 0.02 * np.arange(8)
    chunks = [GainChunk(gains, moved, bits), GainChunk(plain, np.ones(50), p)]
    dense = np.concatenate([(gains[:, :, None] * moved).reshape(3, -1), plain], axis=1)
    law = Coordinates([Bernoulli(np.tile(bits, 200)), Bernoulli(p)])
    return chunks, LinearSurrogate(np.zeros(3), dense, law)


def test_moments_are_those_of_the_dense_surrogate() -> None:
    chunks, surrogate = _both()
    assert np.all(surrogate.variance > 0)
    in_blocks = [block for chunk in chunks for block in chunk.blocks(7)]
    assert len(in_blocks) == 29 + 8
    for given in (chunks, in_blocks, [chunk_of(surrogate)]):
        np.testing.assert_allclose(mean_of_chunks(given), surrogate.mean, rtol=1e-12)
        np.testing.assert_allclose(variance_of_chunks(iter(given)), surrogate.variance, rtol=1e-12)


def test_a_row_has_the_moments_of_its_surrogate() -> None:
    chunks, surrogate = _both()
    row = [chunk.of_row(1) for chunk in chunks]
    np.testing.assert_allclose(mean_of_chunks(row), surrogate.mean[1:2], rtol=1e-12)


@pytest.mark.parametrize(
    ("gains", "moved", "p", "names"),
    [
        (np.ones(3), np.ones(3), 0.1, "gains.shape"),
        (np.ones((2, 3)), np.ones(2), 0.1, "displacements.shape"),
        (np.ones((2, 3)), np.ones((3, 4)), [0.1, 0.2, 0.3], "p.shape"),
        (np.ones((2, 3)), np.ones(3), 1.5, "^p = "),
        (np.full((2, 3), np.inf, np.float32), np.ones(3), 0.1, "gains"),
    ],
)
def test_what_does_not_fit_is_refused(gains: Any, moved: Any, p: Any, names: str) -> None:
    with pytest.raises(TheoryError, match=names):
        GainChunk(gains, moved, p)


def test_chunks_of_different_surrogates_are_refused() -> None:
    one, two = (GainChunk(np.ones((rows, 3)), np.ones(3), 0.1) for rows in (1, 2))
    with pytest.raises(TheoryError, match="2 surrogates"):
        mean_of_chunks([two, one])
    with pytest.raises(TheoryError, match="at least one"):
        variance_of_chunks([])
