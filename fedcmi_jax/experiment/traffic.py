"""How many bytes a client receives and sends in a round, block by block."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.assembly import build_federation
from fedcmi_jax.blocks import statistics_weights
from fedcmi_jax.compression import Compression
from fedcmi_jax.data.base import Dataset
from fedcmi_jax.federation import ClientData
from fedcmi_jax.methods.base import Method, is_set
from fedcmi_jax.methods.seen import Client, LocalUpdate
from fedcmi_jax.partition import Partition
from fedcmi_jax.types import Array, Model, Params, PyTree
from fedcmi_jax.uploads import is_like_params

OWN = "method"
"""Where the bytes of an upload are counted that is not made of the model's blocks."""


class Traffic(NamedTuple):
    """Bytes per client and round.

    Attributes:
      down: Block -> parameters and BatchNorm statistics that a client receives, the
        mean over all clients, or [N], of each.
      up: Block -> those that it sends, and what the method sends beside them
        (``Method.finish``); the latter under "method" where it is not made of blocks.
    """

    down: dict[str, Any]
    up: dict[str, Any]


def traffic(
    method: Method,
    model: Model,
    dataset: Dataset,
    available: np.ndarray,
    compression: Compression | None = None,
) -> Traffic:
    """The mean over all clients of ``traffic_by_client``.

    Example:
      >>> import fedcmi_jax as fc
      >>> data = fc.data.load("synthetic", train_samples=64, test_samples=16)
      >>> encoders = {m: fc.models.mlp(features=8) for m in data.modalities}
      >>> model = fc.models.classifier(encoders, data.shapes, 10)
      >>> has = np.array([[1, 1], [1, 0]])
      >>> traffic(fc.methods.fedavg(), model, data, has).up
      {'encoder/strong': 1056.0, 'encoder/weak': 528.0, 'fusion': 680.0}
      >>> model = fc.models.frozen(model, ["encoder/*"])
      >>> traffic(fc.methods.fedavg(), model, data, has).up
      {'encoder/strong': 0.0, 'encoder/weak': 0.0, 'fusion': 680.0}
    """
    return mean(traffic_by_client(method, model, dataset, available, compression))


def mean(found: Traffic) -> Traffic:
    """Of ``traffic_by_client``: the mean over all clients."""
    return Traffic(
        *({block: float(x.mean()) for block, x in part.items()} for part in found)
    )


def of_cohort(found: Traffic, ids: np.ndarray) -> tuple[int, int]:
    """Bytes down and up of a round with these clients.

    Args:
      found: ``traffic_by_client``.
      ids: Of the clients.

    Example:
      >>> by_client = np.array([100.0, 40.0, 0.0])
      >>> of_cohort(Traffic({"a": by_client}, {"a": by_client / 4}), np.array([0, 1]))
      (140, 35)
    """
    down, up = (sum(part.values()) for part in found)
    return int(down[ids].sum()), int(up[ids].sum())


def traffic_by_client(
    method: Method,
    model: Model,
    dataset: Dataset,
    available: np.ndarray,
    compression: Compression | None = None,
) -> Traffic:
    """What goes over the network in a round, by ownership; nothing is computed.

    A client is sent, and sends, the blocks that it owns: nothing of a modality that it
    lacks, of what is frozen (which it has received once and for all) or of what is its
    own (``Method.personal``). Parameters that it sends count as the compression makes
    them, everything else as it is in memory. A client that ``Method.select`` lets use
    fewer modalities counts with all of its own.
    What a method's hooks read of its server-side state is not counted: which part of it
    a client needs, the record of hooks does not say (SCAFFOLD: c, as large as the
    model).

    Args:
      method: Its uploads are counted.
      model: The model.
      dataset: Its first training sample is what shapes are traced with.
      available: [N, M], which modalities each client has.
      compression: Of what is sent; None: there is none.

    Returns:
      Bytes by block, float64 [N]; all blocks are there, if only with 0.
    """
    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    table = jnp.asarray(available, jnp.float32)
    owners = jax.vmap(model.owned)(table)
    nobody = np.zeros(len(table))
    shares = jax.tree.map(lambda x: np.asarray(x, np.float64), owners)
    for kind in method.personal:
        shares[kind] = nobody
    down: dict[str, np.ndarray] = {}
    _add(down, shares, params)
    of_stats = statistics_weights(shares, stats)
    _add(down, of_stats, stats)
    up: dict[str, np.ndarray] = {}
    _add(up, shares, params, compression)
    _add(up, of_stats, stats)
    upload = uploaded(method, model, dataset)
    parts = upload if type(upload) is tuple else (upload,)
    for part in parts:
        if is_like_params(part, shares):
            _add(up, shares, part)
        elif jax.tree.leaves(part):
            _add(up, {OWN: nobody + 1}, {OWN: part})
    return Traffic(down, up)


