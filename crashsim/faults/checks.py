"""What can be said of faults before they strike, whoever wrote their classes."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from crashsim_theory import NORMAL, Law, TheoryError

from crashsim.arguments import as_float, is_whole, shown
from crashsim.errors import ArgumentError
from crashsim.faults.bernoulli import BernoulliFault
from crashsim.faults.fault import Fault
from crashsim.faults.rates import Rates

# The largest number of a fault: its fourth power is a finite number in double precision.
STRONGEST = 1e75
_TRIED = 2**16  # draws that are compared with a law's moments


def faults_by_site(faults: Any, sites: str = "") -> dict[str, Fault]:
    """Faults by the name or glob of the sites that they strike.

    Args:
        faults: a fault, which strikes ``sites``, or a mapping from site names to faults.
        sites: name or glob.

    Raises:
        ArgumentError: neither of the two, or a fault that ``check_fault`` refuses.
    """
    given = {sites: faults} if isinstance(faults, Fault) else faults
    if not isinstance(given, Mapping) or not given:
        raise ArgumentError(
            f"faults={faults!r}: give a fault such as NeuronCrash(p=0.01), or a mapping from site "
            "names to faults"
        )
    for pattern, fault in given.items():
        if not isinstance(fault, Fault) or not isinstance(pattern, str):
            raise ArgumentError(f"faults: {pattern!r}: {fault!r} is not a site name and a fault")
        check_fault(fault)
    return dict(given)


def faults_of(faults: Any) -> list[Fault]:
    """The faults themselves, whatever they strike; what is not a fault is left out."""
    found = list(faults.values()) if isinstance(faults, Mapping) else [faults]
    return [fault for fault in found if isinstance(fault, Fault)]


def check_fault(fault: Fault) -> None:
    """Checks that a fault's class and numbers make a law.

    Raises:
        ArgumentError: its class declares no law or name, its parameter is not a number, or its law
            has no such parameter.
    """
    cls = type(fault).__name__
    _check_time(fault)
    for name, kind, remedy in (
        ("law", Law, "law: ClassVar = crashsim_theory.BERNOULLI"),
        ("parameter", str, 'parameter: ClassVar[str] = "p"'),
        ("name", str, 'name: ClassVar[str] = "my-fault"'),
    ):
        if not isinstance(getattr(type(fault), name, None), kind):
            raise ArgumentError(f"{cls}: has no {name}; declare one, such as {remedy}")
    if len(fault.law.parameter_names) > 1:
        raise ArgumentError(
            f"{cls}: law {fault.law.name!r} has parameters {list(fault.law.parameter_names)}; "
            "a fault has one rate: fix the others as numbers in the law"
        )
    try:
        given = getattr(fault, fault.parameter)
    except AttributeError:
        raise ArgumentError(f"{cls}: has no field {fault.parameter!r}, its parameter") from None
    if callable(given) or counted(fault):
        return  # its rate is known once it is placed
    rate = given if isinstance(given, Rates) else as_float(given)
    if isinstance(rate, float) and not math.isfinite(rate):
        given = shown(getattr(fault, fault.parameter))
        raise ArgumentError(f"{cls}: {fault.parameter}={given} is not a finite number; give one")
    try:
        with np.errstate(all="ignore"):  # what is too large is told once the model is known
            fault.law.moments(**fault.law_parameters)
            largest = np.max(np.abs(rate.array if isinstance(rate, Rates) else rate))
            if largest <= STRONGEST:
                fault.law.nodes(**fault.law_parameters)
    except TheoryError as error:
        raise ArgumentError(f"{cls}: {fault.parameter}={rate!r}: {error}") from error


def _check_time(fault: Fault) -> None:
    """Raises ArgumentError for a duration or a window that makes no sense."""
    cls = type(fault).__name__
    if fault.duration not in ("permanent", "transient"):
        raise ArgumentError(
            f"{cls}: duration={shown(fault.duration)} is not known; give 'permanent' or 'transient'"
        )
    if fault.window is None:
        return
    whole = isinstance(fault.window, tuple) and all(map(is_whole, fault.window))
    if not whole or len(fault.window) != 2 or not 0 <= fault.window[0] < fault.window[1]:
        raise ArgumentError(
            f"{cls}: window={shown(fault.window)}: give two whole numbers (start, stop) of steps, "
            "0 <= start < stop"
        )
    if fault.duration == "transient":
        raise ArgumentError(
            f"{cls}: window={fault.window} says when a permanent fault acts; leave it or "
            "duration='transient' out"
        )
    if fault.strikes == "weights":
        raise ArgumentError(
            f"{cls}: window={fault.window}: weights fail for the whole pass; leave it out"
        )


def counted(fault: Fault) -> bool:
    """Whether the fault strikes an exact number of coordinates, which then are not independent."""
    return isinstance(fault, BernoulliFault) and fault.count is not None


def check_independent(faults: Iterable[Fault], what: str) -> None:
    """Raises ArgumentError for a fault that strikes an exact number of coordinates.

    Args:
        faults: to check.
        what: what draws each coordinate on its own.
    """
    for fault in faults:
        if counted(fault):
            raise ArgumentError(
                f"faults: {fault}: {what} takes each fault on its own, and of an exact number of "
                "them, one excludes another; give the probability p of each instead of count"
            )


def check_drawable(faults: Iterable[Fault], what: str, instead: str = "") -> None:
    """Raises ArgumentError for a fault of which no samples can be drawn, or not as its law says.

    Args:
        faults: to check.
        what: what would draw them.
        instead: what else serves such a fault.
    """
    for fault in dict.fromkeys(faults):
        if not fault.can_be_drawn:
            raise ArgumentError(
                f"faults: {type(fault).__name__}: its law {fault.law.name!r} says its moments, but "
                f"not how it is drawn, as {what} needs; give the law a draw"
                f"{instead and f', or {instead}'}"
            )
        _check_draws(fault)


@functools.lru_cache(maxsize=256)
def _check_draws(fault: Fault) -> None:
    """Raises ArgumentError where a law's draws have another mean or variance than it says.

    Control variates know the moments of what is drawn: with wrong ones every number would be wrong.
    Ten standard errors are allowed, and twenty times the largest draw: for a few that are rare.
    """
    if fault.law.sampler is None or fault.law == NORMAL or np.size(fault.rate) > _TRIED // 64:
        return
    shape = (_TRIED // np.size(fault.rate), np.size(fault.rate)) if fault.is_varied else (_TRIED,)
    e = fault.draw(np.random.default_rng(0), shape)
    with np.errstate(all="ignore"):
        known = fault.law.moments(**fault.law_parameters)
        off = e - known.mean
        worst, n = np.abs(off).max(0), len(e)
        mean, variance = off.mean(0), (off**2).mean(0)
        of_mean = 10 * np.sqrt(known.k2 / n) + 20 * worst / n
        of_variance = 10 * np.sqrt(known.k4 / n) + 20 * worst**2 / n
        wrong = (np.abs(mean) > of_mean) | (np.abs(variance - known.k2) > of_variance)
    if np.any(wrong):
        first = int(np.flatnonzero(np.atleast_1d(wrong))[0])  # of several rates
        said = [float(np.atleast_1d(v)[first]) for v in (known.mean, np.sqrt(known.k2))]
        drawn = [float(np.atleast_1d(v)[first]) for v in (e.mean(0), e.std(0))]
        raise ArgumentError(
            f"faults: {type(fault).__name__}: its law {fault.law.name!r} has mean "
            f"{said[0]:.4g} and standard deviation {said[1]:.4g}, but {n} of its draws have "
            f"{drawn[0]:.4g} and {drawn[1]:.4g}; correct its draw or its moments"
        )


def lacking_for_tails(faults: Iterable[Fault], tilted: bool = False) -> str | None:
    """What a law lacks for Chernoff's bound and the saddlepoint, in words; None for nothing.

    Args:
        faults: whose laws count.
        tilted: also what it lacks to be drawn under a tilt, as importance sampling does.
    """
    for fault in faults:
        if not fault.law.has_cgf:
            return (
                f"the law {fault.law.name!r} of {fault.name} has no cumulant generating function; "
                "give it a cgf"
            )
        if tilted and not fault.law.can_be_tilted:
            return (
                f"the law {fault.law.name!r} of {fault.name} does not say how it is drawn under a "
                "tilt; give it draw_tilted, or a draw and a bounded support"
            )
    return None
