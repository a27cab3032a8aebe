"""The package as a whole."""

from __future__ import annotations

import doctest

import crashsim_hardware


def test_the_example_in_the_docstring():
    result = doctest.testmod(crashsim_hardware)
    assert result.attempted > 5
    assert result.failed == 0


def test_everything_public_is_there():
    for name in crashsim_hardware.__all__:
        assert getattr(crashsim_hardware, name).__doc__
    assert crashsim_hardware.__all__ == sorted(crashsim_hardware.__all__, key=_order)


def _order(name):
    return (not name.isupper(), not name[0].isupper(), name)
