"""Loading and running brian2 without leaving traces in the caller's process."""

from __future__ import annotations

import gc
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import numpy as np

from crashsim_hardware.errors import HardwareError

__all__ = ["brian2_at_rest", "load_brian2"]

_LOGGER = "brian2.utils.logger"
_lock = threading.RLock()  # brian2 holds one network, one set of preferences for all threads


def load_brian2() -> Any:
    """The brian2 module, imported without what it does to the process.

    Importing brian2 opens a log file, copies the running script to the temporary folder, sends
    Python's warnings to its log, replaces the interrupt handler and the exception hook (in the main
    thread; in others it fails), and has setuptools add to ``sys.path``. Here everything stays what
    it was. A brian2 that the caller imported is left as it is.
    """
    with _lock:
        if "brian2" in sys.modules:
            return sys.modules["brian2"]
        hook, path = sys.excepthook, list(sys.path)
        captured = logging._warnings_showwarning is not None  # type: ignore[attr-defined]
        finder = _LoggerFinder()
        sys.meta_path.insert(0, finder)
        try:
            with _quiet(), _without_handlers():
                import brian2
        except ModuleNotFoundError as error:
            if error.name != "brian2":
                raise
            raise HardwareError(
                "engine='brian2' needs brian2: pip install brian2; or take engine='numpy', which "
                "gives the same spikes"
            ) from error
        finally:
            sys.meta_path.remove(finder)
            sys.excepthook = hook
            sys.path[:] = [entry for entry in sys.path if entry in path or not _is_vendored(entry)]
            if not captured:
                logging.captureWarnings(False)
            if _LOGGER in sys.modules:
                ours = sys.modules[_LOGGER].BrianLogger.console_handler
                logging.getLogger("py.warnings").removeHandler(ours)
        return brian2


def _is_vendored(entry: str) -> bool:
    return entry.replace("\\", "/").endswith("setuptools/_vendor")


class _LoggerFinder(MetaPathFinder):
    """Finds brian2's logger, whose files are switched off once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _LOGGER:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _LoggerLoader(spec.loader)
        return spec


class _LoggerLoader(Loader):
    def __init__(self, usual: Loader) -> None:
        self._usual = usual

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._usual.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._usual.exec_module(module)
        logger: Any = module
        initialize: Callable[[], None] = logger.BrianLogger.initialize

        def without_files() -> None:
            names = ("logging.file_log", "logging.save_script")
            kept = {name: logger.prefs[name] for name in names}
            logger.prefs.update(dict.fromkeys(names, False))
            try:
                initialize()
            finally:
                logger.prefs.update(kept)
                logger.BrianLogger.initialize = staticmethod(initialize)

        logger.BrianLogger.initialize = staticmethod(without_files)


@contextmanager
def _without_handlers() -> Iterator[None]:
    """``signal.signal`` does nothing in this thread; in others it is what it is."""
    ours, usual = threading.get_ident(), signal.signal

    def set_handler(number: Any, handler: Any) -> Any:
        if threading.get_ident() == ours:
            return signal.getsignal(number)
        return usual(number, handler)

    signal.signal = set_handler  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = usual


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the deprecations that brian2 2.9 meets in pyparsing 3.3.

    Python shows them to nobody unless asked; only then are its filters, those of all threads,
    touched for a while.
    """
    if _ignores_deprecations():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'.*' (argument is )?deprecated", DeprecationWarning)
        yield


def _ignores_deprecations() -> bool:
    for action, message, category, module, _ in warnings.filters:
        names_module = module is not None and not hasattr(module, "match")
        if message is None and issubclass(DeprecationWarning, category) and not names_module:
            pattern: Any = module
            if pattern is None or pattern.match("brian2.equations.equations"):
                return action == "ignore"
    return False


@contextmanager
def brian2_at_rest() -> Iterator[Any]:
    """brian2 with its numpy code generation, preferences restored on leaving.

    One thread at a time: brian2 knows one process, one run. Every object alive is frozen out of
    the garbage collector meanwhile: `Network.run` starts with a full collection, which in a process
    with torch loaded takes longer than the run itself. Raises HardwareError under a standalone
    device, which would write a project to disk instead of running.
    """
    with _lock:
        brian2 = load_brian2()
        device = type(brian2.get_device()).__name__
        if device != "RuntimeDevice":
            raise HardwareError(
                f"brian2 is set to the {device}; call brian2.set_device('runtime') before a run "
                "here"
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
