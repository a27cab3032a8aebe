"""Score: the result of one analysis, every method side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from crashsim.analytic.gains import MEMORY
from crashsim.analytic.rounding import least_rounding
from crashsim.arguments import callback, instance, whole
from crashsim.arguments import path as file_path
from crashsim.campaign.store import Store, store_of
from crashsim.coordinates.placement import Faults
from crashsim.errors import FileError, Interrupted
from crashsim.files.limits import read_text
from crashsim.model.inputs import BatchAxis, ModelInputs
from crashsim.model.sites.time_axis import StepsAxis
from crashsim.model.twins.resetting import Reset
from crashsim.notebook import fragment
from crashsim.noticing import collecting, notice, say_now
from crashsim.results.agreement import agreements
from crashsim.results.contradictions import contradictions
from crashsim.results.flat import numbers_of_score
from crashsim.results.record import Record
from crashsim.results.schema import Curves, Histogram
from crashsim.results.verdict import headline, verdict
from crashsim.sampling.chips.facts import chips_facts
from crashsim.sampling.monte_carlo import DEFAULT_SAMPLES
from crashsim.scoring.cautions import doubts_of
from crashsim.scoring.curves import curves_of, histogram_of
from crashsim.scoring.method import Method
from crashsim.scoring.methods import METHODS
from crashsim.scoring.planning.costs import cost_of_sample
from crashsim.scoring.planning.plan import Plan
from crashsim.scoring.planning.preview import told_if_long
from crashsim.scoring.preparing import Options, prepared
from crashsim.scoring.provenance import (
    describe_fault,
    describe_model,
    describe_sites,
    leading_coordinates,
    versions,
)
from crashsim.scoring.request import CONFIDENCE, Progress, Request
from crashsim.scoring.running import INTERRUPTED, Results, compute
from crashsim.scoring.timing import timing
from crashsim.space import FaultSpace
from crashsim.working import telling
from crashsim.writing import check_files, write_files, write_text

if TYPE_CHECKING:
    from crashsim_hardware import Chip


@dataclass(frozen=True)
class Score(Record):
    """The result of one analysis: a record that saves, loads, and shows itself.

    Its attributes are those of ``crashsim.results.record.Record``.
    """

    def save(self, path: str | Path, arrays: str | Path | None = None) -> None:
        """Writes the score as JSON; with ``arrays``, all its numbers as an ``.npz`` file, too.

        Raises:
            FileError: a file cannot be written.
        """
        path = file_path("path", path)
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        if arrays is None:
            write_text("path", path, text)
            return
        arrays = file_path("arrays", arrays)
        check_files([("path", path), ("arrays", arrays)])
        write_files("path", (path, text.encode()), (arrays, self.estimates_file()))

    @classmethod
    def load(cls, path: str | Path) -> Score:
        """Reads a score from JSON.

        Raises:
            FileError: it cannot be read, is no score, or would take too much memory (see
                ``crashsim.files.limits``).
        """
        path = file_path("path", path)
        remedy = "give a file that `crashsim score --json` wrote"
        try:
            return cls.from_dict(json.loads(read_text(f"score={str(path)!r}", path, remedy)))
        except FileError as error:
            if str(error).startswith("score="):
                raise
            raise FileError(f"score={str(path)!r}: {str(error).removeprefix('score: ')}") from error
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FileError(
                f"score={str(path)!r}: cannot be read as JSON ({reason}); {remedy}"
            ) from error

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Score:
        """What ``to_dict`` wrote. Version 0.1 did not say what its methods are: the table does.

        Raises:
            FileError: not a score, or one of another schema.
        """
        found = super().from_dict(plain)
        if found.methods:
            return found
        names = {part.method for part in found.estimates.parts} | found.skipped.keys()
        return replace(found, methods=[m.facts() for m in METHODS if m.name in names])

    @property
    def verdict(self) -> str:
        """The answer in one or two sentences."""
        return verdict(self)

    def metrics(self) -> dict[str, float]:
        """A flat dict of numbers, as MLflow and W&B log; see ``crashsim.results.flat``."""
        return numbers_of_score(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings; what ``--json`` writes."""
        plain = super().to_dict()
        return {"schema": plain.pop("schema"), "verdict": self.verdict, **plain}

    def to_text(self, width: int = 100) -> str:
        """Tables for a terminal of this width."""
        width = whole("width", width, 20, 10_000)
        from crashsim.report.text import to_text

        return to_text(self, width)

    def to_csv(self, path: str | Path | None = None) -> str:
        """Every estimate as text, a line each; also written, where a path is given.

        Raises:
            FileError: it cannot be written.
        """
        from crashsim.results.tables import of_scores

        return of_scores([self]).to_csv(path)

    def to_parquet(self, path: str | Path) -> None:
        """Writes every estimate as a Parquet file, with the columns of ``to_csv``.

        Raises:
            FileError: it cannot be written.
            MissingExtraError: without pyarrow; names the command that installs it.
        """
        from crashsim.results.tables import of_scores

        of_scores([self]).to_parquet(path)

    def to_html(self) -> str:
        """A self-contained HTML report."""
        from crashsim.report.html import to_html

        return to_html(self)

    def to_dataframe(self) -> Any:
        """Every estimate as a DataFrame of pandas, a row each, with the columns of ``to_csv``.

        Raises:
            MissingExtraError: without pandas; names the command that installs it.
        """
        from crashsim.results.tables import of_scores

        return of_scores([self]).to_dataframe()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from crashsim.report.screen import figures, notes

        share = f"{100 * self.confidence:.4g}% interval"
        titles = [share if name == "interval" else name for name in figures.TITLES]
        told = [*figures.wide(self), *notes.lines(self.warnings)]
        about = f"seed {self.seed}; .to_text() has every method, .to_html() is a page"
        title = f"crashsim: {self.model['name']}"
        return fragment(title, headline(self), titles, figures.figures(self), [*told, about])

    def __str__(self) -> str:
        return self.to_text()


