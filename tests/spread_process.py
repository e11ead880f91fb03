"""One of two processes that train on samples spread over both: a script.

``python -m tests.spread_process HOST:PORT PROCESS`` prints, as JSON, which rows of the
data it read and a digest of the parameters after two rounds. Without arguments: the
same in one process that has all samples.
"""

import hashlib
import json
import sys

import jax
import numpy as np

import fedcmi_jax as fc
from fedcmi_jax import backend
from fedcmi_jax.placement import client_mesh
from fedcmi_jax.testing.problem import algorithm, dataset, model, parts, rounds


class Recorded:
    """An array on a disk, as it were: says which of its rows were read."""

    def __init__(self, x):
        self.x, self.shape, self.dtype, self.rows = x, x.shape, x.dtype, set()

    def __getitem__(self, rows):
        self.rows |= set(rows.tolist())
        return self.x[rows]


def main(coordinator=None, process=0):
    backend.guard()
    mesh = None
    if coordinator:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, 2, int(process))
        mesh = client_mesh()
    data = dataset()
    inputs = {m: Recorded(x) for m, x in data.train.inputs.items()}
    data = data._replace(train=data.train._replace(inputs=inputs))
    fed = fc.build_federation(data, parts(), mesh=mesh)
    problem = algorithm(fc.methods.scaffold(), model("classifier"), mesh=mesh)
    state, _ = rounds(problem, fed, step=jax.jit(problem.round))
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state.params):
        digest.update(np.asarray(leaf.addressable_data(0)).tobytes())
    rows = [sorted(x.rows) for x in inputs.values()]
    print(json.dumps({"rows": rows, "digest": digest.hexdigest()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
