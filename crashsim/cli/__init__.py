"""The command line.

Nothing loads before ``main`` runs, so that an interrupt finds it, whenever it comes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Code = int | str | None


def main() -> None:
    """Entry point: exit code 0 if fine, 2 for wrong use, 1 for failure, 130 for Ctrl-C."""
    try:
        code = _run()
    except KeyboardInterrupt:  # a second one, or one before the first line of a command
        code = 130
    if code:
        raise SystemExit(code)


def _run() -> Code:
    """The command, with streams that last."""
    import warnings

    from crashsim.cli.terminal import fail, lasting_streams, show_warning

    warnings.showwarning = show_warning
    code: Code = 0
    try:
        with lasting_streams(), _noting_interrupts() as interrupts:
            code = _call(interrupts)
    except OSError as error:
        fail(f"standard output: {error.strerror}")
        code = code or 1
    return code


@contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """A list that an interrupt is added to before it is raised."""
    import signal

    found: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        found.append(number)
        signal.default_int_handler(number, frame)

    # Not where interrupts are ignored (in a background job), or in a thread.
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield found
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _call(interrupts: list[int]) -> Code:
    """Runs the command; returns its exit code, and says why where it is not 0."""
    import os

    from crashsim.cli.program import app
    from crashsim.cli.terminal import fail
    from crashsim.errors import CrashsimError

    try:
        app()
    except SystemExit as stop:
        return stop.code
    except Exception as error:
        if interrupts:  # which breaks imports in ways of their own
            fail("interrupted")
            return 130
        if isinstance(error, CrashsimError):
            fail(str(error))
            return 2
        if os.environ.get("CRASHSIM_TRACEBACK"):
            raise
        fail(f"{type(error).__name__}: {error}\n(set CRASHSIM_TRACEBACK=1 to see where)")
        return 1
    return 0


def __getattr__(name: str) -> Any:
    if name == "app":
        from crashsim.cli.program import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