def score(
    model: nn.Module,
    inputs: ModelInputs,
    faults: Faults | None = None,
    sites: str = "hidden",
    epsilon: float | None = None,
    methods: Iterable[str | Method] | None = None,
    samples: int | None = None,
    rel_width: float | Mapping[str, float] | None = None,
    seed: int = 0,
    *,
    readout: str | int | None = None,
    delta: float | None = None,
    outputs: Iterable[int] | Literal["loss"] | None = None,
    loss: str | Callable[[Tensor, Tensor], Tensor] | None = None,
    hardware: bool = False,
    proofs: bool = False,
    confidence: float = CONFIDENCE,
    progress: Progress | None = None,
    names: Mapping[str, str] | None = None,
    chip: Chip | None = None,
    targets: Any = None,
    metrics: Iterable[Any] | None = None,
    accept: Mapping[str, float] | None = None,
    moved: int | None = None,
    virtual: int | None = None,
    reset: Reset | None = None,
    batch_axis: BatchAxis = 0,
    steps_axis: StepsAxis | None = None,
    memory: int = MEMORY,
    budget: float | str | None = None,
    executor: Executor | None = None,
    store: str | Path | Store | None = None,
) -> Score:
    """How far the outputs move under random faults, by theory and by Monte Carlo.

    Args:
        model: any module, in evaluation mode.
        inputs: (B, ...) tensor or array; or a tuple of positional or a mapping of keyword
            arguments, in which every tensor has the batch first. Or inputs and targets: a pair
            (x, y) for a model that takes one argument; a mapping with ``labels`` or ``targets``
            that the model does not take; a ``Dataset`` or ``DataLoader`` of torch, which is read
            from its start, a few examples at a time, as often as it takes.
        faults: a fault, struck at ``sites``, or a mapping from sites to faults; by default
            ``NeuronCrash(p=0.01)``.
        sites: name or glob of the sites; see ``crashsim.model.sites.site.select_sites``.
        epsilon: also P(|Delta| >= epsilon), in the units of the outputs.
        methods: names of methods; by default all that apply and are affordable. Names with a ``+``
            (``["+pairs"]``) are added to those, as are methods of your own
            (``[crashsim.Method(...)]``), unless others are named.
        samples: number of Monte Carlo samples (by default 10,000, fewer for large models); what
            they cost, ``crashsim.plan`` says beforehand.
        rel_width: stop Monte Carlo at this relative half-width of the pooled variances; or by
            quantity, ``variance`` or a metric: ``{"accuracy": 0.02}``.
        seed: of Monte Carlo; the same seed gives the same numbers.
        readout: which tensor of a structured output is analysed: a name, with dots for what is
            nested, or a number. By default its only floating-point tensor with the batch first,
            or ``logits``.
        delta: with ``epsilon``, a target P(|Delta| >= epsilon) <= delta: also say which p, width
            and number of replicas reach it.
        outputs: numbers of the outputs that tails, certificates, importance sampling, quantiles
            and the answers of a target are asked of; by default the one that varies most (and
            quantiles of the 64 that vary most). Means and variances are of every output anyway.
            Or ``"loss"``: the loss of each example is read in place of the outputs, so that
            everything is asked of one number in place of K; targets are needed for it.
        loss: with ``outputs="loss"``, which: ``"cross-entropy"`` (in nats), ``"mse"``, or a
            function of (outputs, targets), made of torch's operations, that returns a number for
            each example. By default cross-entropy of classes, and the mean squared error of other
            numbers in the shape of the outputs.
        hardware: also run the faults on a spiking chip (``crashsim.chip.spiking``),
            which takes some seconds; the same as naming ``hardware`` among the methods.
        proofs: also prove what can be proved (``certificate``, ``linear-exact``, ``remainder``),
            which takes about a second for each bound; the same as naming those methods.
        confidence: of Monte Carlo's intervals.
        progress: called with a method's name, the steps done and their number.
        names: what to call the ``model`` and the ``inputs`` in reports.
        chip: the spiking chip, where the model is the rate curves of one (a NIR graph).
        targets: (B, ...) what metrics compare the outputs with, a row for each input.
        metrics: estimate these: names (``"accuracy"``, ``"top-5"``; ``crashsim.metrics.NAMES``),
            events and means of your own (``crashsim.Event``, ``crashsim.Mean``), or functions of
            (outputs, targets) that return a number for each example. With targets, by default
            what is usual for them. Monte Carlo judges each chip (sample) on all examples; the
            estimates have the metric's name as ``quantity``, and ``chips`` of the result holds
            percentiles over chips and more.
        accept: by metric, the worst value with which a chip is accepted (``{"accuracy": 0.9}``):
            also estimate the share of such chips. By default an accuracy a point below the clean.
        moved: on how many examples, the first, is looked at how far outputs move. By default on all
            of up to 1,000 labelled ones, and 400 of more.
        virtual: number of chips, besides, that the linear surrogate of the outputs alone judges:
            metrics over chips are then theirs, corrected by the real chips, without bias.
        reset: a function of the model that resets the state which it keeps between calls (of a
            twin); layers of snntorch, spikingjelly and sinabs need none.
        batch_axis: the axis of the inputs that is the batch: 1 for (T, B, ...); or of each by name.
        steps_axis: the axis of the struck values that is time, where no recurrent or spiking layer
            shows it: 1 for (B, T, ...); or a mapping from sites to axes. See ``FaultSpace``.
        memory: bytes that theory's gains and what is made of them may take, about (2 GiB): those of
            many coordinates are kept where they fit, and else made anew whenever they are read.
        budget: of all of it: a time such as ``"2m"``, of a core that does 1e10 operations a second,
            or a number of operations. Methods and samples are chosen to fit, the same on every
            machine; those that are named are computed all the same.
        executor: an ``Executor`` of concurrent.futures (``crashsim.Workers(2)``: two processes),
            which runs blocks of samples and of chips: the numbers are the same as without.
        store: a folder that keeps finished blocks of them. The same call goes on where it was
            ended, whatever ended it, or adds samples to those that are there.

    Raises:
        CrashsimError: an argument makes no sense, or the model cannot be analysed.
        Interrupted: Ctrl-C; its ``partial`` is the score of the methods that were finished, with
            the samples that Monte Carlo had drawn.

    Example:
        >>> import torch, crashsim
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> result = crashsim.score(net.eval(), torch.ones(1, 4), crashsim.NeuronCrash(p=0.1))
        >>> result.find("exact", "variance").kind
        'exact'
    """
    options = Options(
        sites=sites,
        epsilon=epsilon,
        methods=methods,
        samples=samples,
        rel_width=rel_width,
        seed=seed,
        readout=readout,
        delta=delta,
        outputs=outputs,
        loss=loss,
        hardware=hardware,
        proofs=proofs,
        confidence=confidence,
        chip=chip,
        targets=targets,
        metrics=metrics,
        accept=accept,
        moved=moved,
        virtual=virtual,
        reset=reset,
        batch_axis=batch_axis,
        steps_axis=steps_axis,
        memory=memory,
        budget=budget,
    )
    callback("progress", progress)
    if names is not None:
        instance("names", names, Mapping, "a mapping such as {'model': 'mine'}")
    with collecting() as noticed:
        tell = progress or (lambda *_: None)
        space, planned, asked, timings = prepared(model, inputs, faults, options, tell)
        asked = replace(asked, executor=executor, store=store_of(store))
        if budget is None and (message := told_if_long(planned, asked)):
            say_now(message)
        results = compute(space, planned, asked, tell)
        results.timings = timings = {**timings, **results.timings}
        curves = histogram = None
        try:
            with telling("curves", tell), timing(timings, "curves"):
                histogram = histogram_of(results, asked.outputs)
                if results.interrupted is None:
                    most = DEFAULT_SAMPLES if planned.samples is None else planned.samples
                    curves = curves_of(space, results, asked, most)
            with (
                telling("summary", tell),
                timing(timings, "summary"),
            ):  # which the score holds already
                result = _collect(space, planned, asked, results, names or {}, curves, histogram)
        except KeyboardInterrupt as stop:
            results.interrupted = stop
            result = _collect(space, planned, asked, results, names or {}, curves, histogram)
    result.warnings[:0] = noticed
    if results.interrupted is not None:  # before warnings, which some make errors
        message = "interrupted; partial holds what was finished"
        raise Interrupted(message, result) from results.interrupted
    for message in result.warnings:
        notice(message)
    return result


