"""The command line.

Nothing loads before ``main`` runs, so that an interrupt finds it, whenever it comes.
"""

from __future__ import annotations

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
        with lasting_streams():
            code = _call()
    except OSError as error:
        fail(f"standard output: {error.strerror}")
        code = code or 1
    return code


def _call() -> Code:
    """Runs the command; returns its exit code, and says why where it is not 0."""
    import os

    from crashsim.cli.program import app
    from crashsim.cli.terminal import fail
    from crashsim.errors import CrashsimError

    try:
        app()
    except SystemExit as stop:
        return stop.code
    except CrashsimError as error:
        fail(str(error))
        return 2
    except Exception as error:
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
