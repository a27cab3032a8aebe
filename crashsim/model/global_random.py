"""Global random generators that a model draws from, and how they are put back.

Global generators belong to all threads: putting one back takes away what others drew meanwhile. So
it is found out first whether a model draws at all; for one that does not, they are left alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")


class Drawing:
    """Which global generators a model draws from, and how to leave them as they were.

    Args:
        device: where the model runs.

    Attributes:
        uses_torch: whether it draws from torch's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.uses_torch = self._others = False

    @property
    def draws(self) -> bool:
        """Whether the model draws from any."""
        return self.uses_torch or self._others

    def watch(self, run: Callable[[], T]) -> T:
        """Runs a pass and notes which generators it draws from; returns what the pass returns."""
        before = random.getstate(), np.random.get_state(legacy=False)
        watcher = _Watcher(self._device)
        try:
            with watcher:
                return run()
        except Exception:  # not everything can be watched: what fails again fails by itself
            self.uses_torch = True
            with self.undone():
                return run()
        finally:
            self.uses_torch = self.uses_torch or watcher.drew
            if random.getstate() != before[0] or not _same(before[1]):
                self._others = True
                random.setstate(before[0])
                np.random.set_state(before[1])

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Puts back, after the block, the generators that the model draws from."""
        if not (self.uses_torch or self._others):
            yield
            return
        devices = [self._device] if self._device.type == "cuda" else []
        before = random.getstate(), np.random.get_state(legacy=False)
        try:
            with torch.random.fork_rng(devices, enabled=self.uses_torch):
                yield
        finally:
            if self._others:
                random.setstate(before[0])
                np.random.set_state(before[1])


class _Watcher(TorchDispatchMode):
    """Undoes each drawing from a global generator of torch at once."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device, self.drew = device, False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would load its compiler to skip it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tags = getattr(func, "tags", ())
        if torch.Tag.nondeterministic_seeded not in tags:
            return func(*args, **(kwargs or {}))
        before = torch.get_rng_state()
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            output = func(*args, **(kwargs or {}))
            self.drew |= bool(devices) or not torch.equal(before, torch.get_rng_state())
        return output


def _same(before: Any) -> bool:
    now = np.random.get_state(legacy=False)
    kept, found = before["state"], now["state"]
    return bool(kept["pos"] == found["pos"]) and np.array_equal(kept["key"], found["key"])
