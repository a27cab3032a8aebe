"""Files that results go to: found to be writable before the work, written after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from crashsim.errors import FileError


def check_writable(argument: str, path: str | Path | None) -> None:
    """Fails before the work, not after it: creates the file, and takes it away again.

    Trying it is the only way to know: permissions say nothing of the length of names, nor of file
    systems on which nothing can be created.

    Args:
        argument: how the caller names the file.
        path: where it is to be; None where none is asked for.

    Raises:
        FileError: no file can be written there.
    """
    if path is None:
        return
    with _explained(argument, path):
        path = _file(path)
        if path.exists():  # a pipe or device must not be opened twice
            if not os.access(path, os.W_OK):
                raise PermissionError("no permission to write")
            if path.is_file():
                path.open("ab").close()
            return
        made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("xb").close()
            path.unlink()
        finally:
            for folder in made:
                if folder.is_dir():
                    folder.rmdir()


def write_text(argument: str, path: str | Path, text: str) -> None:
    """Writes a file and the folders it is in. Raises FileError where that cannot be."""
    with _explained(argument, path):
        path = _file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def all_of(*steps: Callable[[], None]) -> None:
    """Takes every step, and raises the first error only then: one bad file loses no other."""
    failed: list[FileError] = []
    for step in steps:
        try:
            step()
        except FileError as error:
            failed.append(error)
    if failed:
        raise failed[0]


def _file(path: str | Path) -> Path:
    # A pathlib path of an empty name is the present folder, as is ".".
    if not str(path) or Path(path).is_dir():
        raise IsADirectoryError("it is a folder")
    return Path(path)


@contextmanager
def _explained(argument: str, path: str | Path) -> Iterator[None]:
    """What the system says of a path becomes a FileError with the argument's name."""
    try:
        yield
    except (OSError, ValueError) as error:  # a ValueError: a null byte in the name
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise FileError(
            f"{argument}={str(path)!r}: cannot write there ({reason}); give the name of a file in "
            "a folder you may write to"
        ) from error
