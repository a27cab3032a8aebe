"""Goodhart report: theory against Monte Carlo while training pushes theory down.

An optimiser that lowers a formula may bend the formula away from what it stands for (Goodhart's
law). A ``TrainingReport`` looks at held-out inputs now and then, and warns when the theoretical
variance and the measured one part.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crashsim.analytic.first_order import Analysis, mean_point_taylor, taylor
from crashsim.arguments import check_seed, is_number
from crashsim.coordinates.placement import Faults
from crashsim.errors import ArgumentError
from crashsim.importing import import_undrawn, needed
from crashsim.metrics import predicted_class
from crashsim.model.checks import check_module
from crashsim.model.inputs import read_inputs
from crashsim.model.twins.twin import twin_of
from crashsim.noticing import collecting, notice
from crashsim.results.estimate import Estimate
from crashsim.results.estimates import Estimates
from crashsim.sampling.monte_carlo import check_sampling, monte_carlo
from crashsim.space import FaultSpace
from crashsim.writing import write_picture

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Look:
    """One look at a network in training; variances of Delta summed over outputs, mean over inputs.

    Attributes:
        step: as the caller counts.
        taylor: the theoretical variance that ``CrashVariance`` penalises (at no faults).
        mean_point: the same at the mean point.
        measured, low, high: Monte Carlo's, with its interval.
        accuracy: clean accuracy on the held-out inputs, if their classes are known.
        crashed_accuracy: accuracy averaged over the Monte Carlo faults, likewise.
    """

    step: int
    taylor: float
    mean_point: float
    measured: float
    low: float
    high: float
    accuracy: float | None = None
    crashed_accuracy: float | None = None

    @property
    def ratio(self) -> float:
        """Theory over measurement: 1 if the penalty is still the thing itself."""
        return self.taylor / self.measured if self.measured > 0 else 1.0


class TrainingReport:
    """Follows theory and Monte Carlo on held-out inputs during training.

        report = TrainingReport(model, held_out, NeuronCrash(p=0.05), targets=classes)
        for epoch in range(epochs):
            ...
            report.look(epoch)

    Args:
        model: the network in training; put in evaluation mode for each look, and back.
        inputs: (B, ...) held-out inputs.
        faults, sites: as for ``CrashVariance``.
        targets: (B,) their classes, to follow accuracies too.
        samples: Monte Carlo samples of a look.
        band: a warning is given when theory over measurement leaves it, by more than Monte Carlo's
            interval explains.
        seed: of Monte Carlo; all looks see the same faults.

    Attributes:
        looks: what was seen, in order.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        faults: Faults,
        sites: str = "hidden",
        *,
        targets: Tensor | None = None,
        samples: int = 500,
        band: tuple[float, float] = (0.5, 2.0),
        seed: int = 0,
    ) -> None:
        check_module(model)
        check_sampling(samples, None, None, 0.95)
        check_seed(seed)
        pair = isinstance(band, tuple | list) and len(band) == 2 and all(map(is_number, band))
        if not pair or not 0 < band[0] < 1 < band[1]:
            raise ArgumentError(f"band={band!r}; give two numbers around 1, such as (0.5, 2)")
        count = len(read_inputs(inputs))
        if targets is not None and not (isinstance(targets, Tensor) and targets.shape == (count,)):
            what = list(targets.shape) if isinstance(targets, Tensor) else repr(targets)
            raise ArgumentError(f"targets: {what} for {count} inputs; give a class for each")
        self.model, self.inputs, self.faults, self.sites = model, inputs, faults, sites
        self.targets, self.samples, self.band, self.seed = targets, samples, band, seed
        self.looks: list[Look] = []

    def look(self, step: int) -> Look:
        """Measures the network as it is now.

        Warns:
            CrashsimWarning: theory over measurement is outside the band.
        """
        with torch.no_grad():
            space = FaultSpace(_evaluating(self.model), self.inputs, self.faults, self.sites)
            analysis = Analysis()
            taylor(space, analysis)
            mean_point_taylor(space, analysis)
            with collecting():
                sampled = monte_carlo(space, samples=self.samples, seed=self.seed)
        accuracy = crashed = None
        if self.targets is not None:
            targets = self.targets.cpu().numpy()
            accuracy = float((predicted_class(space.clean()) == targets).mean())
            outputs = sampled.kept + space.clean()
            crashed = float((predicted_class(outputs) == targets).mean())
        measured = _total(sampled.estimates, "monte-carlo")
        found = Look(
            step,
            _total(analysis.estimates, "taylor").value,
            _total(analysis.estimates, "mean-point-taylor").value,
            measured.value,
            measured.low or 0.0,
            float("inf") if measured.high is None else measured.high,
            accuracy,
            crashed,
        )
        self.looks.append(found)
        self._warn(found)
        return found

    def _warn(self, look: Look) -> None:
        low, high = self.band
        if look.taylor > high * look.high:
            side = "above"
        elif look.taylor < low * look.low:
            side = "below"
        else:
            return
        nearer = abs(look.mean_point - look.measured) < abs(look.taylor - look.measured)
        remedy = "use at='mean'" if nearer else "lower the strength, or use CrashTraining"
        notice(
            f"step {look.step}: the penalised variance is {look.ratio:.2g} times the measured one, "
            f"{side} the band {low:g} to {high:g}: training has bent the formula away from the "
            f"faults; {remedy}",
            stacklevel=3,
        )

    @property
    def bent(self) -> list[int]:
        """Steps whose ratio was outside the band beyond Monte Carlo's interval."""
        low, high = self.band
        return [
            look.step
            for look in self.looks
            if look.taylor > high * look.high or look.taylor < low * look.low
        ]

    def to_dict(self) -> dict[str, Any]:
        looks = [{**asdict(look), "ratio": look.ratio} for look in self.looks]
        return {"schema": 1, "band": list(self.band), "bent": self.bent, "looks": looks}

    def table(self) -> Table:
        """For ``rich.print``."""
        import_undrawn("rich.table")
        from rich.table import Table

        table = Table(title="Penalised variance against measured", title_justify="left", box=None)
        for name in ("step", "theory", "mean point", "Monte Carlo", "ratio", "clean", "crashed"):
            table.add_column(name, justify="right")
        for look in self.looks:
            table.add_row(
                str(look.step),
                f"{look.taylor:.3g}",
                f"{look.mean_point:.3g}",
                f"{look.measured:.3g} [{look.low:.3g}, {look.high:.3g}]",
                f"{look.ratio:.2f}",
                *("" if a is None else f"{a:.1%}" for a in (look.accuracy, look.crashed_accuracy)),
            )
        return table

    def plot(self, path: str | Path) -> None:
        """Writes a picture of both variances and their ratio along training.

        Args:
            path: whose ending says what kind of picture (``.png``, ``.svg``, ``.pdf``, ...).

        Raises:
            ArgumentError: no path, or an ending that matplotlib does not know.
            FileError: the file cannot be written.
        """
        figure = needed("matplotlib.figure", "a plot").Figure(
            figsize=(7, 4.5), layout="constrained"
        )
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        steps = [look.step for look in self.looks]
        above.plot(steps, [look.taylor for look in self.looks], label="theory, at no faults")
        above.plot(steps, [look.mean_point for look in self.looks], "--", label="at the mean point")
        above.plot(steps, [look.measured for look in self.looks], "k.", label="Monte Carlo")
        above.set(yscale="log", ylabel="Var Δ, all outputs")
        above.legend(fontsize=8)
        below.axhspan(*self.band, color="tab:green", alpha=0.15)
        below.plot(steps, [look.ratio for look in self.looks], "k.-")
        below.set(yscale="log", ylabel="theory / measured", xlabel="step")
        write_picture("path", path, figure)


def _total(estimates: Estimates, method: str) -> Estimate:
    return next(
        e
        for e in estimates
        if (e.method, e.quantity, e.input, e.output) == (method, "variance", "all", "all")
    )


def _evaluating(model: nn.Module) -> nn.Module:
    """A twin of the model in evaluation mode, which the model itself need not be in."""
    twin = twin_of(model)
    for module in twin.modules():
        module.training = False
    return twin
