"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

MODEL_HELP = (
    "Architecture (64-50-10:relu), file of `crashsim train`, .onnx, .nir, hf:FOLDER, "
    "path.py:factory or package.module:factory (runs it), .pt2 (--trust)."
)
FAULT_HELP = (
    "[SITES=]KIND[:NAME=VALUE,...], repeatable. Kinds: neuron-crash, weight-crash, stuck-at, "
    "sign-flip, bit-flip, bit-stuck, gain-noise, additive-noise, or path.py:Class for a fault of "
    "your own (runs that code). For example: 'conv*=neuron-crash:p=0.01', 'gain-noise:std=0.1', or "
    "'weight-crash:count=3' for exactly three weights of all (count=3,per=site: of each layer). "
    "bit-flip:bits=8 takes weights as words of fixed point; 'weights=bit-flip:p=1e-6,"
    "format=float32,bits=exponent' flips exponent bits of single-precision words (format: stored, "
    "float32, float16, bfloat16, float8_e4m3fn, int8, ...; bits: sign, exponent, mantissa, [30], "
    "[0-3,7]; upset: a number of neighbouring bits, word, row or column); bit-stuck:to=1 likewise."
)

ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP)]
DemoModelArgument = Annotated[
    str | None,
    typer.Argument(help=MODEL_HELP + " (default: a demo)", show_default=False),
]
ModelsArgument = Annotated[list[str], typer.Argument(help=MODEL_HELP)]
InputsOption = Annotated[
    str,
    typer.Option(
        "--inputs",
        "--data",
        help="Examples: digits, digits-images, mnist:FOLDER, mnist-images:FOLDER, or a .npy or "
        ".npz file (int32 and int64 stay whole where the model takes them; several arrays without "
        "'inputs' or 'x' are arguments of their names).",
    ),
]
ReadoutOption = Annotated[
    str | None,
    typer.Option(
        help="Which tensor of a structured output: a name (logits, boxes.0.scores) or a number."
    ),
]
BatchAxisOption = Annotated[
    int,
    typer.Option(
        min=0, help="Axis of the inputs that is the batch: 1 for sequences (time, batch, ...)."
    ),
]
StepsAxisOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Axis of the struck values that is time, counted with the batch from 0, where no "
        "recurrent or spiking layer shows it; a neuron is then dead in all steps.",
    ),
]
LimitOption = Annotated[int, typer.Option(min=1, help="Use this number of inputs, the first.")]
FaultOption = Annotated[list[str] | None, typer.Option(help=FAULT_HELP)]
POption = Annotated[
    float | None,
    typer.Option(help="Probability of the fault, where --fault gives none. (default 0.01)"),
]
SitesOption = Annotated[
    str | None,
    typer.Option(
        help="Where: hidden, input, weights, or a name or glob. (default: hidden; "
        "weights for faults of weights)"
    ),
]
GroupOption = Annotated[
    str | None,
    typer.Option(
        help="Neurons that crash together: unit, feature (in all positions), channel, or a number "
        "(a core). (default: unit)"
    ),
]
OutputsOption = Annotated[
    str | None,
    typer.Option(
        help="Outputs to look at, by number (3,7): of tails, certificates and rare events; or "
        "'loss': that of each example, in place of the outputs. (default: the one that varies most)"
    ),
]
LossOption = Annotated[
    str | None,
    typer.Option(
        help="With --outputs loss: cross-entropy, mse, or path.py:NAME, a function of (outputs, "
        "targets) (runs that code). (default: cross-entropy of classes, mse of other numbers)"
    ),
]
EpsilonOption = Annotated[
    float | None, typer.Option(help="Also P(|change| >= EPSILON), in units of the outputs.")
]
SamplesOption = Annotated[
    int | None, typer.Option(help="Monte Carlo samples. (default: 10000, fewer for large models)")
]
RelWidthOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Sample until variances are known to this relative width; or a metric, as "
        "accuracy=0.02 (repeatable)."
    ),
]
TargetsOption = Annotated[
    str | None,
    typer.Option(
        help="Targets of the examples: a .npy or .npz file. (default: those that the data hold)"
    ),
]
MetricOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Judge chips by this metric, repeatable: accuracy, top-5, error-rate, class-change, "
        "sdc-1, sdc-5, due, cross-entropy, perplexity, mse, mae, mean-iou. (default: accuracy, "
        "sdc-1 and due, where there are classes)"
    ),
]
AcceptOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Also say how many chips reach a metric, as accuracy=0.9 (repeatable). (default: an "
        "accuracy a point below that without faults)"
    ),
]
VirtualOption = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Also judge this number of chips by the linear surrogate alone: metrics over chips "
        "are then theirs, corrected by the real ones. (default: none)",
    ),
]
JudgedLimitOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Use this number of inputs, the first. (default: 32; all for metrics with targets)",
    ),
]
PlanOption = Annotated[
    bool,
    typer.Option("--plan", help="Print what would run, its cost and memory, and run none of it."),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        help="Time for all of it (90s, 2m, 1h), of a core that does 1e10 operations a second: "
        "methods and samples are chosen to fit, the same on every machine."
    ),
]
MemoryOption = Annotated[
    str,
    typer.Option(
        help="What derivatives may take (500MiB, 8GiB); what does not fit is made anew as it is "
        "read, and costs more passes."
    ),
]
SeedOption = Annotated[int, typer.Option(help="Same seed, same numbers.")]
TrainOption = Annotated[
    str | None, typer.Option(help="Train an architecture on this data first (digits, ...).")
]
WeightsOption = Annotated[
    str | None, typer.Option(help="State dict for a factory's model (.safetensors or .pt).")
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Load .pt2 archives, which can run any code that is in them: only where you trust "
        "whoever made them. (All other files are read as data; no effect on those.)",
    ),
]
ResetOption = Annotated[
    Literal["subtract", "zero", "late-subtract", "late-zero"] | None,
    typer.Option(
        help="What a spike leaves behind, where a .nir file does not say: the membrane less the "
        "threshold, or zero; at once, or a step late."
    ),
]
GraphStepsOption = Annotated[
    int | None,
    typer.Option(
        "--steps",
        help="Length of the run of a .nir file whose score is of its own steps. (default 100)",
    ),
]
DtOption = Annotated[
    float | None,
    typer.Option(help="Time step of a .nir file, in the unit of its time constants."),
]
ExporterOption = Annotated[
    Literal["nir", "snntorch", "spikingjelly", "sinabs", "sinabs-bounded", "norse", "rockpool"]
    | None,
    typer.Option(
        help="The library that wrote a .nir file, whose neurons are run as it runs them: its "
        "time step, comparison with the threshold and reset. (default: NIR's own equations)"
    ),
]
StartOption = Annotated[
    Literal["zero", "half"] | None,
    typer.Option(
        help="Membranes of a .nir file before the first step: at zero, as libraries start, or "
        "at half of the threshold. (default zero; half for a file that crashsim wrote)"
    ),
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write everything as JSON.")]
ParquetOption = Annotated[
    Path | None,
    typer.Option("--parquet", help="Write the rows as Parquet. Needs crashsim[parquet]."),
]
