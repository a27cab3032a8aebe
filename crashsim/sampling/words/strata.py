"""P(class changes) under rare flips of stored words: single faults in strata of layer and bit.

A flip of an exponent's bit makes a number immense, so that nothing expands in it; but there are few
such bits, and all words of a layer have the same. In each stratum (a layer and a bit) single faults
are struck at random, first a few in each, then most where they decide the result (Neyman). Where a
flip moves a weight little (a mantissa's bit, at most half of its value), the gradient says which
flips change the class, and none is struck. With v_s the share of a stratum's single faults that do
harm, N_s their number and q = -log(1 - p), a chip is harmed with probability
1 - exp(-sum q N_s v_s) if each fault does what it does alone: right to first order in p, and beyond
it as far as harmless faults stay so together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from crashsim.arrays import Floats, Integers
from crashsim.coordinates.placement import Placement
from crashsim.coordinates.points import Points, no_fault
from crashsim.coordinates.streams import Stream, generator
from crashsim.errors import NotApplicableError
from crashsim.faults import AdditiveNoise, WordFault
from crashsim.injection.derivatives import Derivatives
from crashsim.injection.faulty_model import FaultyModel
from crashsim.metrics import CLASS_CHANGE, NOT_FINITE, predicted_class
from crashsim.results.estimate import Estimate, Quantity
from crashsim.results.estimates import deterministic
from crashsim.space import FaultSpace

SAMPLES = 4096  # single faults struck, about
_PILOT = 8  # of each stratum
_AT_ONCE = 2**22  # numbers of outputs, or of predicted changes, held together
_RIVALS = 3  # classes next to the predicted one, whose margins are looked at


@dataclass
class Stratum:
    """The coordinates of one bit in one layer.

    Attributes:
        placement: the faults of the layer.
        which: the coordinate of each word.
        rate: -log(1 - p).
        struck: how many were struck.
        hits: (2, B) how many of them changed the class, and made outputs not finite.
        known: (2, B) the shares, where they are predicted by the gradient or all were struck.
    """

    placement: Placement
    which: int
    rate: float
    struck: int
    hits: Floats
    known: Floats | None = None

    @property
    def size(self) -> int:
        return self.placement.size // self._each

    @property
    def _each(self) -> int:
        assert isinstance(self.placement.fault, WordFault)
        return len(self.placement.fault.masks)

    def coordinates(self, words: Integers) -> Integers:
        """Those of some of its words."""
        found: Integers = self.placement.start + words * self._each + self.which
        return found

    @property
    def share(self) -> Floats:
        """(2, B) of single faults that do harm."""
        return self.known if self.known is not None else self.hits / max(self.struck, 1)

    @property
    def harm(self) -> float:
        """How much of it there is, about, in standard deviations of a strike: what deserves
        samples."""
        share = float(self.share[0].mean())
        if self.known is None:
            share = (self.struck * share + 0.5) / (self.struck + 1)
        return self.rate * self.size * float(np.sqrt(share))

    def spread(self, which: int = 0) -> float:
        """Standard deviation of what one strike adds to the expected harm, about.

        Args:
            which: kind of harm, 0: the class changes; 1: outputs are not finite.
        """
        if self.known is not None:
            return 0.0
        share = (self.hits[which].mean() + 0.5) / (self.struck + 1)
        return self.rate * self.size * float(np.sqrt(share * (1 - share)))


def word_strata(space: FaultSpace, seed: int, samples: int = SAMPLES) -> list[Estimate]:
    """``word-strata``: P(class changes) and P(not finite), each averaged over inputs too.

    Args:
        space: of faults of words alone, independent and with one rate at each site.
        seed: of the strikes.
        samples: single faults to strike, about; two in each stratum at least.

    Raises:
        NotApplicableError: other faults, or rates of their own; or all bits add up, so that the
            other estimates serve.
    """
    strata, predicted = survey(space, seed, samples)
    struck = [s for s in strata if s.struck]
    expected = np.asarray(sum(s.rate * s.size * s.share for s in strata))
    value = -np.expm1(-expected)
    how = (
        f"of single faults, as if each did what it does alone: {sum(s.struck for s in struck):,} "
        f"struck in {len(struck)} strata by layer and bit, {predicted} strata of small steps "
        "predicted by the gradient; relative standard error"
    )
    quantities: list[tuple[int, Quantity]] = [(0, "class-change"), (1, "not-finite")]
    return [
        estimate
        for which, quantity in quantities
        if quantity != "class-change" or space.K > 1
        for estimate in deterministic(
            "word-strata",
            quantity,
            "estimate",
            value[which],
            note=f"{how} {_error(struck, which, float(expected[which].mean()))}",
        )
    ]


def _error(struck: Sequence[Stratum], which: int, total: float) -> str:
    """Of the expected harm of a kind, from strata of which some faults were struck."""
    error = float(np.sqrt(sum(s.spread(which) ** 2 / s.struck for s in struck)))
    return f"{error / total:.0%}" if error < total else "unknown, as hardly any was seen"


def survey(space: FaultSpace, seed: int, samples: int) -> tuple[list[Stratum], int]:
    """The strata with what single faults do in them, and of how many the gradient says it.

    Arguments and errors are those of ``word_strata``.
    """
    _check(space)
    strata = [
        Stratum(p, which, -float(np.log1p(-p.fault.change_probability)), 0, np.zeros((2, space.B)))
        for p in space.placements
        if isinstance(p.fault, WordFault)
        for which in range(len(p.fault.masks))
    ]
    predicted = _predict(space, strata)
    rng = generator(seed, Stream.WORD_STRATA)
    unknown = [s for s in strata if s.known is None]
    first = min(_PILOT, max(2, samples // max(len(unknown), 1)))
    _strike(space, rng, [(s, first) for s in unknown])
    left = samples - sum(s.struck for s in unknown)
    spreads = np.array([s.spread() for s in unknown])
    if left > 0 and spreads.sum() > 0:
        more = (left * spreads / spreads.sum()).astype(int)
        _strike(space, rng, list(zip(unknown, more.tolist(), strict=True)))
    return strata, predicted


def _check(space: FaultSpace) -> None:
    if not space.strikes_words:
        raise NotApplicableError("for bits of words that do not add up, such as an exponent's")
    faults = [p.fault for p in space.placements]
    if not all(isinstance(fault, WordFault) and not fault.is_varied for fault in faults):
        raise NotApplicableError("for faults of words alone, with one rate at each site")
    if any(fault.is_guarded for fault in faults):
        raise NotApplicableError(
            "for words without guards: under a code a single fault does nothing, and two or more "
            "of a block act together"
        )
    if any(fault.change_probability >= 1 for fault in faults):
        raise NotApplicableError("for faults that are rare")


def _strike(
    space: FaultSpace, rng: np.random.Generator, wanted: Sequence[tuple[Stratum, int]]
) -> None:
    """Strikes so many single faults of each stratum; all of them, where there are no more."""
    strata, words = [], []
    for s, count in wanted:
        if s.known is not None or count <= 0:
            continue
        strata.append(s)
        if s.struck + count < s.size:
            words.append(rng.integers(s.size, size=count))
        else:
            s.struck, s.hits = 0, np.zeros_like(s.hits)
            words.append(np.arange(s.size))
    if not strata:
        return
    columns = np.concatenate([s.coordinates(of) for s, of in zip(strata, words, strict=True)])
    owners = np.repeat(np.arange(len(strata)), [len(of) for of in words])
    hits = np.zeros((len(strata), 2, space.B))
    base = no_fault(space.N)
    step = max(1, _AT_ONCE // (space.B * space.K))
    for start in range(0, len(columns), step):
        part = slice(start, start + step)
        points = Points.one_at_a_time(base, columns[part], np.ones(len(columns[part])))
        outputs, clean = space.outcomes(points), space.clean()
        events = [event.happens(outputs, clean, None) for event in (CLASS_CHANGE, NOT_FINITE)]
        np.add.at(hits, owners[part], np.stack(events, axis=1))
    for s, of, found in zip(strata, words, hits, strict=True):
        s.hits += found
        s.struck += len(of)
        if s.struck == s.size and len(of) == s.size:
            s.known = s.hits / s.size


def _predict(space: FaultSpace, strata: Sequence[Stratum]) -> int:
    """Fills in what the gradient says of the bits with small steps; how many strata these are."""
    places = [p for p in space.placements if _has_small_steps(p)]
    if not places or space.K < 2:
        return 0
    noisy, start = [], 0
    for p in places:
        noisy.append(
            replace(p, fault=AdditiveNoise(1.0), start=start, stop=start + p.units, count=None)
        )
        start += p.units
    faulty = FaultyModel(space.faulty_model.model, space.examples, noisy)
    slopes = Derivatives(faulty, sum(site.size for site in space.available_sites) or 1)
    if not slopes.exist or start * _RIVALS > _AT_ONCE:
        return 0
    changed = {id(s): np.zeros(space.B) for s in strata if _is_small(s)}
    steps = [_steps(space, p) for p in places]
    for b in range(space.B):
        clean = space.clean()[b]
        top = int(predicted_class(clean))
        rivals = [k for k in np.argsort(-clean) if k != top][:_RIVALS]
        rows = np.zeros((len(rivals), space.K))
        rows[np.arange(len(rivals)), rivals] = 1.0
        rows[:, top] = -1.0
        ((_, gains),) = slopes.gradients(space.examples.part(b, b + 1), np.zeros(start), rows)
        lead = clean[top] - clean[rivals]
        for p, own, step in zip(places, noisy, steps, strict=True):
            of_place = gains[0, :, own.start : own.stop]
            for s in strata:
                if s.placement is p and id(s) in changed:
                    moved = of_place * step[:, s.which]
                    changed[id(s)][b] = (moved > lead[:, None]).any(0).mean()
    for s in strata:
        if id(s) in changed:
            s.known = np.stack([changed[id(s)], np.zeros(space.B)])
    return len(changed)


def _steps(space: FaultSpace, p: Placement) -> Floats:
    """(units, coordinates of a word) by how much each coordinate alone changes a weight."""
    assert isinstance(p.fault, WordFault)
    found: Floats = p.fault.displacement(space.tensors[p.site.module]).float().cpu().numpy()
    return found.reshape(p.units, -1)


def _has_small_steps(p: Placement) -> bool:
    """Whether some bits of weights move them by half of their value at most."""
    fault = p.fault
    alone = isinstance(fault, WordFault) and fault.upset == "bit"
    return alone and p.site.kind == "parameter" and p.acts_once


def _is_small(s: Stratum) -> bool:
    fault = s.placement.fault
    assert isinstance(fault, WordFault)
    mantissa = fault.word.fields.get("mantissa", ())
    linear = fault.word.linear_bits & set(mantissa)
    return _has_small_steps(s.placement) and fault.masks[s.which] in {1 << bit for bit in linear}
