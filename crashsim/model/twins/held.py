"""What a twin holds in the place of what weights are computed from, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Held:
    """What a twin holds in the place of what its weights are computed from.

    Attributes:
        sources: names of the tensors that weights were computed from, each with the weight's name.
        left: weights that are still computed in every pass, each with the reason.
    """

    sources: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
