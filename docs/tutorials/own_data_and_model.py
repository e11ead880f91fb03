# %% [markdown]
# # Your data, your model
#
# Six hospitals hold a trace of forty values and three vital signs of each patient; some patients lack the trace.
# The arrays are drawn at random here; put yours in their place.

# %%
import flax.linen as nn
import jax
import numpy as np
from flax import nnx

import fedcmi_jax as fc

fc.backend.guard()

# %% [markdown]
# ## Arrays
#
# `from_arrays` takes a dict of arrays per split, labels, and, where there are any, ids of natural clients and a table
# that says which modalities a sample has. It checks all of it: what is wrong is one line.

# %%
rng = np.random.default_rng(0)


def draw(n):
    """Three classes; the trace shows them clearly, the vital signs a little."""
    labels = rng.integers(0, 3, n)
    wave = np.sin(np.arange(40)[None] * (0.3 + 0.2 * labels[:, None]))
    trace = wave + rng.normal(size=(n, 40))
    vitals = 0.5 * np.eye(3)[labels] + rng.normal(size=(n, 3))
    return {"trace": trace, "vitals": vitals}, labels


train, labels = draw(600)
test, test_labels = draw(300)
hospital = np.array(["A", "B", "C", "D", "E", "F"])[rng.integers(0, 6, 600)]
has_trace = rng.random(600) < 0.8

data = fc.data.from_arrays(
    train,
    labels,
    test,
    test_labels,
    class_names=("rest", "walk", "run"),
    clients=hospital,
    available=np.stack([has_trace, np.ones(600)], axis=1),
)
print(data.modalities, data.shapes, data.class_names)

# %%
try:
    fc.data.from_arrays(train, labels[:-1], test, test_labels)
except ValueError as error:
    print(error)

# %% [markdown]
# ## Encoders
#
# Any flax module that maps a batch [B, ...] to features [B, F], linen or nnx, as it is. It gets what its `__call__`
# names: `train`, or a `mask` [B] of the samples that are real. Dropout draws from the client's own key; a stock
# BatchNorm counts real samples only. `fc.models.Conv` is `nn.Conv`, fast in a client's training on CPU.
# `docs/new_model.md` has the rules.


# %%
class Filters(nn.Module):
    """Filters over eight neighbouring values, and the largest response of each."""

    features: int

    @nn.compact
    def __call__(self, x, train):
        x = fc.models.Conv(self.features, (8,), name="conv")(x[..., None])
        return nn.Dropout(0.1, deterministic=not train)(nn.relu(x).max(axis=1))


class Signs(nnx.Module):
    """A layer over the vital signs."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 16, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.dense(x))


encoders = {"trace": Filters(32), "vitals": fc.models.from_nnx(Signs)}
model = fc.models.two_projector(encoders, data.shapes, data.num_classes, width=32)
print("features per modality:", model.widths)

# %% [markdown]
# ## Train
#
# Each hospital is a client. All take part in every round.

# %%
parts = fc.partition.natural(data.train, 6, rng)
federation = fc.build_federation(data, parts)
algorithm = fc.build_algorithm(
    fc.methods.fedcmi(),
    model,
    clients_per_round=6,
    local=fc.LocalTraining(epochs=2, batch_size=32, learning_rate=0.02),
    rounds_per_call=15,
)
state = algorithm.init(jax.random.key(0), federation)
state, info = algorithm.run(state, federation, 15)
evaluate = fc.build_evaluator(model, data.test, federation)
metrics = fc.evaluation.summarise(evaluate(state.params, state.batch_stats))
print(f"accuracy {metrics['acc']:.3f}, trace alone {metrics['acc_trace_zero']:.3f}")

# %% [markdown]
# The same in one call, in a folder that `fc.resume` goes on with and `fc.load_run` opens; without `output` nothing
# is written.

# %%
settings = {
    "rounds": 3,
    "clients": 6,
    "clients_per_round": 6,
    "partition": {"name": "natural"},
    "multimodal_fraction": 1.0,
    "local": {"epochs": 2, "learning_rate": 0.02},
    "model": {"width": 32},
}
history = fc.train(settings, dataset=data, encoders=encoders, output="hospitals")
run = fc.load_run("hospitals", dataset=data, encoders=encoders)
print(
    "rounds:", history.column("round"), "predictions:", run.predict(test).argmax(1)[:5]
)

# %% [markdown]
# ## Is the model sound?
#
# The conformance suite runs on any model and method. One of its checks: a modality that nobody has leaves its
# blocks as they were. `testing.CHECKS` has all; it needs `pip install fedcmi_jax[test]`.

# %%
from fedcmi_jax import testing

shapes = {"zeta": (6,), "alpha": (6,)}  # of the suite's own problem
small = fc.models.classifier({m: Filters(8) for m in shapes}, shapes, 4)
testing.CHECKS["a_modality_nobody_has_stays"](testing.Case(fc.methods.fedavg(), small))

# %% [markdown]
# ## From the command line
#
# Save the arrays, give the encoder a name and options, and both are flags. In a package of your own the last
# line would be found by `--import=package`:
#
# ```sh
# fedcmi train --import=package --dataset.name=npz --dataset.path=own.npz --encoder-names=filters,mlp \
#   --partition.name=natural --clients=0 --clients-per-round=6 --multimodal-fraction=1
# ```

# %%
arrays = {f"train/{m}": x for m, x in train.items()} | {
    f"test/{m}": x for m, x in test.items()
}
arrays |= {
    "train/labels": labels,
    "test/labels": test_labels,
    "train/clients": hospital,
    "train/available": data.train.available,
    "class_names": data.class_names,
}
np.savez("own.npz", **arrays)


def filters(*, features: int = 32) -> nn.Module:
    """Filters over eight neighbouring values.

    Args:
      features: Number of filters.
    """
    return Filters(features)


fc.register("encoder", "filters", filters)

# %%
history = fc.train(
    {
        "dataset": {"name": "npz", "path": "own.npz"},
        "partition": {"name": "natural"},
        "encoder_names": ("filters", "mlp"),
        "clients": 0,  # as many as there are hospitals
        "clients_per_round": 6,
        "multimodal_fraction": 1.0,  # each hospital has both
        "method": {"name": "fedavg"},
        "rounds": 10,
        "eval_every": 5,
    },
    output="runs/own",
)
print(history.column("acc").round(3))

# %% [markdown]
# ## Predict
#
# A run's folder is all that is needed. A patient without a trace: say so, what stands in the array is not looked at.

# %%
run = fc.load_run("runs/own")
patients = {m: x[:4] for m, x in test.items()}
both = run.predict(patients)
vitals_only = run.predict(patients, available=[[0, 1]] * 4)
print(
    "both modalities",
    both.argmax(axis=1),
    "vital signs only",
    vitals_only.argmax(axis=1),
)
