"""Faults of stored words: how numbers are stored, and what happens to their bits."""

from crashsim.faults.words.formats import FloatFormat, IntegerFormat, Stored, format_named
from crashsim.faults.words.upsets import BitFlip, BitStuck
from crashsim.faults.words.word_fault import WordFault

__all__ = [
    "BitFlip",
    "BitStuck",
    "FloatFormat",
    "IntegerFormat",
    "Stored",
    "WordFault",
    "format_named",
]
