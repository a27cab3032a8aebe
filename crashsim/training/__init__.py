"""Training of networks that tolerate faults, and hardening."""

from importlib import import_module
from typing import Any

_CLASSIFIER = (
    "Recipe",
    "accuracy",
    "train_classifier",
)  # which stood here before they had a module


def __getattr__(name: str) -> Any:
    if name in _CLASSIFIER:
        return getattr(import_module("crashsim.training.classifier"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
