"""Models, data, architectures and users' code: what may run code, and what never does."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crashsim.files.data import load_data, load_examples
    from crashsim.files.models import load_model, save_model

__all__ = ["load_data", "load_examples", "load_model", "save_model"]


def __getattr__(name: str) -> Any:
    """Loads torch where it is used, not where a limit of files is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "models" if name.endswith("model") else "data"
    return getattr(import_module(f"{__name__}.{home}"), name)
