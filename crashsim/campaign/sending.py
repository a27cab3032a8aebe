"""Tasks on their way to other processes: pickled once, and unpickled once in each.

They are pickled with cloudpickle, which takes along the classes and functions of notebooks, scripts
and files named as ``path.py:name``: those that the other process could not import.
"""

from __future__ import annotations

import pickle
from concurrent.futures import Executor
from functools import lru_cache, reduce
from operator import add
from pathlib import Path
from typing import Any

import cloudpickle

from crashsim.errors import ArgumentError


def sent_to(executor: Executor, task: Any) -> Any:
    """What is submitted to an executor in the place of a task, for each of its blocks.

    An executor with a method ``share(content: bytes)`` takes the pickled task once; its answer goes
    along with each block, and is bytes, or the name of a file, where the block is run.
    """
    share = getattr(executor, "share", None)
    return Sent(task) if share is None else share(_pickled(task))


def run_block(task: Any, block: int) -> Any:
    """The sums of a block, where it is run."""
    if isinstance(task, bytes):
        task = _received(task)
    elif isinstance(task, Path):
        task = _read(task)
    return reduce(add, (task.task if isinstance(task, Sent) else task).parts(block))


class Sent:
    """A task that is pickled when it first leaves the process, and not at all for threads."""

    def __init__(self, task: Any) -> None:
        self.task = task
        self._pickled: bytes | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self._pickled is None:
            self._pickled = _pickled(self.task)
        return _unpickled, (self._pickled,)


def _pickled(task: Any) -> bytes:
    try:
        return bytes(cloudpickle.dumps(task))
    except Exception as error:  # whatever its parts raise
        raise ArgumentError(
            f"executor: the work cannot be sent to other processes ({error}); leave open files, "
            "locks and generators out of models and data, or give a ThreadPoolExecutor"
        ) from error


@lru_cache(maxsize=2)  # a model is prepared once in a worker, not for each block
def _unpickled(pickled: bytes) -> Sent:
    return Sent(pickle.loads(pickled))


@lru_cache(maxsize=2)
def _received(pickled: bytes) -> Any:
    return pickle.loads(pickled)


@lru_cache(maxsize=2)
def _read(file: Path) -> Any:
    return pickle.loads(file.read_bytes())
