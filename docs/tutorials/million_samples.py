# %% [markdown]
# # A million-sample sweep
#
# Data larger than memory: arrays in files, read as memory maps; a cohort's samples on the device at a time; how many
# clients are computed together. `SCALE` says how large: at 1 there are a million samples of 20,000 clients (260 MB).
# This page was made at the scale that is printed below; no time of the full size is claimed here.

# %%
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np

import fedcmi_jax as fc

fc.backend.guard()
SCALE = float(os.environ.get("TUTORIAL_SCALE", "0.01"))
SAMPLES, CLIENTS = int(1_000_000 * SCALE), int(20_000 * SCALE)
TEST_SAMPLES, FEATURES, CLASSES = 1_000, 32, 10
print(f"{SAMPLES:,} samples of {CLIENTS:,} clients")

# %% [markdown]
# ## Files, block by block
#
# A folder of .npy files is a data set: `train/NAME.npy` for a modality, beside it `labels.npy` and, where there are
# natural clients, `clients.npy`. Written in blocks, so that the whole is never in memory.

# %%
BLOCK = 50_000
rng = np.random.default_rng(0)
means = {
    m: s * rng.normal(size=(CLASSES, FEATURES))
    for m, s in (("strong", 1.0), ("weak", 0.2))
}


def write(split, n):
    """Gaussian classes, a strong and a weak modality."""
    folder = pathlib.Path("large") / split
    folder.mkdir(parents=True)
    labels = rng.integers(0, CLASSES, n).astype(np.int32)
    np.save(folder / "labels.npy", labels)
    for m, mean in means.items():
        file = np.lib.format.open_memmap(
            folder / f"{m}.npy", "w+", np.float32, (n, FEATURES)
        )
        for i in range(0, n, BLOCK):
            rows = labels[i : i + BLOCK]
            file[i : i + BLOCK] = mean[rows] + rng.normal(size=(len(rows), FEATURES))
        file.flush()
    return folder


np.save(
    write("train", SAMPLES) / "clients.npy",
    np.arange(SAMPLES, dtype=np.int32) % CLIENTS,
)
write("test", TEST_SAMPLES)
data = fc.data.npz(path="large")
print(data.shapes, type(data.train.inputs["strong"]).__name__)

# %% [markdown]
# ## Stream it
#
# With `stream` the samples stay in the files. While a round runs, a thread gathers the next cohort's. Device
# memory then holds two cohorts, whatever the number of clients; the results are those of resident data.

# %%
config = {
    "dataset": {"name": "npz", "path": "large"},
    "partition": {"name": "natural"},
    "encoder": {"name": "mlp", "features": 32},
    "method": {"name": "fedavg"},
    "local": {"epochs": 1, "learning_rate": 0.1},
    "clients": 0,  # as many as there are natural ones
    "clients_per_round": 64,
    "multimodal_fraction": 1.0,
    "rounds": 10,
    "eval_every": 5,
    "chunk_size": 16,
}
streamed = fc.train(config | {"stream": True})
resident = fc.train(config)
print("accuracy, streamed and resident:", streamed.final["acc"], resident.final["acc"])
same = jax.tree.map(np.array_equal, streamed.params, resident.params)
print("same bits:", all(jax.tree.leaves(same)))

# %% [markdown]
# ## How many clients at once
#
# `chunk_size` clients are computed together: a matter of speed and memory only, so sweep it on your machine (or let
# `--chunk-size=auto` do it). Which size is fastest depends on the model and the device; the first call compiles.

# %%
parts = fc.partition.natural(data.train, CLIENTS, np.random.default_rng(0))
federation = fc.build_federation(data, parts)
encoders = {m: fc.models.mlp(features=32) for m in data.modalities}
model = fc.models.classifier(encoders, data.shapes, data.num_classes)
for chunk_size in (1, 16, 64):
    algorithm = fc.build_algorithm(
        fc.methods.fedavg(),
        model,
        clients_per_round=64,
        local=fc.LocalTraining(epochs=1, batch_size=32, learning_rate=0.1),
        chunk_size=chunk_size,
    )
    step = jax.jit(algorithm.round)
    state = algorithm.init(jax.random.key(0), federation)
    state, _ = jax.block_until_ready(step(state, federation))
    start = time.perf_counter()
    for _ in range(5):
        state, _ = step(state, federation)
    jax.block_until_ready(state)
    print(
        f"chunks of {chunk_size:>2}: {1e3 * (time.perf_counter() - start) / 5:.1f} ms per round"
    )

# %% [markdown]
# ## Spread it
#
# Where devices together have the memory and one has not, `--spread-samples` gives each a part of the samples. Here
# two cores act as two devices; on GPUs and TPUs leave `--host-devices` out. Across machines, add `--coordinator`,
# `--num-processes` and `--process-id`: each process reads its own part of the files.

# %%
command = [
    sys.executable, "-m", "fedcmi_jax.cli", "train", "--dataset.name=npz", "--dataset.path=large",
    "--partition.name=natural", "--encoder.features=32", "--method.name=fedavg", "--local.epochs=1",
    "--local.learning-rate=0.1", "--clients=0", "--clients-per-round=64", "--multimodal-fraction=1", "--rounds=10",
    "--eval-every=5", "--chunk-size=16", "--host-devices=2", "--spread-samples", "--output=runs/spread",
]  # fmt: skip
done = subprocess.run(command, capture_output=True, text=True, check=True)
print(done.stdout.split("where")[0])

# %% [markdown]
# The same work per client at growing counts is one command: `fedcmi sweep clients --counts=10,1000,100000` writes a
# table and a figure. `docs/speed.md` has what it measured, on which machine.
