"""Runs the user's own code, by name; an error in it is reported with its file and line."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import cloudpickle
from torch import nn

from crashsim.arguments import nearest
from crashsim.errors import ArgumentError, CrashsimError, FileError, ModelError
from crashsim.model.failures import described

T = TypeVar("T")


def call_factory(spec: str) -> nn.Module:
    """Builds the model of ``package.module:factory`` or ``path.py:factory``.

    Raises:
        FileError: there is no such module or file.
        ModelError: the code fails.
        ArgumentError: the name stands for no factory, or one that needs arguments or returns no
            module.
    """
    where, _, name = spec.rpartition(":")
    if where.endswith(".py"):
        module = _import_file(Path(where), f"model={spec!r}")
    else:
        module = _import(where, spec)
    factory = getattr(module, name, None)
    if factory is None:
        near = nearest(name, (n for n, own in vars(module).items() if callable(own)))
        raise ArgumentError(
            f"model={spec!r}: {where!r} has no {name!r}{near}; name a factory in it"
        )
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise ArgumentError(f"model={spec!r}: {name!r} is {type(factory).__name__}, not a factory")
    _check_callable_alone(factory, spec, name)
    with reported_as_the_users(f"model={spec!r}", f"{name}()"):
        model = factory()
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model={spec!r}: {name}() returned {type(model).__name__}, not a torch.nn.Module"
        )
    return model


def load_class(path: Path, name: str, base: type[T], given: str) -> type[T]:
    """The class of this name in a file of code, which is run.

    Args:
        path: the file.
        name: of the class.
        base: what it must be a subclass of.
        given: the argument that names the class, with its value.

    Raises:
        FileError: there is no such file.
        ModelError: the code fails.
        ArgumentError: the file has no such class, or one of another kind.
    """
    found = getattr(_import_file(path, given), name, None)
    if found is None:
        raise ArgumentError(f"{given}: {str(path)!r} has no {name!r}; name a class in it")
    if not isinstance(found, type) or not issubclass(found, base):
        raise ArgumentError(
            f"{given}: {name!r} is no subclass of crashsim.{base.__name__}; name one that is"
        )
    return found


def load_function(spec: str, option: str) -> Callable[..., Any]:
    """The function, or other callable object, of ``package.module:name`` or ``path.py:name``.

    Args:
        spec: what names it.
        option: the argument that gives it.

    Raises:
        FileError: there is no such module or file.
        ModelError: the code fails.
        ArgumentError: the name stands for nothing that can be called.
    """
    where, _, name = spec.rpartition(":")
    given = f"{option}={spec!r}"
    if not where or not name:
        raise ArgumentError(f"{given}: give a function of your code, as path.py:{option}")
    module = _import_file(Path(where), given) if where.endswith(".py") else _import(where, spec)
    found = getattr(module, name, None)
    if not callable(found) or isinstance(found, type):
        what = "has no such name" if found is None else f"{name!r} is {type(found).__name__}"
        raise ArgumentError(f"{given}: {where!r}: {what}; name a function in it")
    function: Callable[..., Any] = found
    return function


def _check_callable_alone(factory: Callable[..., Any], spec: str, name: str) -> None:
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise ArgumentError(
            f"model={spec!r}: {name}() cannot be called without arguments ({error}); name a "
            "factory that needs none"
        ) from error
    except ValueError:  # a builtin whose signature is unknown: calling it will tell
        return


def _import(name: str, spec: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise FileError(
            f"model={spec!r}: cannot import {name!r}, which is not a module name; give "
            "'package.module:factory', 'path.py:factory', or an architecture as "
            "'64-100-50-10:sigmoid'"
        )
    sys.path.insert(0, str(Path.cwd()))  # as python -m does
    try:
        with reported_as_the_users(f"model={spec!r}", f"importing {name!r}"):
            return importlib.import_module(name)
    except ModelError as error:
        missing = error.__cause__
        absent = isinstance(missing, ModuleNotFoundError) and missing.name is not None
        if absent and f"{name}.".startswith(f"{missing.name}."):  # type: ignore[union-attr]
            raise FileError(
                f"model={spec!r}: cannot import {name!r} ({missing}); is it installed, or in this "
                "folder?"
            ) from error
        raise
    finally:
        sys.path.pop(0)


def _import_file(path: Path, given: str) -> ModuleType:
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "does not exist"
        raise FileError(f"{given}: {str(path)!r} {what}; give a file of Python code")
    name = f"crashsim_user_{path.stem}"  # never shadows an installed module
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    with reported_as_the_users(given, f"running {str(path)!r}"):
        found.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)  # no other process could import it
    return module


@contextmanager
def reported_as_the_users(given: str, doing: str) -> Iterator[None]:
    """What the user's code raises becomes a ModelError; an interrupt stays one.

    Args:
        given: the argument that names the code, with its value.
        doing: what was done.
    """
    try:
        yield
    except CrashsimError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{given}: {doing} raised {described(error)}; correct that code"
        ) from error


def load_value(path: Path, name: str, kind: type[T], given: str) -> T:
    """The object of this name in a file of code, which is run.

    Args:
        path: the file.
        name: of the object.
        kind: what it must be an instance of.
        given: the argument that names the object, with its value.

    Raises:
        FileError: there is no such file.
        ModelError: the code fails.
        ArgumentError: the file has no such object, or one of another kind.
    """
    found = getattr(_import_file(path, given), name, None)
    if found is None:
        raise ArgumentError(f"{given}: {str(path)!r} has no {name!r}; name a {kind.__name__} in it")
    if not isinstance(found, kind):
        raise ArgumentError(
            f"{given}: {name!r} is {type(found).__name__}, not a {_named(kind)}; name one"
        )
    return found


def _named(kind: type) -> str:
    return kind.__name__ if kind.__module__ == "builtins" else f"crashsim.{kind.__name__}"
