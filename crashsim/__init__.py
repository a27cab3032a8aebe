"""How far a neural network's output moves when its hardware fails at random.

    >>> import torch, crashsim
    >>> from crashsim import NeuronCrash
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> score = crashsim.score(net.eval(), torch.ones(2, 4), NeuronCrash(p=0.01), sites="hidden")
    >>> score.find("exact", "variance").kind
    'exact'

The nouns: a **fault** (``NeuronCrash`` and others) strikes **sites** of a model; model, inputs and
faults make a **FaultSpace**; methods turn it into **estimates**, and a **score** holds them all.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from crashsim.moved import find_moved

if TYPE_CHECKING:
    from crashsim.campaign.store import Store
    from crashsim.campaign.workers import Workers
    from crashsim.errors import CrashsimError, CrashsimWarning, Interrupted
    from crashsim.faults import (
        AdditiveNoise,
        BitFlip,
        BitStuck,
        Fault,
        GainNoise,
        NeuronCrash,
        SignFlip,
        StuckAt,
        WeightCrash,
    )
    from crashsim.files.models import load_model
    from crashsim.injection.sample import Sample, Strike
    from crashsim.metrics import Event, Mean
    from crashsim.model.sites.discovery import find_sites
    from crashsim.model.sites.site import Site
    from crashsim.notebook import ProgressLine
    from crashsim.protection.adviser.advise import protect
    from crashsim.protection.plan import Plan
    from crashsim.protection.protected import Protected
    from crashsim.protection.replicas import Replicated, byzantine_table, plan_replicas
    from crashsim.protection.robustness import voter_robustness
    from crashsim.protection.schemes import (
        SECDED,
        TMR,
        ClipActivations,
        ClipWeights,
        Duplication,
        Parity,
        Scrubbing,
        SpareCells,
    )
    from crashsim.protection.vulnerability.table import Vulnerability
    from crashsim.protection.vulnerability.vulnerability import vulnerability
    from crashsim.results.agreement import Agreement, rank_loss
    from crashsim.results.estimate import Estimate
    from crashsim.sampling.enumeration import ExactDistribution, enumerate_exact
    from crashsim.sampling.monte_carlo import monte_carlo
    from crashsim.scoring.method import Method
    from crashsim.scoring.planning.preview import Preview, plan
    from crashsim.scoring.score import Score, score
    from crashsim.space import FaultSpace
    from crashsim.sweeping.curve import Curve
    from crashsim.sweeping.sweep import sweep
    from crashsim.training.crash_training import CrashTraining
    from crashsim.training.crash_variance import CrashVariance
    from crashsim.training.goodhart import TrainingReport
    from crashsim.training.harden import harden
    from crashsim.training.hardening import Hardened
    from crashsim.training.menu.hardening import Hardening
    from crashsim.training.menu.protection import Protection
    from crashsim.training.menu.training_loop import TrainingLoop
    from crashsim.training.menu.ways import Copies, CrashTrained, NarrowWeights, Penalised
    from crashsim.training.weight_penalties import Balance, Continuity

__version__ = "0.1.0"

# Where each public name lives. They load on first use, so that `crashsim --help` does not wait
# for torch, nor `import crashsim` for anything it may not need.
_HOMES = {
    "results.agreement": ("Agreement", "rank_loss"),
    "sampling.enumeration": ("ExactDistribution", "enumerate_exact"),
    "campaign.store": ("Store",),
    "campaign.workers": ("Workers",),
    "errors": ("CrashsimError", "CrashsimWarning", "Interrupted"),
    "results.estimate": ("Estimate",),
    "faults": (
        "AdditiveNoise",
        "BitFlip",
        "BitStuck",
        "Fault",
        "GainNoise",
        "NeuronCrash",
        "SignFlip",
        "StuckAt",
        "WeightCrash",
    ),
    "sampling.monte_carlo": ("monte_carlo",),
    "scoring.method": ("Method",),
    "scoring.planning.preview": ("Preview", "plan"),
    "scoring.score": ("Score", "score"),
    "files.models": ("load_model",),
    "injection.sample": ("Sample", "Strike"),
    "metrics": ("Event", "Mean"),
    "notebook": ("ProgressLine",),
    "model.sites.discovery": ("find_sites",),
    "model.sites.site": ("Site",),
    "space": ("FaultSpace",),
    "sweeping.curve": ("Curve",),
    "sweeping.sweep": ("sweep",),
    "training.harden": ("harden",),
    "training.hardening": ("Hardened",),
    "training.menu.hardening": ("Hardening",),
    "training.menu.protection": ("Protection",),
    "training.menu.training_loop": ("TrainingLoop",),
    "training.menu.ways": ("Copies", "CrashTrained", "NarrowWeights", "Penalised"),
    "training.weight_penalties": ("Balance", "Continuity"),
    "training.crash_training": ("CrashTraining",),
    "training.crash_variance": ("CrashVariance",),
    "protection.replicas": ("Replicated", "byzantine_table", "plan_replicas"),
    "protection.robustness": ("voter_robustness",),
    "protection.adviser.advise": ("protect",),
    "protection.plan": ("Plan",),
    "protection.protected": ("Protected",),
    "protection.schemes": (
        "SECDED",
        "TMR",
        "ClipActivations",
        "ClipWeights",
        "Duplication",
        "Parity",
        "Scrubbing",
        "SpareCells",
    ),
    "protection.vulnerability.table": ("Vulnerability",),
    "protection.vulnerability.vulnerability": ("vulnerability",),
    "training.goodhart": ("TrainingReport",),
}

__all__ = [
    "SECDED",
    "TMR",
    "AdditiveNoise",
    "Agreement",
    "Balance",
    "BitFlip",
    "BitStuck",
    "ClipActivations",
    "ClipWeights",
    "Continuity",
    "Copies",
    "CrashTrained",
    "CrashTraining",
    "CrashVariance",
    "CrashsimError",
    "CrashsimWarning",
    "Curve",
    "Duplication",
    "Estimate",
    "Event",
    "ExactDistribution",
    "Fault",
    "FaultSpace",
    "GainNoise",
    "Hardened",
    "Hardening",
    "Interrupted",
    "Mean",
    "Method",
    "NarrowWeights",
    "NeuronCrash",
    "Parity",
    "Penalised",
    "Plan",
    "Preview",
    "ProgressLine",
    "Protected",
    "Protection",
    "Replicated",
    "Sample",
    "Score",
    "Scrubbing",
    "SignFlip",
    "Site",
    "SpareCells",
    "Store",
    "Strike",
    "StuckAt",
    "TrainingLoop",
    "TrainingReport",
    "Vulnerability",
    "WeightCrash",
    "Workers",
    "byzantine_table",
    "enumerate_exact",
    "find_sites",
    "harden",
    "load_model",
    "monte_carlo",
    "plan",
    "plan_replicas",
    "protect",
    "rank_loss",
    "score",
    "sweep",
    "voter_robustness",
    "vulnerability",
]


find_moved()


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"crashsim.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'crashsim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
