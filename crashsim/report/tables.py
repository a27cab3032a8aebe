"""Tables of a score: their cells, columns and rows, for terminal and HTML alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crashsim.metrics import RESERVED
from crashsim.results.estimate import TOO_FEW, Estimate
from crashsim.results.numbers import interval_numbers
from crashsim.results.record import Record

# How each kind is marked beside its number.
MARKS = {
    "exact": "=",
    "proof": "≤!",
    "bound": "≤",
    "statistical": "±",
    "estimate": "≈",
}
LEGEND = (
    ("=", "exact up to rounding"),
    ("≤!", "proved bound or interval"),
    ("≤", "bound, under an assumption"),
    ("±", "measured, with its confidence interval"),
    ("≈", "estimate without a guarantee"),
)
_NAMED = 4  # outputs that were asked for by number, the first, whose tails have columns
DOUBTED = ("✗", "contradicts another number: see the warnings")
THIN = ("?", "rests on few samples: the interval may be too narrow")


@dataclass(frozen=True)
class Cell:
    """A number as shown: the mark of its kind, the value, its interval, and a mark of doubt."""

    mark: str
    value: str
    interval: str = ""
    title: str = ""
    doubt: str = ""

    def __str__(self) -> str:
        parts = (self.doubt, self.mark, self.value, self.interval)
        return " ".join(part for part in parts if part)


@dataclass(frozen=True)
class Column:
    """A quantity, pooled over inputs."""

    title: str
    quantity: str
    output: int | str


def columns(score: Record) -> list[Column]:
    """The quantities of the main table."""
    found: list[Column] = []
    k = leading_output(score)
    moments = any(e.quantity in ("mean", "variance") for e in score.estimates)
    if not moments:
        pass  # outputs that are not finite have none
    elif k is not None:
        found.append(Column(f"E Δ, {score.output_in_words(k)}", "mean", k))
        found.append(Column(f"Var Δ, {score.output_in_words(k)}", "variance", k))
    else:
        found.append(Column(f"E Δ, {score.output_in_words(0)}", "mean", 0))
    if moments and not (score.of_loss and k is not None):  # where it is all outputs
        found.append(Column("Var Δ, all outputs", "variance", "all"))
    if score.epsilon is not None:
        for tail in score.named_outputs[:_NAMED] or [_tail_output(score, k or 0)]:
            which = score.output_in_words(tail)
            found.append(Column(f"P(|Δ| ≥ {score.epsilon:g}), {which}", "tail", tail))
    if any(quantity == "class-change" for _, quantity in score.estimates.of):
        found.append(Column("P(class changes)", "class-change", "all"))
    if any(quantity == "not-finite" for _, quantity in score.estimates.of):
        found.append(Column("P(not finite)", "not-finite", "all"))
    # What Monte Carlo alone measured over chips has a table of its own.
    over_chips = {m["name"] for m in score.chips["metrics"]} if score.chips else set()
    own = dict.fromkeys(
        quantity
        for method, quantity in score.estimates.of
        if quantity not in RESERVED and not (method == "monte-carlo" and quantity in over_chips)
    )
    return found + [Column(name, name, "all") for name in own]


def leading_output(score: Record) -> int | None:
    """The output that varies most, on average over inputs, of those that were named, if any were;
    None where none does."""
    known = [score.estimates.averages(method, "variance") for method in score.quoted]
    if not known:
        return None
    # Of several methods, the first that knows an output has the word.
    outputs, first = np.unique(np.concatenate([o for o, _ in known]), return_index=True)
    variances = np.concatenate([values for _, values in known])[first]
    if score.named_outputs:
        asked = np.isin(outputs, score.named_outputs)
        outputs, variances = outputs[asked], variances[asked]
    if not (variances > 0).any():
        return None
    return int(outputs[np.nanargmax(variances)])


def _tail_output(score: Record, default: int) -> int:
    """The output whose tail every method has: some compute that of a single one."""
    methods = (method for method, quantity in score.estimates.of if quantity == "tail")
    outputs = [score.estimates.averages(method, "tail")[0] for method in methods]
    single = [int(found[0]) for found in outputs if len(found) == 1]
    return single[0] if single else default


def rows(score: Record) -> list[tuple[str, list[Cell | None]]]:
    """Each method with its cells, one for each column; methods without any are left out."""
    inputs = score.estimates.inputs()
    doubted = _doubted(score)
    titles = columns(score)
    found = []
    for method in score.method_facts:
        cells = [
            cell(
                score.find(method, c.quantity, output=c.output),
                (method, c.quantity, c.output) in doubted,
            )
            for c in titles
        ]
        if any(cells):
            count = inputs.get(method, 0)
            some = f" ({count} inputs)" if 0 < count < score.inputs["count"] else ""
            found.append((method + some, cells))
    return found


def _doubted(score: Record) -> set[tuple[str, str, int | str]]:
    """Method, quantity and output of the numbers, of any input, that contradict another."""
    return {
        (method, c.quantity, output)
        for c in score.contradictions
        for method in c.doubted
        for output in c.outputs
    }


def legend(score: Record) -> tuple[tuple[str, str], ...]:
    """What the marks of the tables mean."""
    shown = {cell.doubt for _, cells in rows(score) for cell in cells if cell}
    return (*LEGEND, *(doubt for doubt in (DOUBTED, THIN) if doubt[0] in shown))


def worths(score: Record) -> list[tuple[str, str]]:
    """Each method that does better than plain samples, and how many those would have to be."""
    found = []
    titles = columns(score)
    for method in score.method_facts:
        parts = []
        for column in titles:
            estimate = score.find(method, column.quantity, output=column.output)
            if estimate is not None and estimate.worth is not None:
                parts.append(f"{number(estimate.worth)} for {column.title}")
        if parts:
            found.append((method, ", ".join(parts)))
    return found


def cell(estimate: Estimate | None, is_doubted: bool = False) -> Cell | None:
    """A number with its kind and interval, and whether it is in doubt; None for None."""
    if estimate is None:
        return None
    interval, value = "", number(estimate.value)
    one_sided = estimate.kind == "proof" and estimate.value == estimate.high
    if estimate.kind == "exact" or one_sided:
        pass
    elif estimate.low is not None and estimate.high is not None:
        value, low, high = interval_numbers(estimate.value, estimate.low, estimate.high)
        interval = f"[{low}, {high}]"
    elif estimate.kind == "statistical" and estimate.low is not None:
        interval = f"[{number(estimate.low)}, ∞)"
    title = estimate.kind + (f": {estimate.note}" if estimate.note else "")
    if estimate.worth is not None:
        title += f"; worth {number(estimate.worth)} plain samples"
    if is_doubted:
        title += "; contradicts another number"
    thin = THIN[0] if TOO_FEW in (estimate.note or "") else ""
    doubt = DOUBTED[0] if is_doubted else thin
    return Cell(MARKS[estimate.kind], value, interval, title, doubt)


def number(value: float, digits: int = 3) -> str:
    """Three significant digits, or as many as asked for."""
    return "0" if value == 0 else f"{value:.{digits}g}"
