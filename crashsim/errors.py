"""What crashsim raises and warns with.

Every error names the argument, shows the offending value and says what to do instead. Each also
inherits the matching standard exception, so callers may catch either.
"""

import re
from typing import Any

from crashsim.visible import visible

_LONGEST_WORD = 300  # of a message: longer values are shown by their two ends
_LONGEST = 1200  # of a message, likewise
_LONG_WORD = re.compile(rf"(\S{{120}})\S{{{_LONGEST_WORD - 160},}}(\S{{40}})")


class CrashsimError(Exception):
    """Base of every error crashsim raises on purpose. The command line exits with code 2."""

    def __init__(self, message: str = "") -> None:
        message = visible(message, lines=True)
        message = _LONG_WORD.sub(r"\1…\2", message)
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST - 400]} … {message[-400:]}"
        super().__init__(message)


class ArgumentError(CrashsimError, ValueError):
    """An argument has a value that makes no sense (a probability of 2, an empty batch, ...)."""


class SiteError(CrashsimError, LookupError):
    """No site of the model matches what was asked for."""


class ModelError(CrashsimError, TypeError):
    """The model cannot be analysed as it is (training mode, NaN weights, unusual outputs, ...)."""


class FileError(CrashsimError, OSError):
    """A file is missing, unreadable or not of the expected format."""


class MissingExtraError(CrashsimError, ImportError):
    """An optional dependency is needed; the message holds the install command."""


class NotApplicableError(CrashsimError):
    """A method says nothing about this model or fault; the message says why. Scores skip it."""


class NotFiniteError(ModelError, NotApplicableError):
    """Outputs are infinite or NaN under some faults, of which a method cannot make anything."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C (or a ``progress`` that raised KeyboardInterrupt) ended a run before its end.

    Attributes:
        partial: the result of what was finished, of the type that the function returns and marked
            as partial. Where nothing was finished, a plain KeyboardInterrupt is raised instead.
    """

    def __init__(self, message: str = "", partial: Any = None) -> None:
        super().__init__(visible(message, lines=True))
        self.partial = partial


class CrashsimWarning(UserWarning):
    """The result is returned, but something about it deserves attention."""

    def __init__(self, message: str = "") -> None:
        super().__init__(visible(message, lines=True))
