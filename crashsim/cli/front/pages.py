"""What the help of each command shows first, and its examples."""

from __future__ import annotations

from collections.abc import Mapping

from crashsim.cli.front.panels import Page

_INPUTS = ("DATA", "digits, mnist:FOLDER, .npy or .npz. (default: digits)")
_FAULT = ("FAULT", "[SITES=]KIND[:NAME=VALUE,...]: neuron-crash:p=0.01")
_REPORT = ("FILE", "Write an HTML page with everything.")

PAGES: Mapping[str, Page] = {
    "score": Page(
        {"inputs": _INPUTS, "fault": _FAULT, "report_file": _REPORT},
        (
            "crashsim score",
            "crashsim score 64-100-10:relu --train digits --p 0.01",
            "crashsim score net.py:make --inputs x.npz --epsilon 0.5",
            "crashsim score model --fault 'weights=bit-flip:p=1e-6,format=float32'",
        ),
    ),
    "compare": Page(
        {
            "train": ("DATA", "Train architectures on it first: digits."),
            "inits": ("N", "Initialisations of each architecture: 3 or more."),
            "fault": _FAULT,
        },
        (
            "crashsim compare model other --p 0.05",
            "crashsim compare 64-30-10:relu 64-100-10:tanh --train digits --inits 3",
        ),
    ),
    "sweep": Page(
        {
            "rates": ("RATES", "LOW:HIGH:COUNT, or rates with commas between."),
            "fault": _FAULT,
            "report_file": _REPORT,
        },
        (
            "crashsim sweep model --rates 1e-4:0.3:9",
            "crashsim sweep model --fault weights=bit-flip:format=int8 --rates 1e-6:1e-3:7",
        ),
    ),
    "vulnerability": Page(
        {
            "fault": _FAULT,
            "by": ("NAMES", "layer, bit, channel, neuron, ... with commas."),
            "report_file": _REPORT,
        },
        (
            "crashsim vulnerability model --by layer,channel",
            "crashsim vulnerability model --fault weights=bit-flip:format=float32 --by bit",
        ),
    ),
    "protect": Page(
        {
            "fault": _FAULT,
            "accuracy": ("SHARE", "That the mean over chips is to reach: 0.95."),
            "schemes": ("NAMES", "secded, parity, tmr, clip, ... with commas."),
        },
        (
            "crashsim protect model --fault weights=bit-flip:p=3e-4,format=int8",
            "crashsim protect model --budget 0.1 --schemes secded,tmr:of=words",
        ),
    ),
    "sample": Page(
        {
            "fault": _FAULT,
            "index": ("N", "Which of Monte Carlo's samples, from 0."),
            "out": ("NAME", "Writes NAME.safetensors and NAME.json."),
        },
        ("crashsim sample model --fault weight-crash:count=3 --index 7 --out broken",),
    ),
    "train": Page(
        {
            "data": ("DATA", "digits, mnist:FOLDER or an .npz file."),
            "out": ("NAME", "Writes NAME.safetensors and NAME.json."),
            "variance": ("STRENGTH", "Of the penalty on the variance under faults."),
        },
        (
            "crashsim train 64-100-50-10:relu --data digits --out model",
            "crashsim train 64-100-10:relu --variance 0.1 --p 0.05 --out tolerant",
        ),
    ),
    "harden": Page(
        {
            "train": ("PATH:NAME", "path.py:train, called train(model, penalty)."),
            "target": ("VALUE", "Accuracy under faults to reach: 0.95."),
            "fault": _FAULT,
        },
        (
            "crashsim harden 64-60-10:relu --target 0.95 --p 0.05",
            "crashsim harden net.py:make --train net.py:train --target 0.95",
        ),
    ),
    "hardware": Page(
        {
            "inputs": ("DATA", "As score; of a .nir file trains and events too."),
            "fault": _FAULT,
            "device": ("NAME", "Break as it breaks; see crashsim devices."),
        },
        (
            "crashsim hardware model --device memristor-crossbar",
            "crashsim hardware net.nir --exporter snntorch --inputs x.npy",
        ),
    ),
    "criticality": Page(
        {
            "inputs": _INPUTS,
            "single_fault": ("KIND", "dead-neuron, dead-synapse, top-bit-flip, ..."),
            "top": ("N", "Faults to show. (default: 10)"),
        },
        ("crashsim criticality model --single-fault dead-neuron",),
    ),
    "derive": Page(
        {
            "order": ("N", "Of the expansion: 1 to 4. (default: 1)"),
            "fault": ("KIND", "A kind of fault. (default: any law)"),
            "latex": ("", "Print LaTeX."),
        },
        ("crashsim derive --order 2 --fault neuron-crash --latex",),
    ),
    "report": Page(
        {"out": ("FILE", "The page. (default: report.html)")},
        ("crashsim report score.json --out score.html",),
    ),
    "devices": Page({}, ("crashsim devices", "crashsim devices sram-28nm-vc707")),
    "doctor": Page(),
}