def _collect(
    space: FaultSpace,
    planned: Plan,
    asked: Request,
    results: Results,
    names: Mapping[str, str],
    curves: Curves | None,
    histogram: Histogram | None,
) -> Score:
    """The score of what the methods found."""
    analysis, sampled, run = results.analysis, results.sampled, results.chip
    agreement = agreements(analysis.estimates)
    rounding = least_rounding(space)
    methods = planned.considered
    refuted = contradictions(analysis.estimates, space.B, rounding)
    if space.loss is not None:
        refuted = [found.of_loss() for found in refuted]
    covariance = {}
    if analysis.covariance is not None:
        covariance[analysis.source] = analysis.covariance.tolist()
    if sampled is not None and sampled.covariance is not None:
        covariance["monte-carlo"] = sampled.covariance.mean(0).tolist()
    return Score(
        model=describe_model(space, names),
        inputs={
            "source": names.get("inputs"),
            "count": space.B,
            "shape": space.examples.shapes(),
        },
        faults=[describe_fault(p) for p in space.placements],
        sites=describe_sites(space, analysis),
        coordinates=space.N,
        outputs=space.K,
        seed=asked.seed,
        epsilon=asked.epsilon,
        confidence=asked.confidence if sampled is None else sampled.confidence,
        samples=0 if sampled is None else sampled.samples,
        stopped=None if sampled is None else sampled.stopped,
        estimates=analysis.estimates,
        agreement=agreement,
        top=leading_coordinates(space, analysis),
        covariance=covariance,
        formulas=analysis.formulas,
        curves=curves,
        histogram=histogram,
        hardware=None if run is None else run.facts,
        delta=asked.delta,
        answers=results.answers,
        plan=space.plan(),
        skipped=results.skipped,
        warnings=_cut_short(results)
        + [*map(str, refuted)]
        + doubts_of(
            analysis.estimates, agreement, refuted, sampled, asked.epsilon, rounding[1], methods
        )
        + (run.warnings if run else []),
        timings=results.timings,
        versions=versions(),
        contradictions=refuted,
        partial=results.interrupted is not None,
        methods=[method.facts() for method in methods],
        sample_operations=None if sampled is None else cost_of_sample(planned.size),
        named_outputs=list(asked.outputs or ()),
        chips=None
        if sampled is None or sampled.chips is None or asked.judging is None
        else chips_facts(sampled.chips, asked.judging.accept),
    )


def _cut_short(results: Results) -> list[str]:
    """What an interrupt left out, in words."""
    if results.interrupted is None:
        return []
    missing = [name for name, reason in results.skipped.items() if reason == INTERRUPTED]
    parts = [f"without {', '.join(missing)}"] if missing else []
    if results.sampled is not None and results.sampled.stopped == "interrupted":
        parts.append(f"with Monte Carlo's first {results.sampled.samples:,} samples alone")
    return ["interrupted: a partial score, " + (" and ".join(parts) or "without curves")]
