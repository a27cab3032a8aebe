"""``harden`` for a network of the user's: ways to train and protect it, compared at equal cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Literal

from torch import nn

from crashsim.arguments import callback, check_seed, fraction, number, one_of, sample_count, shown
from crashsim.coordinates.placement import Faults
from crashsim.errors import ArgumentError
from crashsim.faults import WordFault, faults_by_site
from crashsim.model.inputs import BatchAxis
from crashsim.model.labelled import EveryOther, read_labelled
from crashsim.model.sites.time_axis import StepsAxis
from crashsim.model.twins.resetting import Reset
from crashsim.protection.schemes import SECDED, ClipActivations, ClipWeights
from crashsim.training.menu.comparison import Asked, Comparison, Progress
from crashsim.training.menu.hardening import Hardening
from crashsim.training.menu.protection import Protection
from crashsim.training.menu.trained import Start, Train, Trainer
from crashsim.training.menu.ways import (
    Copies,
    CrashTrained,
    FaultsBySite,
    NarrowWeights,
    Nothing,
    Penalised,
    Way,
    WayOrWays,
    name_of,
    parts_of,
)

CHIPS = 300
_CLEAN = 1024  # examples that ways learn from, at most


def compare_ways(
    model: Start,
    data: Any = None,
    held_out: Any = None,
    faults: Faults | None = None,
    sites: str = "hidden",
    *,
    train: Train,
    menu: Sequence[WayOrWays] | None = None,
    metric: Any = None,
    lower_is_better: bool | None = None,
    target: float | None = None,
    share: float | None = None,
    epsilon: float | None = None,
    delta: float | None = None,
    accuracy_loss: float = 0.02,
    equal: Literal["steps", "operations"] = "steps",
    chips: int = CHIPS,
    targets: Any = None,
    seed: int = 0,
    confidence: float = 0.95,
    readout: str | int | None = None,
    reset: Reset | None = None,
    batch_axis: BatchAxis = 0,
    steps_axis: StepsAxis | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
    names: Mapping[str, str] | None = None,
) -> Hardening:
    """Trains and protects a network in several ways, and chooses the cheapest that is good enough.

    Every way starts from the same weights, and trains for the same number of steps or operations.
    Half of the held-out examples decide; on the other half, with other chips, the choice is
    measured anew, and the next is tried where it is not confirmed.

    Args:
        model: any module, which is copied and not changed; or a function that builds one.
        data: clean examples that were trained on, for ways that learn from them (clipping).
        held_out: examples that training does not see, with targets: as of ``sweep``.
        faults, sites: as of ``FaultSpace``.
        train: ``train(model, penalty)`` trains the model that it is given, in training mode, in
            place, or returns the trained one; ``penalty(outputs)`` is a term that it adds to its
            loss, ``outputs`` being what ``model(x)`` returned. ``train(model)`` does without
            penalties. A ``TrainingLoop`` makes such a function from a step. With ``effort``
            as an argument it trains so many times as long as usual.
        menu: the ways to compare, each a ``Way`` or a tuple of several together; by default plain
            training, penalties, crash training, clipping, copies that vote, and protection.
        metric, lower_is_better: as of ``sweep``; of a metric of one's own more is better, unless
            said.
        target: the worst value of the metric that is accepted; None: the best way is chosen.
        share: of chips that are to reach the target; by default their mean is to.
        epsilon, delta: in place of a metric and target: P(some output moves by epsilon or more) is
            to be delta at most.
        accuracy_loss: accuracy without faults that may be lost against plain training.
        equal: what all ways have in common: the ``steps`` of training; or its ``operations``, for
            which ``train`` takes ``effort``: all train as long as the most expensive way takes.
        chips: on which each way is judged; four times as many where that does not tell.
        targets: (B, ...) of ``held_out``, where it does not hold them.
        seed: of everything.
        confidence: of the intervals; in the comparison of all of them at once.
        readout, reset, batch_axis, steps_axis: as of ``score``. Training strikes models that take
            the batch first, and return one tensor.
        executor: that runs blocks of chips.
        progress: called with ``"ways"``, the number done and their number.
        names: what to call the ``model`` in reports.

    Raises:
        CrashsimError: an argument makes no sense, the user's code fails, or the model cannot be
            analysed.
        Interrupted: Ctrl-C; its ``partial`` is the comparison of the ways that were finished.
    """
    callback("progress", progress)
    one_of("equal", equal, ("steps", "operations"))
    asked = Asked.of(target, share, epsilon, delta, metric)
    loss = number("accuracy_loss", accuracy_loss, "a share, as 0.02", least=0, most=1)
    chips, seed = sample_count("chips", chips, 2), check_seed(seed)
    confidence = fraction("confidence", confidence)
    if faults is None:
        raise ArgumentError("faults=None: give what is to be tolerated, as NeuronCrash(p=0.01)")
    if held_out is None:
        raise ArgumentError("held_out=None: give examples that training does not see, (x, y)")
    if not callable(train):
        raise ArgumentError(f"train={shown(train)}; give a function train(model, penalty)")
    if not isinstance(model, nn.Module) and not callable(model):
        raise ArgumentError(f"model={shown(model)}; give a module, or a function that builds one")
    by_site = faults_by_site(faults, sites)
    trainer = Trainer(model, train, seed, batch_axis, steps_axis)
    if equal == "operations" and not trainer.takes_effort:
        raise ArgumentError(
            "equal='operations': train takes no effort=, so that it cannot train longer; write "
            "train(model, penalty, effort=1.0), or give a TrainingLoop"
        )
    with trainer.seeded():
        probe = trainer.fresh().eval()
    examples = read_labelled(held_out, targets, probe, batch_axis)
    if examples.count < 2:
        raise ArgumentError("held_out: holds one example; give two or more: half of them decide")
    clean = None
    if data is not None:
        clean = read_labelled(data, None, probe, batch_axis).first(_CLEAN)[0]
    entries = _entries(default_menu(by_site, data is not None) if menu is None else menu)
    options = {
        "readout": readout, "reset": reset, "batch_axis": batch_axis, "steps_axis": steps_axis,
    }  # fmt: skip
    run = Comparison(
        trainer, by_site, entries, EveryOther(examples), EveryOther(examples, odd=True), clean,
        asked, metric, lower_is_better, loss, equal, chips, confidence, options, executor,
        progress or (lambda *_: None), dict(names or {}),
    )  # fmt: skip
    return run.all()


def _entries(menu: Any) -> list[tuple[Way, ...]]:
    """The ways of a menu, plain training first."""
    try:
        listed = [parts_of(entry) for entry in menu]
    except TypeError:
        raise ArgumentError(f"menu={shown(menu)}; give a list of ways") from None
    if (Nothing(),) in listed:
        listed.remove((Nothing(),))
    listed.insert(0, (Nothing(),))
    names = [name_of(parts) for parts in listed]
    for name in names:
        if names.count(name) > 1:
            raise ArgumentError(f"menu: {name!r} is there twice; give each way once")
    return listed


def default_menu(faults: FaultsBySite, has_data: bool) -> list[WayOrWays]:
    """What is compared unless the user chooses; ``has_data`` that were trained on, to clip by."""
    menu: list[WayOrWays] = [
        Nothing(), Penalised(0.01), Penalised(0.1), Penalised(1.0), CrashTrained(), CrashTrained(3),
    ]  # fmt: skip
    of_weights = [f for s, f in faults.items() if f.strikes == "weights" or s == "weights"]
    if any(isinstance(fault, WordFault) for fault in of_weights):
        menu += [NarrowWeights(), (NarrowWeights(), CrashTrained())]
        menu += [Protection(ClipWeights()), Protection(SECDED())]
    if has_data:
        menu.append(Protection(ClipActivations()))
    return [*menu, Copies(3, "median"), Copies(3, "mean")]
