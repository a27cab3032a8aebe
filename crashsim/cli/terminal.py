"""Printing that loses nothing else: streams that never fail, and text that a terminal can show."""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, TextIO, cast

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from crashsim.errors import Interrupted
from crashsim.visible import visible

# What is printed of these where the terminal's encoding has none.
_PLAIN = {
    "Δ": "D", "ε": "eps", "κ": "k", "δ": "d", "σ": "s", "≤": "<=", "≥": ">=", "±": "+-", "≈": "~",
    "≠": "!=", "×": "x", "·": "*", "−": "-", "–": "-", "—": "-", "…": "...", "→": "->", "∞": "inf",
    "█": "#", "²": "^2", "³": "^3", "‖": "|", "∂": "d", "∑": "sum", "√": "sqrt", "’": "'",
}  # fmt: skip
_HANDLER = "crashsim.plain"


@dataclass(frozen=True)
class Printing:
    """How much a command prints, and where.

    Attributes:
        details: every number and every warning, not one screen.
        quiet: the verdict alone.
        verbose: each step is told as it starts, in files and pipes too.
        color: whether there may be colours.
        is_file: standard output is for a file that was asked for there; words go to standard error.
    """

    details: bool = False
    quiet: bool = False
    verbose: bool = False
    color: bool = True
    is_file: bool = False


_printing = ContextVar("printing", default=Printing())  # noqa: B039 - it is frozen


def printing() -> Printing:
    """How much the command that runs prints."""
    return _printing.get()


@contextmanager
def printing_as(how: Printing) -> Iterator[None]:
    """Until the end, ``printing`` is this."""
    token = _printing.set(how)
    try:
        yield
    finally:
        _printing.reset(token)


def console() -> Console:
    """Where words go: standard output, unless a file goes there."""
    return _console(stderr=printing().is_file)


def standard_error() -> Console:
    """For messages and progress."""
    return _console(stderr=True)


def _console(stderr: bool) -> Console:
    if os.environ.get("NO_COLOR") or not printing().color:
        return Console(stderr=stderr, color_system=None)
    return Console(stderr=stderr)


def present(verdict: str, shown: RenderableType) -> None:
    """Prints a result, or its verdict alone where only that was asked for."""
    if printing().quiet:
        console().print(Text(visible(verdict)), soft_wrap=True)
    else:
        console().print(shown)


def tell(words: str, style: str = "", label: str = "", label_style: str = "") -> None:
    """Prints words to standard error as they are: no markup, and nothing that cannot be seen."""
    text = Text()
    if label:
        text.append(f"{label} ", label_style)
    text.append(visible(words, lines=True), style)
    standard_error().print(text, soft_wrap=True)


def fail(message: str) -> None:
    tell(message, label="error:", label_style="bold red")


def stoppable(command: Callable[..., None]) -> Callable[..., None]:
    """The command, which Ctrl-C ends with exit code 130."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt as stop:
            kept = "; the result is partial" if isinstance(stop, Interrupted) else ""
            fail(f"interrupted{kept}")
            raise typer.Exit(130) from stop

    return run


def show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """For ``warnings.showwarning``."""
    tell(str(message), label="warning:", label_style="yellow")


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Standard output and error to which writing never fails; as they were, afterwards.

    What a reader that left does not read is dropped. Characters that the encoding lacks are
    replaced.

    Raises:
        OSError: at the end, what kept standard output from being written, if it was not that.
    """
    _occupy()
    codecs.register_error(_HANDLER, _in_plain_letters)
    before = sys.stdout, sys.stderr
    lasting = [None if stream is None else _Lasting(stream) for stream in before]
    sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in lasting)
    try:
        yield
    finally:
        for stream in lasting:
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
    out = lasting[0]
    if out is not None and out.failure is not None:
        raise out.failure


def _occupy() -> None:
    """Opens closed standard streams on nothing: else the next file opened would be one of them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


class _Lasting:
    """A text stream that goes on when it cannot be written to.

    Attributes:
        failure: why it could not; None where its reader left.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        with suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors=_HANDLER)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        except ValueError:  # it is closed
            pass
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)
        except ValueError:
            pass

    def _give_up(self, error: OSError) -> None:
        """What is still to be written, here or when Python ends, goes nowhere."""
        if error.errno not in (errno.EPIPE, errno.ESHUTDOWN, errno.ECONNRESET):
            self.failure = error
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def _in_plain_letters(error: UnicodeError) -> tuple[str, int]:
    """An error handler: symbols in letters, other characters as escapes."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    encoded = (
        _PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode()
        for character in missing
    )
    return "".join(encoded), error.end
