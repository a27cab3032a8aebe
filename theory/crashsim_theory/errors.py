"""The one error this package raises for wrong input."""


class TheoryError(ValueError):
    """Input the theory cannot accept: names the argument, shows the value, and says what to do."""

    def __init__(self, argument: str, value: object, remedy: str) -> None:
        self.argument = argument
        self.value = value
        self.remedy = remedy
        super().__init__(f"{argument} = {_short(value)}: {remedy}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
