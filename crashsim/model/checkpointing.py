"""Gradient checkpointing: a segment that backward runs again meets the faults of its first run.

``torch.utils.checkpoint`` runs a segment of a model once more in the backward pass, when the
forward pass that drew faults is long over. Every segment that runs while something is attached to
the model therefore remembers where that stood when the segment began, and what it drew inside;
when the segment runs again, it stands there again and draws the same. Nothing is kept of the size
of an activation, which would undo what checkpointing is for.

Torch offers no hook for this: while something is attached, two names of ``torch.utils.checkpoint``
are replaced by ones that wrap the segment; while nobody takes part, they only pass on.
"""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch.utils import checkpoint as torch_checkpoint

from crashsim.errors import ModelError

T = TypeVar("T")


class Participant(ABC):
    """Something attached to a model, whose faults have to repeat when a segment runs again."""

    @abstractmethod
    def moment(self, reentrant: bool) -> Any:
        """Its state as a segment of this kind begins."""

    @abstractmethod
    def resumed(self, moment: Any, needed: bool) -> AbstractContextManager[None]:
        """Restores that state within the block.

        Args:
            moment: the state, as the first run began.
            needed: whether it took part in the segment at all.
        """


class _Here(threading.local):
    """The state of a thread (backward may run in another one than forward)."""

    def __init__(self) -> None:
        self.plain = 0  # blocks in which nothing is checkpointed
        self.reentrant = 0  # reentrant segments that run
        self.has_gradient = False  # of what the outermost of them computes
        self.recording: list[_Segment] = []
        self.playing: dict[int, Iterator[Any]] = {}  # by participant


_here = _Here()
_participants: weakref.WeakSet[Participant] = weakref.WeakSet()


