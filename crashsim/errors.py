"""What crashsim raises and warns with.

Every error names the argument, shows the offending value and says what to do instead. Each also
inherits the matching standard exception, so callers may catch either.
"""


class CrashsimError(Exception):
    """Base of every error crashsim raises on purpose. The command line exits with code 2."""


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


class CrashsimWarning(UserWarning):
    """The result is returned, but something about it deserves attention."""
