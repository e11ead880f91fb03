"""Where the time of a round goes on CPU, by kind of operation.

  taskset -c 0 python experiments/benchmarks/round_profile.py convnet fedcmi

One client of the workload trains once, warm, under JAX's profiler. An operation counts
with the lower quartile of its durations times how often it ran, so that a busy machine
blurs little; what runs longer than the scheduler's slices is blurred nevertheless.
"""

import collections
import glob
import gzip
import json
import re
import sys
import tempfile

from fedcmi_jax import backend

backend.guard()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from fedcmi_jax import build_algorithm  # noqa: E402
from fedcmi_jax.bench.workloads import WORKLOADS, entries  # noqa: E402

KINDS = (
    ("convolutions", r" convolution\(|conv_general_dilated\" .*__ynn_fusion"),
    ("pooling", r"max_pool"),
    ("norms", r"norm\w*[/)]"),
    ("transpositions for gradients", r"_to_correlate|%(transpose_copy|wrapped_copy)"),
    ("sums around fewer products", r"conv\d*/cond"),
    ("dense layers", r"dense|dot_general|/out/"),
    ("bias sums", r"reduce-window"),
    ("ReLU, bias, residual sums", r"ResNet18|ConvNet|jit\(relu\)"),
    ("copies", r" copy\("),
)
"""What an operation is: the first of these that its line in the program matches."""
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (?:\(.*?\)|\S+) ([\w\-]+)\(")
NESTS = ("while", "call", "conditional")


def compiled(workload: str, method: str):
    """A round of one client: runs it; its program's text."""
    work = WORKLOADS[workload]
    federation = work.federation(1)
    entry = entries((method,))[method]
    algorithm = build_algorithm(
        entry.method,
        work.model(entry.architecture),
        clients_per_round=1,
        local=work.local(),
        chunk_size=1,
    )
    state = jax.jit(algorithm.init)(jax.random.key(0), federation)
    one = np.int32(1)
    program = algorithm.run.lower(state, federation, one).compile()
    held = [state]

    def run() -> None:
        held[0], _ = program(held[0], federation, one)
        jax.block_until_ready(held[0])

    run()
    return run, program.as_text()


def traced(run) -> dict[str, list[float]]:
    """Name of a program's operation -> its durations, microseconds."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level, options.host_tracer_level = 0, 3
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            run()
        (path,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
    durations = collections.defaultdict(list)
    for event in events:
        if event.get("ph") == "X":
            durations[event["name"]].append(event["dur"])
    return durations


def main(workload: str, method: str) -> None:
    """Prints a row per kind, the largest first."""
    run, text = compiled(workload, method)
    durations = traced(run)
    shares: collections.Counter[str] = collections.Counter()
    for line in text.splitlines():
        found = INSTRUCTION.match(line)
        if not found or found[2] in NESTS or found[1] not in durations:
            continue
        own = sorted(durations.pop(found[1]))
        kind = next((k for k, p in KINDS if re.search(p, line)), "rest")
        shares[kind] += own[len(own) // 4] * len(own)
    total = sum(shares.values())
    print(f"{workload} {method}: {total / 1e3:.0f} ms in operations")
    for kind, time in shares.most_common():
        print(f"| {kind} | {time / 1e3:.1f} ms | {time / total:.1%} |")


if __name__ == "__main__":
    main(*sys.argv[1:3])
