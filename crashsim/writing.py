"""Files that results go to: found to be writable before the work, written whole after it.

A file is written beside its place, under a name of its own, and takes the place when it is on the
disk: whatever ends the program, there is the old file, the new one, or none. What is no regular
file (a pipe, a terminal, /dev/null) is written to as it is.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import combinations, product
from pathlib import Path
from typing import Any

from crashsim.arguments import path as file_path
from crashsim.errors import ArgumentError, FileError

# A file with the name of the argument that asks for it.
Named = tuple[str, str | Path]

_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_LINKS = 40  # that are followed, one after the other
_KEPT = 40  # characters of a file's name in that of its temporary file
_NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # of file systems that have none


def check_files(outputs: Iterable[Named], inputs: Iterable[Named] = ()) -> None:
    """Fails before the work where a result could not be written, or would overwrite something.

    Args:
        outputs: where results are to be written.
        inputs: what may be read; what is not there is not overwritten.

    Raises:
        FileError: no file can be written there.
        ArgumentError: an output is an input, however it is spelled or linked, or another output.
    """
    outputs, inputs = list(outputs), [i for i in inputs if os.path.exists(i[1])]
    for argument, path in outputs:
        check_writable(argument, path)
    for output, given in product(outputs, inputs):
        if _same(output[1], given[1]):
            raise ArgumentError(
                f"{_told(output)}: would overwrite the input {_told(given)}; give another name"
            )
    for output, other in combinations(outputs, 2):
        if _same(output[1], other[1]):
            raise ArgumentError(
                f"{_told(output)} and {_told(other)}: the same file; give each its own"
            )
        for folder, inside in ((output, other), (other, output)):
            if _resolved(folder[1]) in _resolved(inside[1]).parents:
                raise ArgumentError(
                    f"{_told(folder)}: is to be the folder of {_told(inside)}; give another name"
                )
    for output in outputs:
        if _is_stdout(output[1]):
            raise ArgumentError(
                f"{_told(output)}: what is printed goes there too; give another name"
            )


def _told(named: Named) -> str:
    return f"{named[0]}={str(named[1])!r}"


def _same(one: str | Path, other: str | Path) -> bool:
    """Whether two paths name one file; what is no regular file may be written to by several."""
    there = [os.path.exists(path) for path in (one, other)]
    if all(there):
        return os.path.isfile(one) and os.path.samefile(one, other)
    return not any(there) and _folded(one) == _folded(other)


def _folded(path: str | Path) -> str:
    # Names that differ in case or composition alone are one file on some file systems.
    return unicodedata.normalize("NFC", str(_resolved(path))).casefold()


def _resolved(path: str | Path) -> Path:
    return Path(os.path.realpath(path))


def _is_stdout(path: str | Path) -> bool:
    """Whether a regular file is what standard output goes to, under a name of its own."""
    try:
        there, out = os.stat(path), os.fstat(1)
    except (OSError, ValueError):
        return False
    own = stat.S_ISREG(there.st_mode) and os.path.samestat(there, out)
    return own and _descriptor(path) is None


def check_writable(argument: str, path: str | Path | None) -> None:
    """Fails before the work, not after it: creates a file there, and takes it away again.

    Trying it is the only way to know: permissions say nothing of file systems on which nothing can
    be created.

    Args:
        argument: how the caller names the file.
        path: where it is to be; None where none is asked for.

    Raises:
        FileError: no file can be written there.
    """
    if path is None:
        return
    with _explained(argument, path):
        place = _place(path)
        if _is_special(place):  # a pipe or device must not be opened twice
            return
        assert isinstance(place, Path)
        made = [folder for folder in (place.parent, *place.parent.parents) if not folder.exists()]
        beside = _beside(place)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                place.lstat()  # which says whether the name is too long
            beside.open("xb").close()
            _take_away([beside], made)
        finally:  # an interrupt may have come between
            _take_away([beside], made)


def _take_away(files: Iterable[Path], folders: Iterable[Path] = ()) -> None:
    """What is still there of files, and of folders that are empty."""
    for file in files:
        with suppress(OSError):
            file.unlink()
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def write_text(argument: str, path: str | Path, text: str) -> None:
    """Writes a file of UTF-8 and the folders it is in. Raises FileError where that cannot be."""
    write_files(argument, (path, text.encode("utf-8", errors="backslashreplace")))


def write_files(argument: str, *files: tuple[str | Path, bytes]) -> None:
    """Writes files that belong together, and the folders they are in.

    The first takes its place when all are on the disk, and the others follow at once, in order.

    Raises:
        FileError: that cannot be; what was there before is still there.
    """
    waiting: list[tuple[Path, Path]] = []
    try:
        for path, content in files:
            with _explained(argument, path):
                place = _place(path)
                if _is_special(place):
                    _pour(place, content)
                    continue
                assert isinstance(place, Path)
                place.parent.mkdir(parents=True, exist_ok=True)
                beside = _beside(place)
                waiting.append((beside, place))
                _create(beside, content, place)
        with _explained(argument, files[0][0]):
            _take_places(waiting)
    finally:
        _take_away(beside for beside, _ in waiting)


def write_picture(argument: str, path: str | Path, figure: Any) -> None:
    """Writes a matplotlib figure as the kind of picture that the path's ending says; PNG without.

    Raises:
        ArgumentError: no path, or an ending that matplotlib does not know.
        FileError: the file cannot be written.
    """
    place = file_path(argument, path)
    if place.name and not place.suffix:
        place = place.with_name(f"{place.name}.png")
    kind = place.suffix[1:].lower()
    if kind not in (kinds := figure.canvas.get_supported_filetypes()):
        raise ArgumentError(
            f"{argument}={str(path)!r}: no kind of picture; end it with one of "
            f"{', '.join(f'.{known}' for known in sorted(kinds))}"
        )
    picture = BytesIO()
    figure.savefig(picture, dpi=120, format=kind)
    write_files(argument, (place, picture.getvalue()))


def _take_places(waiting: list[tuple[Path, Path]]) -> None:
    """Renames all, or none: an interrupt after the first does not part the others from it."""
    if not waiting:
        return
    (beside, place), *rest = waiting
    try:
        os.replace(beside, place)
    finally:
        if not os.path.lexists(beside):
            _take_places(rest)
    with suppress(OSError):  # what the disk knows of the name, where folders can be opened
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _create(beside: Path, content: bytes, place: Path) -> None:
    """Writes a new file with the mode and owner of the one that it replaces, if there is one."""
    with beside.open("xb") as file:  # with the mode that the umask leaves
        if place.exists():
            old, new = place.stat(), beside.stat()
            if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid) and hasattr(os, "chown"):
                with suppress(PermissionError):
                    os.chown(beside, old.st_uid, old.st_gid)
            os.chmod(beside, stat.S_IMODE(old.st_mode))
        file.write(content)
        file.flush()
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in _NO_FSYNC:
                raise


def _is_special(place: Path | int) -> bool:
    """Whether it is written to as it is, rather than replaced.

    Raises:
        PermissionError: neither, though the folder might allow it.
    """
    if isinstance(place, int):
        os.fstat(place)
        return True
    if not place.exists():
        return False
    if not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return not place.is_file()


def _pour(place: Path | int, content: bytes) -> None:
    """Writes to what is no regular file, or to an open one."""
    if isinstance(place, int):
        for stream in (sys.stdout, sys.stderr):  # what was printed before comes before
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
    target = os.dup(place) if isinstance(place, int) else os.open(place, os.O_WRONLY)
    # A reader that left has what it wanted.
    with suppress(BrokenPipeError), open(target, "wb", buffering=0) as file:
        while content:
            content = content[file.write(content) :]


def all_of(*steps: Callable[[], None]) -> None:
    """Takes every step, and raises the first error only then: one bad file loses no other."""
    failed: list[Exception] = []
    for step in steps:
        try:
            step()
        except Exception as error:
            failed.append(error)
    if failed:
        raise failed[0]


def _place(path: str | Path) -> Path | int:
    """Where the bytes go: behind links, to a file or an open descriptor.

    Raises:
        OSError, ValueError: there can be no file.
    """
    # A pathlib path of an empty name is the present folder, as is ".".
    if not str(path) or Path(path).is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    descriptor = _descriptor(path)
    if descriptor is not None:
        return descriptor
    place = _resolved(path)
    if place.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return place


def _descriptor(path: str | Path) -> int | None:
    """The number of the open file that a path such as /dev/stdout stands for, if it does."""
    here = os.path.abspath(path)
    for _ in range(_LINKS):
        if here in _STREAMS:
            return _STREAMS[here]
        if found := _DESCRIPTOR.fullmatch(here):
            return int(found[1])
        if not os.path.islink(here):
            break
        here = os.path.abspath(os.path.join(os.path.dirname(here), os.readlink(here)))
    return None


def _beside(place: Path) -> Path:
    """A new name in the same folder."""
    return place.with_name(f".{place.name[:_KEPT]}.{secrets.token_hex(8)}.tmp")


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
