"""What a score is asked for, beside the model, its inputs and their faults."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crashsim.analytic.gains import MEMORY
from crashsim.campaign.store import Store
from crashsim.metrics import AskedMetrics
from crashsim.scoring.judging import Judging

if TYPE_CHECKING:
    from crashsim_hardware import Chip

CONFIDENCE = 0.95
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the caller of ``score`` wants, checked.

    Attributes:
        epsilon: of the tails P(|Delta| >= epsilon), in the units of the outputs; None: no tails.
        delta: with ``epsilon``, the target P(|Delta| >= epsilon) <= delta.
        samples: the number of Monte Carlo samples, or the most with ``rel_width``; None: what
            crashsim chooses.
        rel_width: the relative half-width at which Monte Carlo stops.
        seed: of everything drawn.
        confidence: of measured intervals.
        memory: bytes that gains and what is made of them may take, about.
        chip: the spiking chip, where the model is the rate curves of one.
        outputs: those that tails, certificates and rare events are asked of; None: the one that
            varies most.
        metrics: asked of each input, with the targets that they compare the outputs with.
        judging: what is asked of whole chips; None: nothing.
        executor: that runs blocks of samples and of chips; None: they run here.
        store: that keeps them.
    """

    epsilon: float | None = None
    delta: float | None = None
    samples: int | None = None
    rel_width: float | None = None
    seed: int = 0
    confidence: float = CONFIDENCE
    memory: int = MEMORY
    chip: Chip | None = None
    outputs: tuple[int, ...] | None = None
    metrics: AskedMetrics = field(default_factory=AskedMetrics)
    judging: Judging | None = None
    executor: Executor | None = None
    store: Store | None = None
