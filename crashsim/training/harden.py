"""``harden``: make a network tolerate faults, the user's own or one of a plain architecture."""

from __future__ import annotations

from functools import partial
from typing import Any, overload

from torch import nn

from crashsim.arguments import instance
from crashsim.coordinates.placement import Faults
from crashsim.errors import ArgumentError
from crashsim.files.architectures import Architecture, parse_architecture
from crashsim.files.data import Data
from crashsim.training.classifier import Recipe
from crashsim.training.hardening import Hardened
from crashsim.training.hardening import harden as algorithm_1
from crashsim.training.menu.compare_ways import compare_ways
from crashsim.training.menu.hardening import Hardening
from crashsim.training.menu.recipe_training import RecipeTraining
from crashsim.training.menu.trained import Start, Train

# Options of a comparison of ways alone.
_COMPARES = {"target", "menu", "metric", "share", "equal", "chips"}
_OLD_NAMES = {"model": "architecture", "data": "training", "held_out": "test"}


@overload
def harden(
    architecture: str | Architecture,
    training: Data,
    test: Data,
    faults: Faults,
    *,
    epsilon: float,
    delta: float,
    **options: Any,
) -> Hardened: ...


@overload
def harden(
    model: Start | str | Architecture,
    data: Any = None,
    held_out: Any = None,
    faults: Faults | None = None,
    sites: str = "hidden",
    *,
    train: Train = ...,
    **options: Any,
) -> Hardening: ...


def harden(*args: Any, **options: Any) -> Hardened | Hardening:
    """Makes a network tolerate faults, and says how sure that is and what it costs.

    A network of yours, in several ways that are compared at equal cost: penalties, training with
    the faults, clipping, copies that vote, protection. ``train(model, penalty)`` is your training
    loop, or a ``TrainingLoop`` made of your step. For all options see
    ``crashsim.training.menu.compare_ways.compare_ways``:

        found = crashsim.harden(model, (x, y), (held_x, held_y), NeuronCrash(p=0.05),
                                train=train, target=0.95)
        print(found)          # the ways side by side, and which was chosen
        found.network         # the chosen network, protection included

    An architecture in place of the network is trained by a ``recipe`` on ``data``, a ``Data``.

    Or, given ``epsilon`` and ``delta`` alone, an architecture which crashsim trains, widens and
    replicates itself until P(some output moves by epsilon or more) is at most delta (Algorithm 1 of
    arXiv 1902.01686). For all options see ``crashsim.training.hardening.harden``:

        harden("64-60-10:relu", training, test, NeuronCrash(p=0.05), epsilon=3, delta=1e-3)

    Raises:
        CrashsimError: an argument makes no sense, the user's code fails, or the model cannot be
            analysed.
        Interrupted: Ctrl-C; its ``partial`` holds what was finished.
    """
    named = [options[name] for name in ("model", "architecture") if name in options]
    first = args[0] if args else next(iter(named), None)
    if isinstance(first, str | Architecture):
        if not ("train" in options or _COMPARES & set(options)):
            old = {_OLD_NAMES.get(name, name): value for name, value in options.items()}
            return algorithm_1(*args, **old)
        return _architecture_compared(*args, **options)
    if "train" in options:
        return compare_ways(*args, **options)
    if isinstance(first, nn.Module) or callable(first):
        raise ArgumentError(
            "train=None: a network of your own is trained by a function of yours, "
            "train(model, penalty), or a crashsim.TrainingLoop of your step; give one"
        )
    return algorithm_1(*args, **{_OLD_NAMES.get(name, name): v for name, v in options.items()})


def _architecture_compared(
    model: str | Architecture,
    data: Any = None,
    held_out: Any = None,
    faults: Faults | None = None,
    *more: Any,
    recipe: Recipe | None = None,
    seed: int = 0,
    **options: Any,
) -> Hardening:
    """Ways to harden an architecture, trained by a recipe unless the user trains it."""
    built = parse_architecture(model) if isinstance(model, str) else model
    if "train" not in options:
        instance("data", data, Data, "a crashsim.files.data.Data, as load_data returns")
        options["train"] = RecipeTraining(data, recipe or Recipe(seed=seed))
    elif recipe is not None:
        raise ArgumentError("recipe: train is given, which says how to train; leave one out")
    clean, tested = (
        (each.inputs, each.targets) if isinstance(each, Data) else each for each in (data, held_out)
    )
    names = {"model": str(built), **(options.pop("names", None) or {})}
    return compare_ways(
        partial(built.build, seed), clean, tested, faults, *more, seed=seed, names=names, **options
    )
