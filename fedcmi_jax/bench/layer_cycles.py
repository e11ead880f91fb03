"""Single convolutions on a TPU that is not there: the compiler's cycles of each form.

A program without a loop has an estimate of its cycles in its text. So forms of one
layer compare, forward and backward, for some clients with a kernel each.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding

from fedcmi_jax.bench import hlo, topology
from fedcmi_jax.bench.layers import LAYERS, Layer
from fedcmi_jax.types import Array

CLIENTS = 4
"""Clients whose kernels differ, in every form; as experiments/benchmarks/accelerator.py
measures them, and few, for the unrolled form takes long to compile."""


def _lax(layer: Layer, x: Array, w: Array) -> Array:
    return jax.lax.conv_general_dilated(x, w, **layer.options)


def _patches(layer: Layer, x: Array, w: Array) -> Array:
    """What every output sees, cut out by a convolution, times the kernel."""
    taps = layer.weights[:-2]
    cut = jax.lax.conv_general_dilated_patches(x, taps, **layer.options)
    # Its features are channel first, then the tap.
    return cut @ jnp.moveaxis(w, -2, 0).reshape(-1, w.shape[-1])


def _gradients(
    conv: Callable[[Layer, Array, Array], Array], layer: Layer, x: Array, w: Array
) -> tuple[Array, ...]:
    y, vjp = jax.vjp(functools.partial(conv, layer), x, w)
    dx, dw = vjp(y)
    return (dw,) if layer.first else (dx, dw)


def _mapped(conv: Callable[..., Array], layer: Layer) -> Callable[..., Any]:
    return jax.vmap(functools.partial(_gradients, conv, layer))


def _unrolled(layer: Layer) -> Callable[..., Any]:
    def step(x: Array, w: Array) -> tuple[Array, ...]:
        each = [_gradients(_lax, layer, x[i], w[i]) for i in range(len(x))]
        return tuple(jnp.stack(arrays) for arrays in zip(*each, strict=True))

    return step


FORMS: dict[str, Callable[[Layer], Callable[..., Any]]] = {
    "grouped": functools.partial(_mapped, _lax),
    "unrolled": _unrolled,
    "patches": functools.partial(_mapped, _patches),
}
"""Form -> layer -> the step of all clients, from x [clients, ...] and w."""


def cycles(
    step: Callable[..., Any], layer: Layer, clients: int | None, mesh: Mesh
) -> int:
    """The compiler's cycles of a step on one chip of the mesh.

    Args:
      step: From x and w.
      layer: Its shapes.
      clients: Leading axis of both; None: there is none.
      mesh: ``topology.topology_mesh``.
    """
    chip = SingleDeviceSharding(mesh.devices.flat[0])
    many = () if clients is None else (clients,)
    shapes = (
        (*many, layer.batch, *layer.size, layer.channels),
        (*many, *layer.weights),
    )
    args = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=chip) for s in shapes]
    program = topology.compiled(jax.jit(step).lower(*args))
    return hlo.estimated_cycles(program.as_text() or "")


def rows(mesh: Mesh) -> Iterator[dict[str, Any]]:
    """Every layer in every form.

    Args:
      mesh: ``topology.topology_mesh``; one chip of it is compiled for.

    Yields:
      A row per layer, with the names of the JSON that ``fedcmi bench`` writes; cycles
      of ``CLIENTS`` clients. ``in turn`` is one client's program, that many times.
    """
    for layer in LAYERS:
        one = functools.partial(_gradients, _lax, layer)
        found = {"in turn": CLIENTS * cycles(one, layer, None, mesh)}
        for form, build in FORMS.items():
            found[form] = cycles(build(layer), layer, CLIENTS, mesh)
        yield {
            "workload": "layers",
            "entry": layer.name,
            "clients": CLIENTS,
            "flops": CLIENTS * layer.flop,
            "cycles": found,
        }
