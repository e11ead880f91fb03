"""``fedcmi evaluate``, ``predict``, ``export``: what a trained model is for."""

import importlib.util
import json

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.blocks import by_path
from fedcmi_jax.cli.commands import Evaluate, Export, Predict
from fedcmi_jax.data.arrays import read_npz
from fedcmi_jax.experiment.files import plain, write_json
from fedcmi_jax.experiment.run_folder import check_free
from fedcmi_jax.experiment.runs import Round, Run, load_run


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
    if options.output.exists():
        raise ValueError(f"--output: {options.output} exists; choose another")
    if not options.output.parent.is_dir():
        raise ValueError(
            f"--output: no folder {options.output.parent}; create it first"
        )
    if not options.input.is_file():
        raise ValueError(f"--input: there is no file {options.input}")
    inputs = read_npz(options.input)
    available = inputs.pop("available", None)
    run = load_run(options.run_folder)
    logits = run.predict(inputs, available, round)
    with options.output.open("wb") as file:
        np.savez(
            file,
            logits=logits,
            probabilities=np.asarray(jax.nn.softmax(logits)),
            labels=logits.argmax(1).astype(np.int32),
            class_names=np.array(run.experiment.dataset.class_names),
        )
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
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "params.npz").open("wb") as file:
        arrays = {"params": params, "batch_stats": stats}
        np.savez(file, **by_path(arrays))  # type: ignore[arg-type]
    for name, content in files.items():
        (folder / name).write_bytes(content)
    data = run.experiment.dataset
    described = {
        "modalities": list(data.modalities),
        "shapes": {m: list(shape) for m, shape in data.shapes.items()},
        "dtypes": {m: str(data.train.inputs[m].dtype) for m in data.modalities},
        "class_names": list(data.class_names),
        "arguments": ["inputs: {modality: [b, ...]}", "available: [b, M] float32"],
        "result": "logits [b, C] float32",
        "platforms": list(PLATFORMS),
        "round": options.round,
    }
    write_json(folder / "model.json", described)
    print(f"written: {folder}/params.npz, model.json, {', '.join(files)}")
    return 0


PLATFORMS = ("cpu", "cuda", "tpu")
"""What an exported program runs on."""


def round_of(text: str) -> Round:
    """Reads ``--round``.

    Raises:
      ValueError: It is none of last, best and a number.

    Example:
      >>> round_of("best"), round_of("12")
      ('best', 12)
    """
    if text in ("last", "best"):
        return text  # type: ignore[return-value]
    if not text.isdecimal():
        raise ValueError(f"--round: {text!r}; give last, best or a round's number")
    return int(text)


def _program(run: Run, round: Round) -> jax.export.Exported:
    """The model's predictions, parameters inside, as a program."""
    (size,) = jax.export.symbolic_shape("b")
    data = run.experiment.dataset

    def samples(x: np.ndarray) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct((size, *x.shape[1:]), dtype)

    inputs = {m: samples(data.train.inputs[m]) for m in data.modalities}
    table = jax.ShapeDtypeStruct((size, len(data.modalities)), jnp.float32)
    predictor = jax.jit(run.predictor(round))
    return jax.export.export(predictor, platforms=PLATFORMS)(inputs, table)
