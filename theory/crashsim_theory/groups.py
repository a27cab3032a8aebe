"""Coordinates that fail together: a core, a column or a channel as one Bernoulli coordinate.

The group's displacement is the vector of its members' displacements, so F's derivative along the
group is the sum of its members' derivatives. Everything else (moments, tails, certificates) sees an
ordinary coordinate. Certificates take groups directly, through `CrashFaults.members`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

from crashsim_theory.arrays import Array, as_array
from crashsim_theory.errors import TheoryError


def group_sum(values: Any, ids: Any, groups: int | None = None) -> Array:
    """Sum gradients or gains (..., N) over the members of each group: (..., G).

    Args:
        values: one number per member.
        ids: the group of each member, (N,) integers from 0; -1 leaves a member out.
        groups: G; None takes the largest id plus one.
    """
    array = as_array("values", values)
    if array.ndim == 0:
        raise TheoryError("values", values, "give an array (..., N), one number per member")
    selection = _selection(array.shape[-1], ids, groups)
    flat = np.asarray(selection @ array.reshape(-1, array.shape[-1]).T).T
    return flat.reshape(*array.shape[:-1], -1)


def group_hessian(values: Any, ids: Any, groups: int | None = None) -> Array:
    """Sum a Hessian (..., N, N) over the members of both groups: (..., G, G)."""
    once = group_sum(values, ids, groups)
    return np.swapaxes(group_sum(np.swapaxes(once, -1, -2), ids, groups), -1, -2)


def _selection(members: int, ids: Any, groups: int | None) -> Any:
    array = np.asarray(ids)
    if array.shape != (members,) or not np.issubdtype(array.dtype, np.integer):
        raise TheoryError("ids", ids, f"give {members} integers, one per member")
    count = int(array.max(initial=-1)) + 1 if groups is None else groups
    if np.any(array >= count):
        raise TheoryError("ids", ids, f"ids run from 0 to groups - 1 = {count - 1}")
    inside = np.flatnonzero(array >= 0)
    ones = np.ones(len(inside))
    return scipy.sparse.csr_matrix((ones, (array[inside], inside)), shape=(count, members))