def uploaded(method: Method, model: Model, dataset: Dataset) -> PyTree:
    """Shapes of a client's upload, by tracing the hooks on one sample."""
    if not is_set(method, "finish"):
        return ()
    train = dataset.train
    first = train._replace(
        inputs=jax.tree.map(lambda x: x[:1], train.inputs),
        labels=train.labels[:1],
        clients=None,
        available=None,
    )
    federation = build_federation(
        dataset._replace(train=first),
        Partition(np.arange(1), np.ones(1, np.int64)),
        np.ones((1, len(dataset.modalities)), bool),
    )

    def upload(key: Array) -> PyTree:
        params, stats = model.init(key)
        shared, memory = method.init(model, params, 1)
        one, nothing = jnp.ones((), jnp.int32), jnp.zeros((), jnp.int32)
        data = ClientData(
            federation, nothing, one, nothing, federation.available[0], 1, one
        )
        client = Client(
            model, params, stats, shared, memory, data, nothing, jnp.ones(()), one
        )
        context, _ = method.begin(client, key)
        return method.finish(client, LocalUpdate(params, stats), context)[0]

    return jax.eval_shape(upload, jax.random.key(0))


def described(found: Traffic) -> str:
    """The sums in a line, and the blocks of which nothing goes over the network.

    Example:
      >>> none = {"encoder/a": 0.0}
      >>> described(Traffic({"fusion": 2048.0} | none, {"fusion": 2052.0} | none))
      'per client and round 2.0 kB down, 2.1 kB up; nothing of encoder/a'
    """
    down, up = (sum(x.values()) / 1e3 for x in found)
    line = f"per client and round {down:,.1f} kB down, {up:,.1f} kB up"
    still = [block for block, size in found.up.items() if size == 0]
    return f"{line}; nothing of {', '.join(still)}" if still else line


def _add(
    found: dict[str, np.ndarray],
    shares: Params,
    tree: Any,
    compression: Compression | None = None,
) -> None:
    """Adds the bytes of a tree like the parameters to those of its blocks."""
    for kind, block in tree.items():
        share = shares[kind]
        parts = block if isinstance(share, dict) else {"": block}
        for name, part in parts.items():
            path = f"{kind}/{name}" if name else kind
            own = share[name] if isinstance(share, dict) else share
            found[path] = found.get(path, 0.0) + _bytes(own, part, compression)


def _bytes(share: PyTree, tree: PyTree, compression: Compression | None) -> np.ndarray:
    """Bytes of a tree, for each client those of the parts that it owns."""

    def size(x: jax.ShapeDtypeStruct) -> int:
        full = x.size * x.dtype.itemsize
        return full if compression is None else compression.num_bytes(x.size)

    def total(own: np.ndarray, part: PyTree) -> np.ndarray:
        return np.asarray(own, np.float64) * sum(map(size, jax.tree.leaves(part)))

    nobody = np.zeros(len(jax.tree.leaves(share)[0]))
    return sum(jax.tree.leaves(jax.tree.map(total, share, tree)), nobody)
