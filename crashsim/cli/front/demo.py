"""``crashsim score`` without a model: a small network on digits, and what to type next."""

from __future__ import annotations

from crashsim.cli.terminal import printing, tell
from crashsim.errors import ArgumentError

ARCHITECTURE = "64-50-10:relu"
DATA = "digits"
_NEXT = (
    "crashsim score 64-100-50-10:sigmoid --train digits --epsilon 0.5 --report report.html",
    "crashsim score path.py:make_model --inputs x.npz",
    "crashsim score --help",
)


def start(inputs: str, **given: object) -> tuple[str, str]:
    """The model of the demo, and the data to train it on; says so.

    Args:
        inputs: the examples that were asked for.
        given: other options of a model.

    Raises:
        ArgumentError: something was asked for that is for a model of the user's.
    """
    asked = [name for name, value in given.items() if value]
    if inputs != DATA:
        asked.append("inputs")
    if asked:
        raise ArgumentError(
            f"model: missing beside --{asked[0]}; give an architecture (64-100-10:relu), a file, "
            "or path.py:factory"
        )
    tell(f"no model given: the demo, {ARCHITECTURE} trained on the digits of scikit-learn", "dim")
    return ARCHITECTURE, DATA


def say_next() -> None:
    """What to type next."""
    if not printing().quiet:
        tell("next:", "bold")
        for line in _NEXT:
            tell(f"  {line}")
