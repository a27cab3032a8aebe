"""The pictures of a report, as inline SVG."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from threading import RLock
from types import MappingProxyType
from typing import Any

import numpy as np

from crashsim.errors import MissingExtraError
from crashsim.results.estimates import values_of
from crashsim.results.record import Record
from crashsim.results.schema import ChipFacts
from crashsim.visible import visible

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise MissingExtraError("report: figures need matplotlib: pip install matplotlib") from error

COLOURS = {
    "exact": "#111111",
    "monte-carlo": "#111111",
    "saddlepoint": "#0f766e",
    "chernoff": "#2563eb",
    "chebyshev": "#dc2626",
    "linear-exact": "#7c3aed",
    "certificate": "#9333ea",
    "importance-sampling": "#0f172a",
    "hardware": "#b45309",
    "pairs": "#7c3aed",
    "mean-point-curvature": "#db2777",
    "taylor": "#dc2626",
    "single": "#d97706",
    "mean-point-taylor": "#2563eb",
    "mean-point-single": "#0f766e",
}
_OTHER = "#64748b"
_DOTS = 1500  # of a scatter plot, so that the file stays small
_WIDE = 20  # ratio of largest to smallest that takes a log scale
_FLOOR = 1e-9
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": "#334155",
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "xtick.color": "#475569",
    "ytick.color": "#475569",
    "grid.color": "#e2e8f0",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "path",  # the same picture whatever fonts the reader has
    "svg.hashsalt": "crashsim",  # the same file for the same score
    "text.usetex": False,  # formulas may come from a file, and TeX reads and writes others
}
_LABEL = 60  # characters
# Of a formula that is drawn; those that are derived are a third of it, and two braces deep.
_LONGEST = 5000
_DEEPEST = 8
_LINES = 40


_drawing = RLock()  # matplotlib has one style for all threads


@contextmanager
def _styled(more: Any = MappingProxyType({})) -> Iterator[None]:
    with _drawing, mpl.rc_context({**_STYLE, **more}):
        yield


@contextmanager
def figure_of(width: float, height: float, columns: int = 1) -> Iterator[tuple[Figure, Any]]:
    """A figure in the style of reports, and its axes."""
    with _styled():
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns)
        yield figure, axes


def svg(figure: Figure) -> str:
    """The figure as text that a page holds."""
    with _styled():
        buffer = StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # The page scales pictures: a fixed size in points would not fit a narrow window.
    return re.sub(r' (?:width|height)="[^"]+pt"', "", text, count=2)


def tail_curves(score: Record) -> str | None:
    """P(|Delta| >= epsilon) against epsilon on a log scale, every method on it."""
    curves = score.curves
    if curves is None:
        return None
    with figure_of(7.4, 4.2) as (figure, axes):
        grid = np.array(curves.epsilon)
        for method, values in curves.methods.items():
            if method == "monte-carlo":
                continue
            y = np.array(values, dtype=float)
            if np.isnan(y).any():
                mark, label = (
                    ("v", f"{method} (proof)") if method == "certificate" else ("x", _label(method))
                )
                axes.semilogy(grid, y, mark, ms=6, color=COLOURS.get(method, _OTHER), label=label)
                continue
            axes.semilogy(
                grid, np.where(y > _FLOOR / 10, y, np.nan), label=_label(method),
                color=COLOURS.get(method, _OTHER), lw=1.8,
                ls="-" if method in ("exact", "saddlepoint") else "--",
            )  # fmt: skip
        if "monte-carlo" in curves.methods and curves.low is not None and curves.high is not None:
            y = np.array(curves.methods["monte-carlo"])
            low, high = np.array(curves.low), np.array(curves.high)
            axes.fill_between(
                grid, np.maximum(low, _FLOOR / 10), high, color="#111111", alpha=0.12, lw=0,
                label=f"monte-carlo, {100 * score.confidence:.3g}% interval",
            )  # fmt: skip
            axes.semilogy(
                grid, np.where(y > 0, y, np.nan), "o", ms=3, color="#111111", label="monte-carlo"
            )
        if score.epsilon is not None and score.epsilon <= grid[-1]:
            axes.axvline(score.epsilon, color="#64748b", lw=1, ls=":")
            axes.annotate(
                f" ε = {score.epsilon:g}", (score.epsilon, 1.7), color="#64748b", va="bottom",
                annotation_clip=False,
            )  # fmt: skip
        axes.set_ylim(_FLOOR, 1.5)
        axes.set_xlim(0, grid[-1])
        axes.grid(True, which="major")
        axes.set_xlabel(
            f"ε, in units of {score.output_in_words(curves.output)}, on input {curves.input}"
        )
        axes.set_ylabel("P(|Δ| ≥ ε)")
        axes.legend(loc="lower left")
        return svg(figure)


def histogram(score: Record) -> str | None:
    """Delta of the output that moves most, with the predicted laws over it."""
    h = score.histogram
    if h is None:
        return None
    with figure_of(7.4, 3.2) as (figure, axes):
        edges = np.array(h.edges)
        centres = (edges[1:] + edges[:-1]) / 2
        axes.stairs(h.counts, edges, fill=True, color="#cbd5e1", label="monte-carlo samples")
        if h.saddlepoint is not None:
            axes.plot(
                centres, h.saddlepoint, color=COLOURS["saddlepoint"], lw=1.8, label="saddlepoint"
            )
        if h.normal is not None:
            axes.plot(centres, h.normal, color="#dc2626", lw=1.2, ls="--", label="normal law")
        # Most samples may lie in one bin (no crash at all): a log scale shows the others too.
        axes.set_yscale("symlog", linthresh=10)
        axes.set_ylim(0, max(h.counts) * 1.6)
        axes.set_xlabel(f"Δ of {score.output_in_words(h.output)} on input {h.input}")
        axes.set_ylabel("samples per bin")
        axes.legend(loc="upper right")
        return svg(figure)


def scatter(score: Record) -> str | None:
    """Each input's and output's mean and variance, theory against Monte Carlo."""
    if score.left_out:  # a file with the largest numbers alone
        return None
    methods = [
        m
        for m in ("taylor", "single", "mean-point-taylor", "mean-point-single", "pairs")
        if values_of(score.estimates, m, "variance") is not None
    ]
    if not methods or values_of(score.estimates, "monte-carlo", "variance") is None:
        return None
    with figure_of(7.4, 3.7, columns=2) as (figure, panels):
        for axes, quantity, title in zip(
            panels, ("mean", "variance"), ("E Δ", "Var Δ"), strict=True
        ):
            measured = values_of(score.estimates, "monte-carlo", quantity)
            assert measured is not None
            known = ~np.isnan(measured)  # of very many outputs, some are
            thin = slice(None, None, max(1, int(known.sum()) // _DOTS))
            x = measured[known][thin]
            if quantity == "variance" and not (x > 0).any():
                continue
            for method in methods:
                values = values_of(score.estimates, method, quantity, shape=measured.shape)
                assert values is not None
                best = method == methods[-1]
                axes.plot(
                    x, values[known][thin], "o", ms=3, mew=0, alpha=0.8 if best else 0.4,
                    color=COLOURS.get(method, _OTHER), label=method,
                )  # fmt: skip
            ends = np.array([x[x > 0].min() if quantity == "variance" else x.min(), x.max()])
            axes.plot(ends, ends, color="#64748b", lw=1, zorder=0)
            if quantity == "variance" and ends[1] > _WIDE * ends[0]:
                axes.set_xscale("log")
                axes.set_yscale("log")
            else:
                axes.locator_params(axis="x", nbins=4)
            axes.set_title(title)
            axes.set_xlabel("Monte Carlo")
            axes.set_ylabel("theory")
            axes.grid(True)
        panels[0].legend(loc="upper left")
        return svg(figure)


def shares(score: Record) -> str | None:
    """The share of the variance that each site and the leading coordinates contribute."""
    known = [(s, s["share"]) for s in score.sites if s["share"] is not None]
    if not any(share for _, share in known):
        return None
    sites = sorted(known, key=lambda pair: -pair[1])[:10]
    top = score.top[:10]
    with figure_of(7.4, 0.9 + 0.24 * max(len(sites), len(top), 3), columns=2) as (figure, panels):
        left = [f"{_short(s['name'])} ({s['coordinates']})" for s, _ in sites]
        right = [f"{_short(t['site'])}{t['index']}" for t in top]
        for axes, labels, values, title in (
            (panels[0], left, [share for _, share in sites], "by site (coordinates)"),
            (panels[1], right, [t["share"] for t in top], "the ten that matter most"),
        ):
            axes.barh(range(len(labels)), [100 * v for v in values], color="#0f766e", height=0.62)
            # A name is not a formula, whatever it holds.
            axes.set_yticks(range(len(labels)), labels, parse_math=False)
            axes.set_ylim(max(len(sites), len(top), 3) - 0.4, -0.6)
            axes.set_title(title)
            axes.set_xlabel("% of Var Δ")
            axes.grid(True, axis="x")
        return svg(figure)


def raster(facts: ChipFacts) -> str:
    """Spikes of one input on the intact and on the broken chip."""
    layers = facts["raster"]["layers"]
    duration = 1000 * facts["raster"]["duration"]
    rows = sum(layer["neurons"] for layer in layers)
    with figure_of(7.4, 1.2 + min(0.03 * rows, 5.0), columns=2) as (figure, panels):
        for axes, broken, title in ((panels[0], False, "intact"), (panels[1], True, "broken")):
            base, ticks = 0, []
            for i, layer in enumerate(layers):
                spikes = layer["crashed"] if broken else layer["clean"]
                y = base + np.array(spikes["rows"])
                axes.plot(
                    1000 * np.array(spikes["times"]), y, "|", ms=2.6, mew=0.7, color="#0f172a"
                )
                if broken:
                    for dead in layer["dead"]:
                        axes.axhspan(base + dead - 0.5, base + dead + 0.5, color="#fca5a5", lw=0)
                ticks.append((base + layer["neurons"] / 2, f"layer {i + 1}"))
                base += layer["neurons"]
                axes.axhline(base - 0.5, color="#94a3b8", lw=0.6)
            axes.set_title(title)
            axes.set_xlim(0, duration)
            axes.set_ylim(base - 0.5, -0.5)
            axes.set_xlabel("ms")
            axes.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
            axes.tick_params(axis="y", length=0)
        return svg(figure)


def rates(facts: ChipFacts) -> str:
    """Each neuron's rate on the intact chip against its activation in the network."""
    layers = facts["rates"]
    with figure_of(7.4, 2.9, columns=max(2, len(layers))) as (figure, panels):
        for i, axes in enumerate(panels):
            if i >= len(layers):
                axes.set_axis_off()
                continue
            x, y = np.array(layers[i]["network"]), np.array(layers[i]["chip"])
            ends = np.array([min(x.min(), y.min()), max(x.max(), y.max())])
            axes.plot(ends, ends, color="#64748b", lw=1, zorder=0)
            axes.plot(x, y, "o", ms=2.5, mew=0, alpha=0.6, color="#0f766e")
            axes.set_title(f"layer {i + 1}")
            axes.set_xlabel("activation, network")
            axes.set_ylabel("spike rate, chip, as activation" if i == 0 else "")
            axes.grid(True)
        return svg(figure)


