"""Names of tensors that weights are computed from, told apart from the weights themselves."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase

from crashsim.errors import SiteError
from crashsim.model.sites.site import Site
from crashsim.model.twins.held import Held

_SHOWN = 5


def check_names(patterns: Collection[str], held: Held, available: Collection[Site]) -> None:
    """Raises SiteError for a name or glob of nothing but what weights are computed from."""
    names = {name for site in available for name in (site.name, *site.aliases)}
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        found = {w: s for s, w in held.sources.items() if s == pattern or fnmatchcase(s, pattern)}
        if found:
            weights = ", ".join(repr(weight) for weight in list(found)[:_SHOWN])
            raise SiteError(
                f"sites={pattern!r}: the model computes its weight from {_first(found)!r}; "
                f"faults strike what it multiplies: use {weights}"
            )


def _first(found: dict[str, str]) -> str:
    return next(iter(found.values()))


def told_left(patterns: Collection[str], held: Held) -> str | None:
    """What to warn of weights that faults of all weights do not strike, if there are any."""
    if not held.left or "weights" not in patterns:
        return None
    shown = [f"{name!r} ({reason})" for name, reason in list(held.left.items())[:_SHOWN]]
    more = f" and {len(held.left) - _SHOWN} more" if len(held.left) > _SHOWN else ""
    return (
        f"sites='weights' leaves out weights that the model multiplies: {', '.join(shown)}{more}; "
        "the result is that of faults in the others alone"
    )
