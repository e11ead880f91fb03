# %% [markdown]
# # A new method in twenty lines
#
# The idea: no client may go far in a single step. Every local gradient is cut to a largest length c,
#
# $$g \leftarrow g \cdot \min(1, c / \lVert g \rVert_2).$$
#
# That is one hook. We write it, test it, train it from the command line, kill the run and resume it.

# %%
import os
import pathlib
import signal
import subprocess
import sys

import fedcmi_jax as fc

fc.backend.guard()

# %% [markdown]
# ## The method
#
# A module with a factory: its keyword-only options become flags, its docstring their help. The hook `update` comes
# between autodiff and the optimizer and sees ONE client: no loop over clients, no aggregation. Blocks that a
# client does not own have a zero gradient, so they do not count for the length.

# %%
SOURCE = '''"""Local gradients of bounded length."""

import jax.numpy as jnp
import optax

import fedcmi_jax as fc


def bounded(*, length: float = 1.0) -> fc.Method:
    """g <- g min(1, c / ||g||): no local gradient is longer than c.

    Args:
      length: c, above 0; infinite is FedAvg exactly.
    """
    if not length > 0:
        raise ValueError(f"length: {length} is not above 0; try 1")

    def update(client, grads, step, context):
        norm = optax.tree.norm(grads)
        factor = jnp.minimum(1.0, length / jnp.maximum(norm, 1e-12))
        return optax.tree.scale(factor, grads), context

    return fc.Method(name="bounded", update=update)


fc.register("method", "bounded", bounded)
'''
pathlib.Path("bounded_steps.py").write_text(SOURCE)
sys.path.append(os.getcwd())

import bounded_steps

method = bounded_steps.bounded(length=0.5)
print(method.name, "fills", fc.methods.hooks(method))

# %% [markdown]
# ## Does it behave?
#
# The conformance suite holds for every method: padding changes nothing, a poisoned client is rejected, a resumed
# state gives the same bits, ... Two of its checks here; in a test file of yours, all of them
# (`fedcmi_jax.testing` shows how).

# %%
from fedcmi_jax import testing

case = testing.Case(method)
for name in ("chunks_and_padding_change_nothing", "a_poisoned_client_is_rejected"):
    testing.CHECKS[name](case)
    print("holds:", name)

# %% [markdown]
# And what is this method's own: with an infinite length it is FedAvg.

# %%
import jax
import numpy as np

off = testing.Case(bounded_steps.bounded(length=float("inf"))).two_rounds[0]
plain = testing.Case(fc.methods.fedavg()).two_rounds[0]
same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), off.params, plain.params)
print("equal to FedAvg:", all(jax.tree.leaves(same)))
acts = jax.tree.map(
    lambda a, b: bool(np.array_equal(a, b)), case.two_rounds[0].params, plain.params
)
print("different when it acts:", not all(jax.tree.leaves(acts)))

# %% [markdown]
# ## Train it
#
# The command line imports the module, and the run's configuration remembers it.

# %%
FEDCMI = [sys.executable, "-m", "fedcmi_jax.cli"]  # `fedcmi`, of this environment


def train(folder):
    """The command that trains, into this folder."""
    return [
        *FEDCMI, "train", "synthetic", "--import=bounded_steps", "--method.name=bounded", "--method.length=0.5",
        "--dataset.train-samples=400", "--rounds=20", "--local.learning-rate=0.1", "--checkpoint-every=2", f"--output={folder}",
    ]  # fmt: skip


print("fedcmi", *train("runs/whole")[3:])
done = subprocess.run(train("runs/whole"), capture_output=True, text=True, check=True)
print(*done.stdout.split("where")[0].splitlines()[-8:], sep="\n")

# %% [markdown]
# ## Kill it, resume it
#
# The same run again, killed as soon as it has a checkpoint: SIGKILL gives a process no time to save anything.
# `resume` goes on from the last checkpoint, in a new process that imports the module again.

# %%
process = subprocess.Popen(train("runs/cut"), stdout=subprocess.PIPE, text=True)
for _ in process.stdout:
    if any(pathlib.Path("runs/cut/checkpoints").glob("[0-9]*")):
        process.send_signal(signal.SIGKILL)
        break
process.wait()
process.stdout.close()
print("ended by signal", -process.returncode)

# %%
done = subprocess.run(
    [*FEDCMI, "resume", "runs/cut"], capture_output=True, text=True, check=True
)
print(*done.stdout.split("where")[0].splitlines()[-8:], sep="\n")
whole, cut = (fc.load_run(f"runs/{name}") for name in ("whole", "cut"))
params, resumed = whole.params()[0], cut.params()[0]
equal = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), params, resumed)
print("same bits:", all(jax.tree.leaves(equal)))
