"""The exact law of a linear surrogate with millions of coordinates, against draws of it.

    OMP_NUM_THREADS=1 python benchmarks/surrogate_law.py [--quick]

The gains are those of int8 flips of 270,608 weights: 2,164,864 coordinates. For every rate: the
tail at thresholds that 1, 0.1 and 0.01% of the draws reach, over the share of the draws that do,
with its distance in standard errors; the saddlepoint's likewise; the width of the proved bracket;
and seconds of the processor for each surrogate.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from crashsim_theory import (
    Bernoulli,
    Coordinates,
    GainChunk,
    LinearSurrogate,
    SurrogateLaw,
    law_over_rates,
)

WEIGHTS = 270_608
RATES = (1e-6, 1e-5, 1e-4, 1e-3)


def weights_and_flips(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Slopes of four outputs (4, n), and what each flip changes a weight by (n, 8)."""
    slopes = (0.01 * rng.standard_t(3, (4, n))).astype(np.float32)
    stored = rng.integers(-127, 128, n).astype(np.int8).view(np.uint8)
    place = np.where(np.arange(8) < 7, 1 << np.arange(8), -128)
    struck = (stored[:, np.newaxis] >> np.arange(8)) & 1
    return slopes, 0.01 * np.where(struck, -place, place)


def drawn(gains: np.ndarray, p: float, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Plain draws of the sum."""
    struck = rng.binomial(gains.size, p, samples)
    total = np.zeros(samples)
    for start in range(0, samples, 1000):  # few enough at once for the memory
        part = struck[start : start + 1000]
        sample = np.repeat(np.arange(len(part)), part)
        picked = gains[rng.integers(0, gains.size, part.sum())]
        total[start : start + 1000] = np.bincount(sample, picked, len(part))
    return total


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer weights and draws")
    quick = parser.parse_args(arguments).quick
    n, samples = (20_000, 10_000) if quick else (WEIGHTS, 100_000)
    rng = np.random.default_rng(0)
    slopes, moved = weights_and_flips(n, rng)
    start = time.process_time()
    law = SurrogateLaw.of_chunks([GainChunk(slopes, moved, 1e-5)], np.zeros(4))
    print(f"{moved.size:,} coordinates: {(time.process_time() - start) / 4:.3f} s to read a row")
    gains = (slopes[0].astype(np.float64)[:, np.newaxis] * moved).ravel()
    for p in RATES:
        sums = drawn(gains, p, samples, rng)
        eps = np.quantile(np.abs(sums), [0.99, 0.999, 0.9999])
        measured = (np.abs(sums)[:, np.newaxis] >= eps).mean(0)
        at_rate = law.at_rate(p)
        start = time.process_time()
        found = at_rate.tail(eps)[0]
        seconds = (time.process_time() - start) / 4
        one = SurrogateLaw(at_rate.profiles[:1], ())
        low, high = one.bracket(eps)
        dense = LinearSurrogate(0.0, gains, Coordinates([Bernoulli(np.full(gains.size, p))]))
        start = time.process_time()
        saddle = dense.saddlepoint(eps)
        slow = time.process_time() - start
        away = (found - measured) / np.sqrt(measured / samples)
        print(
            f"p={p:g}: law/draws {_row(found / measured)} ({_row(away)} standard errors), "
            f"{seconds:.3f} s; saddlepoint {_row(saddle / measured)}, {slow:.2f} s dense; "
            f"proved within {_row(low / found)} .. {_row(high / found)}"
        )
    start = time.process_time()
    rates = np.geomspace(1e-6, 1e-3, 13)
    law_over_rates([GainChunk(slopes[:1], moved, 0.0)], np.zeros(1), rates, 1.0)
    print(f"{len(rates)} rates of one surrogate: {time.process_time() - start:.2f} s in all")


def _row(values: np.ndarray) -> str:
    return " ".join(f"{value:.3g}" for value in values)


if __name__ == "__main__":
    main()
