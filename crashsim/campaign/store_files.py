"""The files of a store: sums of blocks, their totals, and the manifest that says of what."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crashsim.campaign.identity import name_of
from crashsim.campaign.packing import pack
from crashsim.errors import CrashsimError, FileError
from crashsim.writing import write_files

FORMAT = 1  # of the files; others are left alone
BLOCKS = re.compile(r"blocks-(\d+)-(\d+)\.npz")
TOTAL = re.compile(r"total-(\d+)\.npz")


def files_in(folder: Path) -> list[Path]:
    try:
        names = sorted(each.name for each in folder.iterdir())
    except FileNotFoundError:
        return []
    return [folder / name for name in names if BLOCKS.fullmatch(name) or TOTAL.fullmatch(name)]


def chain(totals: Iterable[int]) -> list[int]:
    """The totals that serve: of 1, 2, 4, ... blocks without a gap, and the last one beyond."""
    known = sorted(totals)
    found: list[int] = []
    power = 1
    while power in known:
        found.append(power)
        power *= 2
    between = [count for count in known if found and found[-1] < count < power]
    return found + between[-1:]


def take_away_held(folder: Path) -> int:
    """Files of blocks that a total holds as well, and totals that a larger one makes needless."""
    serving = chain(int(m[1]) for f in files_in(folder) if (m := TOTAL.fullmatch(f.name)))
    gone = 0
    for file in files_in(folder) if serving else ():
        blocks, total = BLOCKS.fullmatch(file.name), TOTAL.fullmatch(file.name)
        held = blocks is not None and int(blocks[2]) < serving[-1]
        if total is not None:
            held = int(total[1]) < serving[-1] and int(total[1]) not in serving
        if held:
            file.unlink(missing_ok=True)
            gone += 1
    return gone


def content_of(name: str, numbers: Sequence[int], sums: Sequence[Any]) -> bytes:
    structure, data = pack(list(sums))
    head = json.dumps({"format": FORMAT, "work": name, "blocks": list(numbers)})
    check = hashlib.sha256(head.encode() + structure.encode() + data).hexdigest()
    file = io.BytesIO()
    np.savez(file, data=_raw(data), head=_raw(head), structure=_raw(structure), check=_raw(check))
    return file.getvalue()


def _raw(content: str | bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(content.encode() if isinstance(content, str) else content, np.uint8)


def read_file(file: Path, name: str) -> tuple[list[int], str, bytes]:
    """The numbers of a file's blocks, and their sums as they were packed.

    Raises:
        FileNotFoundError: it is gone.
        FileError: it is damaged, or of something else.
    """
    try:
        content = file.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as members:
            # As numpy's savez writes them; what is compressed could unfold to any size.
            if any(each.compress_type != zipfile.ZIP_STORED for each in members.infolist()):
                raise ValueError("it is compressed")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            data = arrays["data"].tobytes()
            head, structure, check = (
                arrays[key].tobytes().decode() for key in ("head", "structure", "check")
            )
        if hashlib.sha256(head.encode() + structure.encode() + data).hexdigest() != check:
            raise ValueError("its checksum is another")
        said = json.loads(head)
        if said["format"] != FORMAT:
            raise ValueError(f"its format is {said['format']}, not {FORMAT}")
        if said["work"] != name:
            raise ValueError("it is of another run")
        return [int(number) for number in said["blocks"]], structure, data
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise FileError(f"{file}: cannot be used ({error})") from error


def ensure_manifest(file: Path, identity: Mapping[str, str], argument: str = "store") -> None:
    if not file.exists():
        told = {"crashsim_store": FORMAT, "work": name_of(identity), "identity": dict(identity)}
        write_files(argument, (file, (json.dumps(told, indent=1) + "\n").encode()))


def read_manifest(file: Path) -> dict[str, str]:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        identity = {str(key): str(value) for key, value in said["identity"].items()}
        if said["crashsim_store"] != FORMAT or name_of(identity) != file.parent.name:
            raise ValueError("it is of another format or run")
        return identity
    except CrashsimError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{file}: cannot be used ({error})") from error
