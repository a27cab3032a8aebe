"""Importance sampling among millions of coordinates: tilted faults drawn and weighed one by one.

Under a tilt few coordinates strike with a probability that is noticeably another one; these are
listed with it, and all others keep their own law. So a sample costs its strikes and a mixture's
weight the strikes that are listed, whatever the number of coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, logsumexp

from crashsim.analytic.surrogates.factored_surrogate import FactoredSurrogate
from crashsim.arrays import Floats
from crashsim.campaign.tasks import Task
from crashsim.coordinates.drawing import Classes, classes_of, draw_points, unequal
from crashsim.coordinates.points import Points, no_fault
from crashsim.coordinates.streams import Stream, generator
from crashsim.sampling.tilted.weights import WeightSums
from crashsim.space import FaultSpace

BATCH = 512  # samples in a block
BLOCKS = 2**32  # of an event, more than are ever drawn
_NOTICED = 0.05  # tilt of a coordinate, below which it keeps its own law
_MOST = 2**17  # coordinates that are listed
_LIKELY = 0.5  # that a tilted coordinate strikes, at most


@dataclass(frozen=True)
class SparseTilt:
    """A law under which some coordinates strike more or less often than by their own.

    Attributes:
        columns: (n,) which, in order.
        tilts: (n,) the logarithms of the odds' ratios.
        chances: (n,) that each strikes.
        normaliser: log E exp(sum of the tilts of struck coordinates) under their own law.
        classes: of the chances, for drawing.
    """

    columns: NDArray[np.int64]
    tilts: Floats
    chances: Floats
    normaliser: float
    classes: Classes

    @classmethod
    def of(cls, columns: NDArray[np.int64], tilts: Floats, p: Floats) -> SparseTilt:
        """Of coordinates that strike with probabilities p by their own law."""
        with np.errstate(divide="ignore"):
            own = logit(p)
        tilts = np.minimum(tilts, np.maximum(logit(_LIKELY) - own, 0.0))
        terms = np.log1p(p * np.expm1(tilts))
        chances = expit(own + tilts)
        return cls(columns, tilts, chances, float(terms.sum()), classes_of(chances))

    def log_ratios(self, points: Points) -> Floats:
        """(S,) log of this law's density over that of the coordinates' own."""
        found = np.full(points.count, -self.normaliser)
        if len(self.columns):
            at = np.minimum(np.searchsorted(self.columns, points.columns), len(self.columns) - 1)
            listed = self.columns[at] == points.columns
            found += np.bincount(points.rows[listed], self.tilts[at[listed]], points.count)
        return found

    def draw(self, rng: np.random.Generator, space: FaultSpace, count: int) -> Points:
        """Independent samples under this law."""
        plain = draw_points(rng, space.placements, count)
        if not len(self.columns):
            return plain
        at = np.minimum(np.searchsorted(self.columns, plain.columns), len(self.columns) - 1)
        kept = self.columns[at] != plain.columns
        edges, hits = unequal(rng, self.chances, count, self.classes)
        rows = np.concatenate([plain.rows[kept], np.repeat(np.arange(count), np.diff(edges))])
        columns = np.concatenate([plain.columns[kept], self.columns[hits]])
        order = np.lexsort((columns, rows))
        values = np.concatenate([plain.values[kept], np.ones(len(hits))])[order]
        return Points(count, no_fault(space.N), rows[order], columns[order], values)


def tilted(one: FactoredSurrogate, t: float) -> SparseTilt:
    """The law tilted by t times the gains of a surrogate () of coordinates that strike or do not.

    Normal coordinates keep their own law. The tilts that are noticed, the largest of them where
    those are too many.
    """
    columns, tilts, chances = [np.empty(0, np.int64)], [np.empty(0)], [np.empty(0)]
    ((_, chunks),) = one.chunks()
    for first, chunk in zip(one.first_columns, chunks, strict=True):
        gains = chunk.gains[0].astype(np.float64)[:, None]
        y = t * gains * chunk.displacements.reshape(len(gains), -1)
        own = np.asarray(chunk.p, dtype=np.float64)
        p = np.broadcast_to(own if own.ndim == 0 else own.reshape(len(gains), -1), y.shape)
        listed = np.flatnonzero(np.abs(y) > _NOTICED)
        columns.append(first + listed)
        tilts.append(y.ravel()[listed])
        chances.append(p.ravel()[listed])
    every, y, p = np.concatenate(columns), np.concatenate(tilts), np.concatenate(chances)
    random = (p > 0) & (p < 1)
    every, y, p = every[random], y[random], p[random]
    if len(y) > _MOST:
        largest = np.sort(np.argpartition(-np.abs(y), _MOST)[:_MOST])
        every, y, p = every[largest], y[largest], p[largest]
    return SparseTilt.of(every, y, p)


@dataclass(frozen=True)
class SparselyWeighted(Task[WeightSums]):
    """Samples of a mixture of sparsely tilted laws, weighted, in blocks of 512.

    Attributes:
        space: of a single input.
        readouts, thresholds: of the events (E, K), (E,): a sample counts where one happens.
        laws, shares: the mixture's parts, and how often each is drawn from.
        seed, stream, index: where random numbers come from: of ``index`` and the block.
        samples: their number; the last block is cut.
    """

    space: FaultSpace
    readouts: Floats
    thresholds: Floats
    laws: Sequence[SparseTilt]
    shares: Floats
    seed: int
    stream: Stream
    index: int
    samples: int

    def run(self, block: int) -> WeightSums:
        rng = generator(self.seed, self.stream, self.index * BLOCKS + block)
        size = min(BATCH, self.samples - block * BATCH)
        drawn = rng.multinomial(size, self.shares)
        weights = [
            self._weights(law.draw(rng, self.space, count))
            for law, count in zip(self.laws, drawn.tolist(), strict=True)
            if count
        ]
        return WeightSums.of(np.concatenate(weights))

    def _weights(self, points: Points) -> Floats:
        """(S,) the weight of each sample, 0 for those that miss the event."""
        ratios = np.stack([law.log_ratios(points) for law in self.laws], axis=1)
        log_weight = -logsumexp(ratios + np.log(self.shares), axis=1)
        delta = (self.space.outputs(points) - self.space.clean())[:, 0]
        hit = (delta @ self.readouts.T >= self.thresholds).any(1)
        return np.where(hit, np.exp(log_weight), 0.0)
