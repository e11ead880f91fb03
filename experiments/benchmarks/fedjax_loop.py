"""FedAvg with FedJAX: ``python fedjax_loop.py SPEC.json``.

Its fed_avg algorithm over InMemoryFederatedData, everybody in every round, optimizers
from optax by its wrapper and gradients by fedjax.grad. The model is written out in
jax.numpy. Each client's random key, of which nothing here depends, is made once. See
peer.py for the protocol; ``form`` has no meaning here. ``threads`` is the number of
cores that the process may use (null: all), since XLA has no other setting.

FedJAX fills the last batch of a client up with samples of a further epoch. Where the
batch size does not divide every client's samples, its padded batches with a mask are
used instead, by a ClientDataset that overrides one method.
"""

import os
import platform
import time
from collections.abc import Iterator
from importlib.metadata import version

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from peer import Data, Spec, SpecError, load_data, peak_rss, serve


class ShortBatches(fedjax.ClientDataset):
    """A client whose epochs end in a smaller batch."""

    def shuffle_repeat_batch(
        self, hparams: fedjax.ShuffleRepeatBatchHParams
    ) -> Iterator[dict[str, np.ndarray]]:
        """What FedJAX's training calls; yields batches padded to one size."""
        for _ in range(hparams.num_epochs):
            epoch = self
            if not hparams.skip_shuffle:
                rows = np.random.permutation(len(self))  # noqa: NPY002, as FedJAX
                samples = {k: x[rows] for k, x in self.raw_examples.items()}
                epoch = fedjax.ClientDataset(samples)
            yield from epoch.padded_batch(batch_size=hparams.batch_size)


class FedjaxLoop:
    """The peer; see ``peer.Peer``."""

    def __init__(self, spec: Spec):
        if spec.method != "fedavg" or spec.model != "classifier":
            raise SpecError("method: this peer has fedavg on a classifier only")
        if spec.encoder != "mlp":
            raise SpecError("encoder: this peer has mlp only")
        if spec.threads is not None:  # before XLA makes its threads
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, cores[: spec.threads])
        np.random.seed(0)  # noqa: NPY002, what FedJAX draws from
        self.threads = len(os.sched_getaffinity(0))
        packages = ("fedjax", "jax", "jaxlib", "optax", "numpy")
        self.versions = {"python": platform.python_version()}
        self.versions |= {name: version(name) for name in packages}
        data = load_data(spec)
        self.params = {k: jnp.asarray(x) for k, x in data.arrays.items()}
        self.algorithm = fedjax.algorithms.fed_avg.federated_averaging(
            fedjax.grad(per_example_loss(spec, data)),
            client_optimizer(spec),
            fedjax.optimizers.sgd(learning_rate=1.0),
            fedjax.ShuffleRepeatBatchHParams(
                batch_size=spec.batch_size,
                num_epochs=spec.epochs,
                skip_shuffle=not spec.shuffle,
            ),
        )
        self.clients = clients(spec, data)
        self.reset()
        self.round()

    def round(self) -> float:
        """Runs one round and returns its seconds."""
        begun = time.perf_counter()
        self.state, _ = self.algorithm.apply(self.state, self.clients)
        jax.block_until_ready(self.state.params)
        return time.perf_counter() - begun

    def reset(self) -> None:
        """Back to the initial model."""
        self.state = self.algorithm.init(self.params)

    def arrays(self) -> dict[str, np.ndarray]:
        """The global model by path."""
        return {k: np.asarray(x) for k, x in self.state.params.items()}

    def close(self) -> int:
        """Peak memory in bytes."""
        return peak_rss()


def per_example_loss(spec: Spec, data: Data):
    """Cross-entropy of every sample, a function of (params, batch, key).

    Raises:
      SpecError: The arrays are not those of the model.
    """
    layers = {m: [] for m in spec.modalities}
    for m, own in layers.items():
        while f"params/encoder/{m}/dense{len(own)}/kernel" in data.arrays:
            own.append(f"params/encoder/{m}/dense{len(own)}")
    blocks = [*sum(layers.values(), []), "params/fusion/out"]
    paths = {f"{block}/{name}" for block in blocks for name in ("kernel", "bias")}
    if paths != set(data.arrays):
        wrong = sorted(paths ^ set(data.arrays))
        raise SpecError(f"data: missing or left over for this model: {wrong[:4]}")

    def dense(params, block, x):
        return x @ params[f"{block}/kernel"] + params[f"{block}/bias"]

    def loss(params, batch, key):
        del key
        features = []
        for m, own in layers.items():
            x = batch[m].reshape(len(batch[m]), -1)
            for block in own:
                x = jax.nn.relu(dense(params, block, x))
            features.append(x)
        logits = dense(params, "params/fusion/out", jnp.concatenate(features, 1))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    return loss


def client_optimizer(spec: Spec) -> fedjax.optimizers.Optimizer:
    """SGD with momentum; weight decay is added to the gradient, as in torch."""
    return fedjax.optimizers.create_optimizer_from_optax(
        optax.chain(
            optax.add_decayed_weights(spec.weight_decay),
            optax.sgd(spec.learning_rate, momentum=spec.momentum or None),
        )
    )


def clients(spec: Spec, data: Data) -> list:
    """(id, data set, key) of everybody, kept for all rounds."""
    columns = {**data.inputs, "label": data.labels.astype(np.int32)}
    federation = fedjax.InMemoryFederatedData(
        {
            i: {k: x[offset : offset + size] for k, x in columns.items()}
            for i, (offset, size) in enumerate(
                zip(data.offsets, data.sizes, strict=True)
            )
        }
    )
    found = list(federation.clients())
    if any(size % spec.batch_size for size in data.sizes):
        found = [(i, ShortBatches(dataset.raw_examples)) for i, dataset in found]
    keys = jax.random.split(jax.random.PRNGKey(0), len(found))
    return [(i, dataset, key) for (i, dataset), key in zip(found, keys, strict=True)]


if __name__ == "__main__":
    serve(FedjaxLoop)
