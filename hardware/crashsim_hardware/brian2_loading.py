"""Loading and running brian2 without leaving traces in the caller's process."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .errors import HardwareError

__all__ = ["brian2_at_rest", "load_brian2"]


def load_brian2() -> Any:
    """The brian2 module, imported without its interrupt handler and its exception hook.

    Importing brian2 replaces both for the whole process. Here Ctrl+C goes on meaning what it did
    before. A brian2 that the caller imported is left as it is.
    """
    if "brian2" in sys.modules:
        return sys.modules["brian2"]
    main = threading.current_thread() is threading.main_thread()
    handler, hook = signal.getsignal(signal.SIGINT), sys.excepthook
    try:
        with _quiet():
            import brian2
    finally:
        sys.excepthook = hook
        if main and handler is not None:
            signal.signal(signal.SIGINT, handler)
    return brian2


@contextmanager
def _quiet() -> Iterator[None]:
    # brian2 2.9 parses equations with names that pyparsing 3.3 deprecates
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'.*' (argument is )?deprecated", DeprecationWarning)
        yield


@contextmanager
def brian2_at_rest() -> Iterator[Any]:
    """brian2 with its numpy code generation, preferences restored on leaving.

    Every object alive is frozen out of the garbage collector meanwhile: `Network.run` starts with
    a full collection, which in a process with torch loaded takes longer than the run itself.
    Raises HardwareError under a standalone device, which would write a project to disk instead of
    running.
    """
    brian2 = load_brian2()
    device = type(brian2.get_device()).__name__
    if device != "RuntimeDevice":
        raise HardwareError(
            f"brian2 is set to the {device}; call brian2.set_device('runtime') before a run here"
        )
    kept = {name: brian2.prefs[name] for name in ("codegen.target", "core.default_float_dtype")}
    frozen_before = gc.get_freeze_count() > 0
    gc.freeze()
    try:
        brian2.prefs["codegen.target"] = "numpy"
        brian2.prefs["core.default_float_dtype"] = np.float64
        with _quiet():
            yield brian2
    finally:
        if not frozen_before:  # a caller's own freeze stays
            gc.unfreeze()
        for name, value in kept.items():
            brian2.prefs[name] = value