def _short(name: str) -> str:
    """A name of any length and any characters as a line that can be read."""
    return visible(name if len(name) <= _LABEL else f"{name[: _LABEL - 20]}…{name[-19:]}")


def _label(name: str) -> str:
    """The same where $ begins a formula."""
    return _short(name).replace("$", r"\$")


def formula(latex: str) -> str | None:
    """A formula drawn; None where it is too long or too deep, or matplotlib cannot draw it."""
    if len(latex) > _LONGEST or _depth(latex) > _DEEPEST:
        return None
    lines = [line.replace("&", "") for line in _lines(latex)]
    if not 0 < len(lines) <= _LINES:
        return None
    try:
        with _styled({"mathtext.fontset": "cm"}):
            figure = Figure(figsize=(7.4, 0.42 * len(lines)))
            for i, line in enumerate(lines):
                y = 1 - (i + 0.5) / len(lines)
                figure.text(0.0, y, f"${line}$", fontsize=12, va="center", color="#0f172a")
            return svg(figure)
    except Exception:  # whatever matplotlib dislikes: it is shown as text
        return None


def _depth(latex: str) -> int:
    """How deep its braces and brackets are nested."""
    depth = deepest = 0
    for mark in re.findall(r"[{}]|\\left(?![a-z])|\\right(?![a-z])", latex):
        depth += 1 if mark in ("{", r"\left") else -1
        deepest = max(deepest, depth)
    return deepest


def _lines(latex: str) -> list[str]:
    """The lines of an aligned environment, in the dialect that mathtext reads."""
    body = re.sub(r"\\(begin|end)\{[a-z*]+\}", "", latex)
    body = re.sub(r"\\[Bb]ig+[lr]?", "", body)
    body = body.replace(r"\operatorname{Var}", r"\mathrm{Var}")
    return [line.strip().rstrip("\\").strip() for line in body.split("\\\\") if line.strip()]
