# %% [markdown]
# # FedCMI in ten minutes
#
# Twenty clients hold handwritten digits in two views, a clean and a noisy one. Half of the clients lack a view.
# We train FedAvg, FedCMI without distillation and FedCMI on the same federation, and read what they learned.
#
# This page is a script with cells: `jupytext --to ipynb ten_minutes.py` makes a notebook of it.

# %%
import jax
import numpy as np

import fedcmi_jax as fc

# Sets what this version of the compiler needs, if it has a known fault (`fedcmi doctor`).
fc.backend.guard()

# %% [markdown]
# ## Data
#
# A data set is host arrays and names. The digits come with scikit-learn, nothing is downloaded.

# %%
data = fc.data.load("noisy_digits")
print(data.modalities, data.shapes, data.num_classes, "classes")
print(data.train.size, "training samples,", data.test.size, "test samples")

# %% [markdown]
# ## Clients
#
# A partition deals samples to clients: here by a Dirichlet law, so that each client has mostly a few classes.
# Then every client gets the modalities that it has. **Ownership** is this table, [clients, modalities]: a
# modality that a client lacks is a zero in it, and nothing downstream branches on that.

# %%
rng = np.random.default_rng(0)
parts = fc.partition.dirichlet(data.train, 20, rng, alpha=0.3)
has = fc.partition.allocate_modalities(20, 2, rng, multimodal_fraction=0.5)

kinds = ["+".join(np.array(data.modalities)[row]) for row in has.astype(bool)]
for kind in sorted(set(kinds)):
    print(f"{kind:<12} {kinds.count(kind)} clients")
print(
    "samples of the smallest and the largest client:",
    parts.sizes.min(),
    parts.sizes.max(),
)

federation = fc.build_federation(data, parts, has)

# %% [markdown]
# ## Model
#
# One encoder per modality, and FedCMI's two projectors behind each: `self` projects a modality for the fusion,
# `infiltration` predicts what the other one would have given. The parameters are blocks. A client trains,
# sends and is averaged into only those that it owns:

# %%
encoders = {m: fc.models.mlp(features=128) for m in data.modalities}
model = fc.models.two_projector(encoders, data.shapes, data.num_classes, width=128)
only_clean = model.owned(jax.numpy.array([1.0, 0.0]))
for kind, owners in only_clean.items():
    shown = (
        {m: float(x) for m, x in owners.items()}
        if isinstance(owners, dict)
        else float(owners)
    )
    print(f"{kind:<14} {shown}")

# %% [markdown]
# ## Train
#
# A method is a record of pure functions. The three below share data, model, clients and seed. `lam` weights the
# distillation from the strong modality into the weak one, so `lam=0` keeps FedCMI's heads only. `run` is one
# compiled program for all rounds.

# %%
ROUNDS = 30
local = fc.LocalTraining(epochs=5, batch_size=32, learning_rate=0.01)
evaluate = fc.build_evaluator(model, data.test, federation)


def train(method):
    algorithm = fc.build_algorithm(
        method, model, clients_per_round=5, local=local, rounds_per_call=ROUNDS
    )
    state = algorithm.init(jax.random.key(0), federation)
    state, info = algorithm.run(state, federation, ROUNDS)
    return fc.evaluation.summarise(evaluate(state.params, state.batch_stats))


methods = {
    "FedAvg": fc.methods.fedavg(),
    "heads only": fc.methods.fedcmi(lam=0.0),
    "FedCMI": fc.methods.fedcmi(),
}
results = {name: train(method) for name, method in methods.items()}

# %% [markdown]
# ## Read the metrics
#
# - `acc`: test accuracy with both views.
# - `acc_noisy_zero`: with the noisy view only, the other's features zero.
# - `acc_noisy_infiltration`: the noisy view only, its infiltration projection in the place of the other.
# - `client_mean`, `client_min`: over clients, each weighted by its own classes, with the modalities it has.
#
# `docs/glossary.md` has all of them.

# %%
columns = [
    "acc",
    "acc_clean_zero",
    "acc_noisy_zero",
    "acc_noisy_infiltration",
    "client_mean",
    "client_min",
]
print(f"{'':<12}" + "".join(f"{c:>24}" for c in columns))
for name, metrics in results.items():
    print(f"{name:<12}" + "".join(f"{metrics[c]:>24.3f}" for c in columns))

# %% [markdown]
# FedAvg has never trained the infiltration projectors, so its number in that column means nothing. One seed and
# thirty rounds decide nothing either: `docs/results.md` has means and deviations over seeds.
#
# ## The same, as a run
#
# `fc.train` takes a preset or a configuration. With `output=` it writes a run folder such as `fedcmi train`
# writes, listed by `fedcmi list runs` and gone on with by `fc.resume` or `fedcmi resume`; without it, nothing.

# %%
config = {
    "dataset": {"name": "noisy_digits"},
    "encoder": {"name": "mlp", "features": 128},
    "method": {"name": "fedcmi"},
    "local": {"learning_rate": 0.01},
    "rounds": 10,
    "eval_every": 5,
}
history = fc.train(config, output="runs/ten-minutes")
print(history.column("round"), history.column("acc").round(3))

# %%
run = fc.load_run("runs/ten-minutes")
logits = run.predict({m: x[:5] for m, x in data.test.inputs.items()})
print("predicted", logits.argmax(axis=1), "true", data.test.labels[:5])
