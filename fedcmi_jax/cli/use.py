"""``fedcmi evaluate``, ``predict``, ``export``: what a trained model is for."""

import importlib.util
import json

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.blocks import by_path
from fedcmi_jax.cli.run_commands import Evaluate, Export, Predict
from fedcmi_jax.data.array_files import nested
from fedcmi_jax.data.raw import safetensors
from fedcmi_jax.data.raw.npy import read_npz, zipped
from fedcmi_jax.experiment.files import plain, replace, write_json
from fedcmi_jax.experiment.outputs import check_file
from fedcmi_jax.experiment.run_folder import check_free
from fedcmi_jax.experiment.runs import Round, Run, load_run, round_of


def evaluate(options: Evaluate) -> int:
    """Runs ``fedcmi evaluate``.

    Returns:
      The exit code.

    Raises:
      ValueError: The folder is no run, or has no such model.
    """
    round = round_of(options.round)
    found = load_run(options.run_folder).evaluate(round=round)
    print(json.dumps(plain(found, null_non_finite=True), indent=2))
    return 0


def predict(options: Predict) -> int:
    """Runs ``fedcmi predict``.

    Returns:
      The exit code.

    Raises:
      ValueError: The folder is no run or has no such model, or the input is not what
        the model takes. Nothing is written then.
    """
    round = round_of(options.round)
    if options.input is None or options.output is None:
        raise ValueError("predict: give --input=SAMPLES.npz and --output=NEW.npz")
    check_file(options.output)
    if options.output.exists():
        raise ValueError(f"--output: {options.output} exists; choose another")
    if not options.input.is_file():
        raise ValueError(f"--input: there is no file {options.input}")
    arrays = read_npz(options.input)
    available = arrays.pop("available", None)
    inputs = nested(arrays, str(options.input))
    run = load_run(options.run_folder)
    logits = run.predict(inputs, available, round)
    found = {
        "logits": logits,
        "probabilities": np.asarray(jax.nn.softmax(logits)),
        "labels": logits.argmax(1).astype(np.int32),
        "class_names": np.array(run.experiment.dataset.class_names),
    }
    replace(options.output, zipped(found))
    print(f"written: {options.output} ({len(logits):,} samples)")
    return 0


def export(options: Export) -> int:
    """Runs ``fedcmi export``.

    Returns:
      The exit code.

    Raises:
      ValueError: The folder is no run or has no such model, or the output is taken.
    """
    round = round_of(options.round)
    source = options.run_folder.resolve()
    folder = options.output or source.with_name(f"{source.name}-export")
    check_free(folder)
    run = load_run(source)
    params, stats = run.params(round)
    program = _program(run, round)
    files = {"predict.stablehlo": program.mlir_module_serialized}
    # jax.export writes its own format by a package that JAX does not bring along.
    if importlib.util.find_spec("flatbuffers"):
        files["predict.jax"] = bytes(program.serialize())
    arrays = by_path({"params": params, "batch_stats": stats})
    files["params.npz"] = zipped(arrays)
    if safetensors.is_available():
        files[f"params{safetensors.SUFFIX}"] = safetensors.packed(arrays)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        replace(folder / name, content)
    data = run.experiment.dataset
    described = {
        "modalities": list(data.modalities),
        "shapes": data.shapes,
        "dtypes": jax.tree.map(lambda s: str(s.dtype), data.shapes),
        "class_names": list(data.class_names),
        "arguments": ["inputs: {modality: [b, ...]}", "available: [b, M] float32"],
        "result": "logits [b, C] float32",
        "platforms": list(PLATFORMS),
        "round": options.round,
    }
    write_json(folder / "model.json", described)
    print(f"written: {folder}: model.json, {', '.join(sorted(files))}")
    return 0


PLATFORMS = ("cpu", "cuda", "tpu")
"""What an exported program runs on."""


def _program(run: Run, round: Round) -> jax.export.Exported:
    """The model's predictions, parameters inside, as a program."""
    (size,) = jax.export.symbolic_shape("b")
    data = run.experiment.dataset

    def samples(x: np.ndarray) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct((size, *x.shape[1:]), dtype)

    inputs = jax.tree.map(samples, data.train.inputs)
    table = jax.ShapeDtypeStruct((size, len(data.modalities)), jnp.float32)
    predictor = jax.jit(run.predictor(round))
    return jax.export.export(predictor, platforms=PLATFORMS)(inputs, table)
