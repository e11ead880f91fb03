"""What an accelerator makes of the library, in one command of under ten minutes.

    python experiments/benchmarks/accelerator.py [--output=accelerator.json]

Rounds of FedCMI on the workloads of ``fedcmi bench``, in float32 and bfloat16 and with
several chunk sizes: seconds, FLOP/s, their share of the device's peak (MFU), memory.
Then every convolution of the models for several clients at once: mapped (XLA makes
grouped convolutions of it) and one client after the other; which is faster, shape by
shape, is what a lowering per device would be chosen by. What does not fit the memory is
said and left out. Runs on CPU too, to try it out.
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from fedcmi_jax import backend, models
from fedcmi_jax.algorithm import build_algorithm
from fedcmi_jax.bench.layers import LAYERS, Layer
from fedcmi_jax.bench.workloads import WORKLOADS, entries
from fedcmi_jax.experiment import timing

PEAKS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}
"""Dense bfloat16 FLOP/s by the makers' data sheets; keys: parts of ``device_kind``."""

REPEATS = 5
MAPPED_CLIENTS = 4


class Case(NamedTuple):
    """A workload, how many clients, and the chunk sizes to try."""

    workload: str
    clients: int
    chunk_sizes: tuple[int, ...]


CASES = (
    Case("mlp", 10_000, (16, 128, 1_024)),
    Case("convnet", 64, (1, 4, 16, 64)),
    Case("resnet18", 4, (1, 2, 4)),
)
SMALL = (Case("mlp", 100, (16,)),)
"""To try the script out."""


def main() -> None:
    """Measures, prints two tables and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="accelerator.json")
    parser.add_argument("--small", action="store_true", help="a minute, to try it out")
    args = parser.parse_args()
    backend.guard()
    kind = jax.devices()[0].device_kind
    measured = timing.matmul_peak()
    peak = next((p for name, p in PEAKS.items() if name in kind), None)
    print(f"{kind}, jax {jax.__version__}; matmul {measured / 1e12:.2f} TFLOP/s")
    print("| workload | precision | chunk | ms per round | TFLOP/s | MFU | temp MB |")
    print("|---|---|---|---|---|---|---|")
    rounds = []
    for row in measured_rounds(SMALL if args.small else CASES, peak or measured):
        rounds.append(row)
        print(_round_line(row), flush=True)
    print(f"\n| layer, {MAPPED_CLIENTS} clients | mapped, ms | in turn, ms | better |")
    print("|---|---|---|---|")
    layers = []
    for row in measured_layers(LAYERS[:1] if args.small else LAYERS):
        layers.append(row)
        ms = [f"{1e3 * row[form]:.3g}" for form in ("mapped", "in_turn")]
        print(f"| {row['layer']} | {ms[0]} | {ms[1]} | {row['better']} |", flush=True)
    report = {
        "device": kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "matmul_flops_per_s": measured,
        "peak_flops_per_s": peak,
        "rounds": rounds,
        "layers": layers,
    }
    pathlib.Path(args.output).write_text(json.dumps(report, indent=1) + "\n")
    print(f"written: {args.output}")


def _round_line(row: dict[str, Any]) -> str:
    begin = f"| {row['workload']} | {row['precision']} | {row['chunk_size']} |"
    if row["seconds"] is None:
        return f"{begin} does not fit | | | |"
    ms, rate = 1e3 * row["seconds"]["median"], row["flops_per_s"] / 1e12
    memory = (row["temp_bytes"] or 0) / 1e6
    return f"{begin} {ms:.3g} | {rate:.3g} | {row['mfu']:.1%} | {memory:.0f} |"


def measured_rounds(cases: tuple[Case, ...], peak: float) -> Iterator[dict[str, Any]]:
    """A row per workload, precision and chunk size."""
    entry = entries(("fedcmi",))["fedcmi"]
    for case in cases:
        workload = WORKLOADS[case.workload]
        federation = workload.federation(case.clients)
        plain = workload.model(entry.architecture)
        flops = timing.training_flops(plain, federation, workload.epochs)
        for precision in ("float32", "bfloat16"):
            model = plain if precision == "float32" else models.mixed_precision(plain)
            for chunk_size in case.chunk_sizes:
                algorithm = build_algorithm(
                    entry.method,
                    model,
                    clients_per_round=case.clients,
                    local=workload.local(),
                    chunk_size=chunk_size,
                )
                row: dict[str, Any] = {
                    "workload": case.workload,
                    "clients": case.clients,
                    "precision": precision,
                    "chunk_size": chunk_size,
                    "seconds": None,
                }
                try:
                    timed = timing.compile_round(
                        algorithm, federation, jax.random.key(0)
                    )
                    seconds = timing.spread([timed.round() for _ in range(REPEATS)])
                except jax.errors.JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    yield row
                    continue
                rate = flops / seconds["median"]
                yield row | {
                    "seconds": seconds,
                    "compile_seconds": timed.compile_seconds,
                    "flops_per_s": rate,
                    "mfu": rate / peak,
                    "temp_bytes": timed.temp_bytes,
                }


def measured_layers(layers: tuple[Layer, ...]) -> Iterator[dict[str, Any]]:
    """A row per convolution: forward and backward of some clients, two ways."""
    for layer in layers:
        key = jax.random.key(0)
        shape = (layer.kernel, layer.kernel, layer.channels, layer.features)
        x = jax.random.normal(
            key, (MAPPED_CLIENTS, layer.batch, *layer.size, layer.channels)
        )
        w = jax.random.normal(key, (MAPPED_CLIENTS, *shape))
        step = functools.partial(_gradients, layer)
        seconds = {
            "mapped": _median(jax.jit(jax.vmap(step)), x, w),
            "in_turn": _median(
                jax.jit(
                    lambda x, w, step=step: jax.lax.map(lambda a: step(*a), (x, w))
                ),
                x,
                w,
            ),
        }
        better = min(seconds, key=lambda form: seconds[form])
        yield {"layer": layer.name, **seconds, "better": better}


def _gradients(layer: Layer, x: jax.Array, w: jax.Array) -> tuple[jax.Array, ...]:
    """dx and dw of XLA's own convolution."""

    def conv(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            w,
            (layer.stride,) * 2,
            [(layer.kernel // 2,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    y, vjp = jax.vjp(conv, x, w)
    return vjp(y)


def _median(function: Callable[..., Any], *args: jax.Array) -> float:
    run = timing.timed(function, *args)
    return timing.spread([run() for _ in range(REPEATS)])["median"]


if __name__ == "__main__":
    main()
