"""Results of the spiking chip, in words and rows."""

from __future__ import annotations

import math

import numpy as np

from crashsim.report.tables import number
from crashsim.results.chip_record import ChipRecord
from crashsim.results.estimate import Estimate
from crashsim.results.numbers import interval_numbers, percent, percents
from crashsim.results.schema import ChipFacts

_NAMED = {
    "variance": ("Var Δ, all outputs", "squared output units"),
    "class-change": ("P(class changes)", "of chips and inputs"),
}
_READ = {
    "count": "in spikes a step",
    "first-spike": "how early neurons first fire (1 - t/T; 0 for never)",
    "membrane": "membranes after the last step, in thresholds",
}


def sentence(facts: ChipFacts) -> str:
    """How the chip was run, and how close it is without faults."""
    device = f" ({facts['device']['title']})" if facts["device"] else ""
    return (
        f"The network as a chip of spiking neurons{device}, read for {facts['steps']} steps of "
        f"1 ms. Without faults its outputs are off by {facts['clean_error']:.2%} of their own "
        f"spread and it names the same class for {facts['clean_agreement']:.1%} of the inputs."
    )


def headline(record: ChipRecord) -> str:
    """What the faults do to the chip, and how far it is from its network without any."""
    found = {e.quantity: e for e in record.estimates if e.input == "all" and e.output == "all"}
    told = []
    change, variance = found.get("class-change"), found.get("variance")
    struck = " and ".join(record.faults) or "these faults"
    if change is not None:
        told.append(f"On the chip, {struck} changes the predicted class {_percents(change)}.")
    if variance is not None:
        size = math.sqrt(max(variance.value, 0.0))
        told.append(f"The outputs move by {number(size)} (standard deviation, all together).")
    facts = record.hardware
    if has_network(facts):
        told.append(
            f"Without faults, the chip names the network's class for "
            f"{facts['clean_agreement']:.1%} of the inputs."
        )
    return " ".join(told) or graph_sentence(facts)


def _percents(change: Estimate) -> str:
    if change.low is None or change.high is None:
        return f"with probability {percents(change.value, change.value, change.value)[0]}"
    value, low, high = percents(change.value, change.low, change.high)
    level = percent(change.confidence or 0.0)
    return f"with probability {value} ({level} interval {low} to {high})"


def figures(record: ChipRecord) -> list[tuple[str, str, str]]:
    """What was measured of the chip: name, value with its interval, unit."""
    found = []
    for estimate in record.estimates:
        if estimate.input != "all" or estimate.output != "all":
            continue
        name = _NAMED.get(estimate.quantity, (estimate.quantity, ""))
        shown = [f"{x:.3g}" for x in (estimate.value, estimate.low, estimate.high) if x is not None]
        if len(shown) == 3 and estimate.low is not None and estimate.high is not None:
            ends = (estimate.value, estimate.low, estimate.high)
            is_share = estimate.quantity in ("class-change", "tail", "not-finite")
            value, low, high = (percents if is_share else interval_numbers)(*ends)
            found.append((name[0], f"{value} [{low}, {high}]", name[1]))
        else:
            found.append((name[0], shown[0], name[1]))
    for name_, intact, broken, _ in activity_rows(record.hardware, record.picojoules)[2:]:
        found.append((name_, f"{broken}", f"an inference; {intact} intact"))
    return found


def graph_sentence(facts: ChipFacts) -> str:
    """How the chip of a graph was run, which has no network beside it."""
    device = f" ({facts['device']['title']})" if facts["device"] else ""
    told = facts.get("convention") or "the step, reset and start that the file says"
    return (
        f"The graph as a chip of spiking neurons{device}: {told}; {facts['steps']} steps, "
        f"{facts['masks']} masks. Outputs are {_READ[facts.get('readout', 'count')]}, and compared "
        "with the chip's own without faults."
    )


def has_network(facts: ChipFacts) -> bool:
    """Whether a network stands beside the chip."""
    return bool(facts["network_mean"])


def activity_rows(facts: ChipFacts, picojoules: float | None) -> list[tuple[str, str, str, str]]:
    """Spikes, operations and perhaps energy of an inference: name, intact, with faults, meaning."""
    activity = facts.get("activity")
    if activity is None:
        return []
    spikes = activity["spikes"], activity["spikes_broken"]
    operations = activity["operations"], activity["operations_broken"]
    slots = activity["neurons"] * facts["steps"]
    found = [
        ("spikes", *(f"{n:,.1f}" for n in spikes), "of all neurons"),
        ("spikes per neuron and step", *(f"{n / slots:.3f}" for n in spikes), "mean rate"),
        (
            "synaptic operations", *(f"{n:,.0f}" for n in operations),
            "a spike that arrives through a weight that is not 0",
        ),
    ]  # fmt: skip
    if picojoules is not None:
        found.append(
            (
                "energy of synapses, nJ", *(number(n * picojoules / 1000) for n in operations),
                f"at {picojoules:g} pJ an operation, as given; nothing else is counted",
            )
        )  # fmt: skip
    return [(name, intact, broken, meaning) for name, intact, broken, meaning in found]


def rows(facts: ChipFacts) -> list[tuple[str, str, str]]:
    """The gap between chip and network under the same masks: name, value, meaning."""
    network_mean = np.abs(np.array(facts["network_mean"])).mean()
    network_variance = np.array(facts["network_variance"]).sum(1).mean()
    return [
        ("slope of E Δ", _ratio(facts["slope"]), "chip against network; 1 is perfect"),
        ("ratio of Var Δ", _ratio(facts["variance_ratio"]), "chip over network; 1 is perfect"),
        ("correlation of E Δ", _ratio(facts["correlation"]), "over inputs and outputs"),
        ("correlation of Δ", _ratio(facts["mask_correlation"]), "mask by mask, spiking noise in"),
        ("mean |E Δ| of the network", number(float(network_mean)), "under these masks"),
        ("Var Δ of the network", number(float(network_variance)), "all outputs, these masks"),
        ("masks", str(facts["masks"]), "fault patterns, each read twice"),
    ]


def _ratio(value: float | None) -> str:
    """Four digits; a dash where the faults do not vary or have no effect."""
    return "-" if value is None or np.isnan(value) else f"{value:.4f}"
