"""One table of who draws from which of a seed's random numbers, so that no two draw the same.

A seed is the key of Philox's generator, and the most significant word of its 256-bit counter says
which of 2^64 blocks of numbers is drawn from. (As the least significant word, consecutive blocks
would share all but four of their random numbers.) Each use owns the blocks from its entry here to
the next one.
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import cast

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike, NDArray

_BLOCKS = 2**64  # of a seed
REVISION = 1  # of the numbers that a seed gives: raise it whenever they change


@unique
class Stream(IntEnum):
    """The first block of each use."""

    MONTE_CARLO = 0  # plain samples, by block
    VIRTUAL = 2**59  # chips that a surrogate alone judges, by block
    COUNTED = 2**60  # which coordinates are struck, of an exact number of them, by block
    MARKS = 2**60 + 2**59  # at which rates of a curve a fault is kept, by block
    FEW_FAULTS = 2**61  # samples given two or more faults, by block
    PREDICTED = 2**61 + 2**59  # what rivals share in a predicted curve, by example
    VOTES = 2**61 + 2**60  # in which a voter is far from the honest copies' average
    PLANS = 2**61 + 2**60 + 2**59  # virtual chips that judge plans of protection, by block
    IMPORTANCE = 2**62  # tails and class changes, by input and block
    CURVE_CHECK = 2**62 + 2**59  # which examples check a predicted curve
    VULNERABILITY = 2**62 + 2**60  # which single faults meet which examples, by stratum
    CLASS_CHANGES = 2**62 + 2**60 + 2**59  # what rivals share, in a curve predicted at many rates
    CURVE = 2**62 + 2**61  # the rare-event curve of a report, by point and block
    CURVE_PILOT = 2**62 + 2**61 + 2**59  # chips that say where a curve bends, by block
    RIVALS = 2**62 + 2**61 + 2**60  # what class changes to several rivals share, by input
    EXAMPLES = 2**62 + 2**61 + 2**60 + 2**59  # which examples chips meet, by block
    CERTIFIED = 2**63  # samples inside a certificate, by input, question and block
    NEAREST = 2**63 + 2**59  # the same of the nearest rivals alone, by input
    OUTPUT_SIGNS = 2**63 + 2**60  # random sums of very many outputs
    PROBES = 2**63 + 2**61  # directions in which a Hessian is looked at
    SINGLE_FAULTS = 2**63 + 2**61 + 2**59  # which single faults are looked at, by use
    TRAINING = 2**63 + 2**61 + 2**60  # faults while training, of a law that torch does not draw
    WORD_STRATA = 2**63 + 2**61 + 2**60 + 2**59  # single faults of words, of a layer and a bit
    WORD_IMPORTANCE = 2**63 + 2**62  # faults of words where they do harm, by block
    # Faults of many neurons and weights, with which is checked:
    SHORT_CUTS = 2**63 + 2**62 + 2**59  # whether a short cut gives what the model gives;
    ORDER = 2**63 + 2**62 + 2**60  # whether the model keeps the order of its examples;
    READING = 2**63 + 2**62 + 2**61  # whether layers that were read compute what the model does;
    COLUMNS = 2**63 + 2**62 + 2**61 + 2**59  # whether derivatives by columns are those backwards;
    ROUNDING = 2**63 + 2**62 + 2**61 + 2**60  # how much rounding moves the outputs

    @property
    def size(self) -> int:
        """The number of its blocks."""
        return min((other for other in Stream if other > self), default=_BLOCKS) - self


class _Key(ISeedSequence):
    """A seed as the key itself. Given as ``key=``, numpy first asks the system for entropy that
    nobody uses, which takes longer than all else that makes a generator."""

    def __init__(self, seed: int) -> None:
        self._words = np.array([seed % 2**64, seed >> 64], dtype=np.uint64)

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint64) -> NDArray[np.uint64]:
        return self._words


def generator(seed: int, stream: Stream, block: int = 0) -> np.random.Generator:
    """The random numbers of one block of a stream. Different blocks never overlap.

    Raises:
        ValueError: the stream has no such block.
    """
    if not 0 <= block < stream.size:
        raise ValueError(f"block {block} of {stream.name}, which has {stream.size}")
    # As an array: of a list with a number from 2^63 on, numpy makes floating-point numbers first.
    counter = np.array([0, 0, 0, stream + block], dtype=np.uint64)
    key = cast(np.random.SeedSequence, _Key(seed))  # of which numpy asks no more
    return np.random.Generator(np.random.Philox(key, counter=counter))
