"""Tensors of an ONNX file: within the file, or in files of its own folder."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crashsim.errors import FileError
from crashsim.files.limits import check_size, opened
from crashsim.files.onnx_graphs.operators.arithmetic import DTYPES

_EXTERNAL = 1  # TensorProto.EXTERNAL


class Tensors:
    """Reads the tensors of one file, and keeps count of what they take.

    Args:
        subject: what errors call the model.
        folder: of the file, which tensors outside it may not leave; None where there is none.
        allowed: bytes that they may take together.
    """

    def __init__(self, subject: str, folder: Path | None, allowed: int) -> None:
        self._subject, self._folder, self._allowed = subject, folder, allowed
        self._taken = 0

    def read(self, proto: Any) -> Tensor:
        """A tensor's numbers.

        Raises:
            FileError: it is damaged, of a type that torch lacks, too large, or elsewhere than in
                the model's folder.
        """
        what = f"{self._subject}: tensor {proto.name!r}"
        dims = [int(n) for n in proto.dims]
        if proto.data_type not in DTYPES:
            raise FileError(
                f"{what} is of type {proto.data_type}, which torch does not compute with; export "
                "the model with floating-point numbers or int8 words"
            )
        dtype = DTYPES[proto.data_type]
        if any(n < 0 for n in dims):
            raise FileError(f"{what} has a shape of {dims}; the file is damaged")
        needed = math.prod(dims) * dtype.itemsize
        self._taken += needed
        check_size(what, self._taken, "give a smaller one", allowed=self._allowed)
        if proto.data_location == _EXTERNAL:
            raw = self._outside(proto, what, needed)
        elif proto.HasField("raw_data"):
            raw = proto.raw_data
        else:
            return self._typed(proto, what, dims, dtype)
        if len(raw) != needed:
            raise FileError(
                f"{what} holds {len(raw)} bytes for a shape of {dims}; the file is damaged"
            )
        if not needed:
            return torch.empty(dims, dtype=dtype)
        return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(dims)

    def _typed(self, proto: Any, what: str, dims: list[int], dtype: torch.dtype) -> Tensor:
        """Numbers in fields of their type, as older files have them."""
        from onnx import numpy_helper

        try:
            array = np.array(numpy_helper.to_array(proto))
        except Exception as error:  # whatever a damaged one makes onnx raise
            raise FileError(f"{what} cannot be read ({error}); the file is damaged") from error
        if list(array.shape) != dims:
            raise FileError(f"{what} has not the numbers of its shape {dims}; the file is damaged")
        if dtype in (torch.bfloat16, torch.float16):
            return torch.from_numpy(array.astype(np.float32)).to(dtype)
        return torch.from_numpy(array).to(dtype)

    def _outside(self, proto: Any, what: str, needed: int) -> bytes:
        """The bytes of a tensor in a file beside the model."""
        entries = {entry.key: entry.value for entry in proto.external_data}
        path = self._inside(entries.get("location", ""), what)
        try:
            offset = int(entries.get("offset") or 0)
            length = int(entries.get("length") or needed)
        except ValueError as error:
            raise FileError(f"{what}: where it lies is no number ({error})") from error
        if length != needed or offset < 0:
            raise FileError(
                f"{what} has {length} bytes from {offset} in {path.name!r}, and its shape asks for "
                f"{needed}; the file is damaged"
            )
        with opened(f"{what} in {str(path)!r}", path, "put it beside the model") as file:
            file.seek(offset)
            return file.read(needed)

    def _inside(self, location: str, what: str) -> Path:
        """A file of the model's own folder.

        Raises:
            FileError: it lies elsewhere, by its name or by a link.
        """
        remedy = "store the weights in the model, or in a file of its folder"
        given = Path(location)
        plain = location and not given.is_absolute() and ".." not in given.parts
        if self._folder is None or not plain or "\\" in location or "\0" in location:
            raise FileError(f"{what} lies in {location!r}, outside the model's folder; {remedy}")
        folder = os.path.realpath(self._folder)
        path = os.path.realpath(self._folder / given)
        if os.path.commonpath([folder, path]) != folder:
            raise FileError(f"{what} lies in {location!r}, outside the model's folder; {remedy}")
        return Path(path)
