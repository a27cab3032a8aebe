"""Faults of stored words: how numbers are stored, and what happens to their bits."""

from crashsim.faults.words.formats import FloatFormat, IntegerFormat, Stored, format_named
from crashsim.faults.words.guarded import GuardedWords
from crashsim.faults.words.guards import (
    CodeGuard,
    CopyGuard,
    Detection,
    Guard,
    Members,
    SpareGuard,
    VoteGuard,
)
from crashsim.faults.words.upsets import BitFlip, BitStuck
from crashsim.faults.words.word_fault import WordFault

__all__ = [
    "BitFlip",
    "BitStuck",
    "CodeGuard",
    "CopyGuard",
    "Detection",
    "FloatFormat",
    "Guard",
    "GuardedWords",
    "IntegerFormat",
    "Members",
    "SpareGuard",
    "Stored",
    "VoteGuard",
    "WordFault",
    "format_named",
]