class _Segment:
    """A function under gradient checkpointing, with what its participants need to run it again."""

    def __init__(self, function: Callable[..., Any], reentrant: bool) -> None:
        self._function, self._reentrant, self._ran = function, reentrant, False
        self._notes: dict[int, list[Any]] = {}
        self._moments = [(weakref.ref(p), id(p), p.moment(reentrant)) for p in list(_participants)]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The first time."""
        _here.recording.append(self)
        try:
            yield
        finally:
            _here.recording.remove(self)

    def note(self, participant: Participant, value: Any) -> None:
        self._notes.setdefault(id(participant), []).append(value)

    def again(self, *args: Any, **kwargs: Any) -> Any:
        """Every other time."""
        with ExitStack() as stack:
            for reference, name, moment in self._moments:
                participant, notes = reference(), self._notes.get(name, [])
                if participant is not None:
                    stack.enter_context(_taking_part(participant))
                    stack.enter_context(_playing(name, notes))
                    stack.enter_context(participant.resumed(moment, bool(notes)))
                elif notes:
                    raise ModelError(
                        "model: backward computes a segment under gradient checkpointing again, "
                        "but what struck faults there is gone; keep it until backward is over"
                    )
            return self._function(*args, **kwargs)

    def __call__(self, *args: Any) -> Any:
        """A reentrant segment, whichever time it is."""
        outer = _here.has_gradient
        _here.reentrant += 1
        try:
            if self._ran:
                return self.again(*args)
            self._ran = True
            with self.recording():
                return self._function(*args)
        finally:
            _here.reentrant -= 1
            _here.has_gradient = outer


@contextmanager
def _playing(name: int, notes: list[Any]) -> Iterator[None]:
    outer = _here.playing.get(name)
    _here.playing[name] = iter(notes)
    try:
        yield
    finally:
        if outer is None:
            del _here.playing[name]
        else:
            _here.playing[name] = outer


def recalled(participant: Participant, new: Callable[[], T]) -> T:
    """The value of ``new()``; in a segment that runs again, its value of the first run.

    Raises:
        ModelError: the first run asked for fewer values.
    """
    notes = _here.playing.get(id(participant))
    if notes is None:
        value = new()
    else:
        try:
            value = next(notes)
        except StopIteration:
            raise ModelError(
                "model: what is under gradient checkpointing runs other modules in backward than "
                "it did in forward; call backward before the model's mode or state changes"
            ) from None
    for segment in _here.recording:
        segment.note(participant, value)
    return value


def runs_again(participant: Participant) -> bool:
    """Whether a segment runs again, in this thread."""
    return id(participant) in _here.playing


def is_reentrant() -> bool:
    """Whether a reentrant segment runs, in this thread."""
    return _here.reentrant > 0


def has_gradient() -> bool:
    """Whether what is computed will have a derivative; reentrant segments hide it at first."""
    return torch.is_grad_enabled() or (is_reentrant() and _here.has_gradient)


# Taking part.


def join(participant: Participant) -> None:
    """From now on, segments remember what this participant does, until it leaves."""
    _participants.add(participant)
    _replacement.take()


def leave(participant: Participant | None = None) -> None:
    """Ends what one ``join`` began; without an argument, that of one that no longer exists."""
    if participant is not None:
        _participants.discard(participant)
    _replacement.give_back()


@contextmanager
def _taking_part(participant: Participant) -> Iterator[None]:
    """Within the block, even if it has left."""
    has_left = participant not in _participants
    join(participant)
    try:
        yield
    finally:
        leave(participant if has_left else None)


@contextmanager
def plainly() -> Iterator[None]:
    """Within the block, this thread checkpoints nothing: every segment runs once."""
    _replacement.take()
    _here.plain += 1
    try:
        yield
    finally:
        _here.plain -= 1
        _replacement.give_back()


@contextmanager
def uncounted() -> Iterator[None]:
    """Within the block, a segment around it does not count the tensors that are saved."""
    with plainly(), torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        yield


class _Replacement:
    """The names in torch that are replaced as long as somebody takes part."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0

    def take(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._put(_Reentrant, _not_reentrant)

    def give_back(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._put(_torch_reentrant, _torch_not_reentrant)

    def _put(self, reentrant: type[Any], not_reentrant: Callable[..., Any]) -> None:
        setattr(torch_checkpoint, "CheckpointFunction", reentrant)  # noqa: B010
        setattr(torch_checkpoint, _NOT_REENTRANT, not_reentrant)


_replacement = _Replacement()
_torch_reentrant = torch_checkpoint.CheckpointFunction
# From torch 2.14 on, the first of these is the one that runs, and the second calls it.
_NOT_REENTRANT = next(
    name
    for name in (
        "_checkpoint_without_reentrant_generator_impl",
        "_checkpoint_without_reentrant_generator",
    )
    if hasattr(torch_checkpoint, name)
)
_torch_not_reentrant = getattr(torch_checkpoint, _NOT_REENTRANT)


class _Reentrant(_torch_reentrant):
    @classmethod
    def apply(cls, function: Callable[..., Any], *args: Any) -> Any:
        if _here.plain:
            return function(*args[1:])  # the first says whether to preserve random state
        if not _participants:
            return _torch_reentrant.apply(function, *args)
        segment = _Segment(function, reentrant=True)
        outer = _here.has_gradient
        _here.has_gradient = has_gradient()
        try:
            return _torch_reentrant.apply(segment, *args)
        finally:
            _here.has_gradient = outer


def _not_reentrant(
    function: Callable[..., Any], *args: Any, **kwargs: Any
) -> Generator[None, None, None]:
    """Runs up to its yield before the segment, and on after it."""
    if _here.plain:
        yield
        return
    if not _participants:
        yield from _torch_not_reentrant(function, *args, **kwargs)
        return
    segment = _Segment(function, reentrant=False)
    inner = _torch_not_reentrant(segment.again, *args, **kwargs)
    next(inner)
    with segment.recording():
        try:
            yield
        except BaseException as error:
            inner.throw(error)
            raise
    next(inner, None)
