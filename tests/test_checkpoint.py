import contextlib
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fedcmi_jax.experiment import arrays, checkpoint, files, sealed
from fedcmi_jax.types import FederationState

ROOT = Path(__file__).parents[1]


class Moments(NamedTuple):
    count: Any
    mu: Any
    empty: Any = ()


def state_of(round, extra=0):
    """A state of odd leaves that is a function of its round."""
    rng = np.random.default_rng(round)
    patterns = rng.integers(0, 2**16, 64, np.uint16)  # NaNs of many kinds among them
    odd = np.array([0x7FC1, 0xFFFF, 0x8000, 0x7F81], np.uint16)
    wide = np.array([0x7FC00001, 0xFF800001, 0x80000000, 1], np.uint32)
    return FederationState(
        params={
            "encoder": {"image/a b": rng.standard_normal((32, 65)).astype(np.float32)},
            "é": (wide.view(np.float32), [np.float32(-0.0)]),
        },
        batch_stats={
            "bf16": np.concatenate([odd, patterns]).view(ml_dtypes.bfloat16),
            "f16": patterns.view(np.float16),
            "f8": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e5m2),
            "u4": np.array([1, 15], ml_dtypes.uint4),
        },
        shared=(),
        memory={
            "none": None,
            "extra": rng.standard_normal((extra, 1000)),  # no rows, by default
            "flags": np.array([True, False]),
            "bytes": np.array([[-128, 127]], np.int8),
            "keys": jax.random.split(jax.random.key(round, impl="rbg"), 3),
        },
        personal={},
        server_optimizer=(Moments(np.int32(round), {"w": np.ones(3)[:, None]}), ()),
        round=jnp.int32(round),
        key=jax.random.key(round),
    )


def to_device(state):
    """Device arrays of NumPy's dtypes, 64 bits only where JAX has them."""
    return jax.tree.map(jnp.asarray, state)


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert isinstance(a, jax.Array)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(a) == jax.random.key_impl(b)
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def saved(folder, *numbers, keep=3):
    for number in numbers:
        checkpoint.save(folder, to_device(state_of(number)), keep=keep)
    return folder


def like(extra=0):
    return jax.eval_shape(lambda: to_device(state_of(0, extra)))


def check_restores(folder, *possible, extra=0):
    """Restores; the state must be that of its round, bit for bit."""
    restored = checkpoint.restore(folder, like(extra))
    assert restored.round in possible
    assert_same(restored.state, to_device(state_of(restored.round, extra)))
    assert all("\n" not in line and len(line) < 500 for line in restored.skipped)
    return restored


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)
    elif how == "half":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


def ruin(folder, number):
    (folder / str(number) / "metadata.json").write_text("{")


@pytest.mark.parametrize("name", ["plain", "run[1]*?"])
def test_round_trip_is_bit_for_bit(tmp_path, name):
    folder = saved(tmp_path / name, 7)
    restored = check_restores(folder, 7)
    assert restored.skipped == ()
    again = checkpoint.restore(folder, to_device(state_of(1)))  # arrays do as well
    assert_same(again.state, to_device(state_of(7)))


def test_relative_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved("a/b", 1)
    check_restores("a/b", 1)
    assert checkpoint.rounds("a/b") == [1]


@pytest.mark.parametrize("name", ["plain", "run[1]"])
def test_nothing_is_unpickled_or_printed(name, tmp_path, monkeypatch, capfd):
    def refuse(*_, **__):
        raise AssertionError("unpickled")

    for function in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, function, refuse)
    folder = saved(tmp_path / name, 1, 2)
    ruin(folder, 2)
    check_restores(folder, 1)
    next(p for p in folder.rglob("1/state/*/*") if p.is_file()).unlink()
    with pytest.raises(ValueError, match="no usable checkpoint"):
        checkpoint.restore(folder, like())
    assert capfd.readouterr() == ("", "")


def test_keep_and_rounds_count_complete_checkpoints_only(tmp_path):
    assert checkpoint.rounds(tmp_path / "no") == []
    for name in ("7.tmp", "8.orbax-checkpoint-tmp-123", "07", "notes", "-1", "9.bak"):
        (tmp_path / name).mkdir()
    (tmp_path / "99").touch()
    assert checkpoint.rounds(tmp_path) == []
    saved(tmp_path, 1, 2, 10, 11, keep=2)
    assert checkpoint.rounds(tmp_path) == [10, 11]
    # Leftovers of killed saves go, what is not ours stays.
    names = {"10", "11", "99", "07", "notes", "-1", "9.bak"}
    assert set(os.listdir(tmp_path)) == names
    saved(tmp_path, 12, keep=1)
    assert checkpoint.rounds(tmp_path) == [12]


def test_an_existing_round_is_replaced(tmp_path):
    saved(tmp_path, 1, 2)
    ruin(tmp_path, 2)
    assert check_restores(tmp_path, 1).skipped
    assert checkpoint.rounds(tmp_path) == [1, 2]  # restoring deletes nothing
    saved(tmp_path, 2)
    assert not check_restores(tmp_path, 2).skipped
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_damaged_newer_checkpoints_do_not_push_out_good_ones(tmp_path):
    saved(tmp_path, 10, 20, 30)
    ruin(tmp_path, 20)
    ruin(tmp_path, 30)
    restored = check_restores(tmp_path, 10)
    assert len(restored.skipped) == 2
    assert str(tmp_path / "30") in restored.skipped[0]
    assert "damaged and was skipped" in restored.skipped[0]
    assert str(tmp_path / "20") in restored.skipped[1]
    saved(tmp_path, 15, keep=2)
    assert checkpoint.rounds(tmp_path) == [10, 15]


def test_a_round_moved_aside_counts_until_its_successor_is_there(tmp_path):
    saved(tmp_path, 1, 2)
    (tmp_path / "2").rename(tmp_path / "2.replaced")
    assert checkpoint.rounds(tmp_path) == [1, 2]
    check_restores(tmp_path, 2)
    saved(tmp_path, 3)
    check_restores(tmp_path, 3)
    saved(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


@pytest.mark.parametrize("how", ["flip", "half", "empty", "missing"])
def test_damage_to_any_file_is_noticed(tmp_path, how):
    saved(tmp_path / "good", 1, 2)
    paths = [p for p in (tmp_path / "good" / "2").rglob("*") if p.is_file()]
    assert len(paths) > 5
    for path in paths:
        folder = tmp_path / "damaged"
        shutil.copytree(tmp_path / "good", folder)
        damage(folder / path.relative_to(tmp_path / "good"), how)
        (line,) = check_restores(folder, 1).skipped
        assert path.name in line
        shutil.rmtree(folder)


def test_a_flipped_bit_in_the_metadata_does_not_look_like_another_run(tmp_path):
    saved(tmp_path, 1, 2)
    path = tmp_path / "2" / "metadata.json"
    content = path.read_bytes()
    for place in range(0, len(content), len(content) // 40):
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        check_restores(tmp_path, 1, 2)


@pytest.mark.parametrize("what", ["state", "metadata.json", "everything"])
def test_missing_parts(tmp_path, what):
    saved(tmp_path, 1, 2)
    path = tmp_path / "2" / ("" if what == "everything" else what)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    (tmp_path / "2").mkdir(exist_ok=True)
    assert len(check_restores(tmp_path, 1).skipped) == 1


def test_a_renamed_checkpoint_is_not_believed(tmp_path):
    saved(tmp_path, 1, 2)
    (tmp_path / "2").rename(tmp_path / "9")
    assert "it holds round 2" in check_restores(tmp_path, 1).skipped[0]


def test_no_usable_checkpoint_is_one_line_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="no usable checkpoint in") as error:
        checkpoint.restore(tmp_path, like())
    assert str(tmp_path) in str(error.value)
    saved(tmp_path, 1, 2)
    ruin(tmp_path, 1)
    ruin(tmp_path, 2)
    with pytest.raises(ValueError, match=r"2 damaged.*start the run again") as error:
        checkpoint.restore(tmp_path, like())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("server_optimizer", lambda x: (), r"server_optimizer\[0\].*this run has no"),
        ("shared", lambda x: {"a": jnp.ones(2)}, r"no shared\['a'\].*shared\['a'\] fl"),
        ("round", jnp.float32, r"has round int32\[\], this run has round float32"),
        ("params", lambda x: {"é": x["é"][0][:3]}, "another configuration"),
        ("key", jax.random.key_data, r"has key key<fry>\[\].*key uint32\[2\]"),
        ("key", lambda x: jax.random.key(0, impl="rbg"), r"key<fry>.*key<rbg>"),
    ],
)
def test_another_configuration_is_refused_not_skipped(tmp_path, field, value, message):
    saved(tmp_path, 1, 2)
    state = to_device(state_of(0))
    other = {field: value(getattr(state, field))}
    other = jax.eval_shape(lambda: state._replace(**other))
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.restore(tmp_path, other)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("format", "version", "writer"), [(3, "7.5", "7.5"), (1, None, "0.1.0")]
)
def test_another_versions_format_is_refused_not_skipped(
    format, version, writer, tmp_path
):
    saved(tmp_path, 1, 2)
    path = tmp_path / "2" / "metadata.json"
    content = files.read_json(path) | {"format": format, "version": version}
    if format == 1:  # version 0.1 wrote other things, too, but a checksum like ours
        del content["version"]
        content |= {"leaves": [["round", "int32", [], ""]], "digest": "0" * 64}
    del content["checksum"]
    files.write_json(path, content | {"checksum": sealed._checksum(content)})
    message = f"has format {format}, this version reads 2; finish the run with "
    with pytest.raises(ValueError, match=f"{message}fedcmi_jax {writer}") as error:
        checkpoint.restore(tmp_path, like())
    assert "\n" not in str(error.value)
    assert checkpoint.newest_log(tmp_path) is None
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def resealed(path, change):
    """Changes metadata as whoever knows how the checksum is made."""
    content = change(files.read_json(path))
    content.pop("checksum")
    files.write_json(path, content | {"checksum": sealed._checksum(content)})


WRONG = {"format": "2", "version": 3, "files": [], "round": True, "leaves": "all"}


@pytest.mark.parametrize("key", WRONG)
@pytest.mark.parametrize("how", ["missing", "of another type"])
def test_metadata_without_a_key_is_damage(tmp_path, key, how):
    saved(tmp_path, 1, 2)

    def change(content):
        del content[key]
        return content if how == "missing" else content | {key: WRONG[key]}

    resealed(tmp_path / "2" / "metadata.json", change)
    (line,) = check_restores(tmp_path, 1).skipped
    assert line.endswith(f"metadata.json has no valid {key!r}")
    assert checkpoint.newest_log(tmp_path) is None


def test_a_log_that_unpacks_to_too_much_is_damage(tmp_path, monkeypatch):
    for number in (1, 2):
        checkpoint.save(tmp_path, to_device(state_of(number)), log=b"a" * 100 * number)
    monkeypatch.setattr(checkpoint, "LONGEST_LOG", 150)
    (line,) = check_restores(tmp_path, 1).skipped
    assert line.endswith("metrics.jsonl.gz unpacks to more than 150 bytes")


@pytest.mark.parametrize("place", ["metadata.json", "metrics.jsonl.gz", "state/d"])
def test_a_pipe_in_a_checkpoint_is_damage(tmp_path, place):
    saved(tmp_path, 1, 2)
    path = tmp_path / "2" / place
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.mkfifo(path)
    assert len(check_restores(tmp_path, 1).skipped) == 1


def test_orbax_alone_can_read_the_arrays_by_name(tmp_path):
    saved(tmp_path, 1)
    found = arrays.ocp.PyTreeCheckpointer().restore(tmp_path / "1" / "state")
    assert found["round"] == 1
    weights = state_of(1).params["encoder"]["image/a b"]
    np.testing.assert_array_equal(found["params['encoder']['image/a b']"], weights)


def test_the_log_travels_with_the_checkpoint(tmp_path):
    log = b'{"round": 1}\n' * 1000
    assert checkpoint.newest_log(tmp_path) is None
    checkpoint.save(tmp_path, to_device(state_of(1)), log=b"")
    checkpoint.save(tmp_path, to_device(state_of(2)), log=log)
    assert check_restores(tmp_path, 2).log == log
    assert checkpoint.newest_log(tmp_path) == (2, log)
    saved(tmp_path, 3)
    assert check_restores(tmp_path, 3).log == b""
    assert checkpoint.newest_log(tmp_path) == (3, b"")


@pytest.mark.parametrize("how", ["flip", "half", "empty", "missing"])
def test_a_damaged_log_is_a_damaged_checkpoint(tmp_path, how):
    for number in (1, 2):
        log = bytes([number]) * 100
        checkpoint.save(tmp_path, to_device(state_of(number)), log=log)
    damage(tmp_path / "2" / "metrics.jsonl.gz", how)
    restored = check_restores(tmp_path, 1)
    assert restored.log == bytes([1]) * 100
    assert "metrics.jsonl.gz" in restored.skipped[0]
    assert checkpoint.newest_log(tmp_path) is None


def test_running_out_of_memory_is_no_damage(tmp_path, monkeypatch):
    saved(tmp_path, 1, 2)

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(arrays.ocp.Checkpointer, "restore", fail)
    with pytest.raises(MemoryError):
        checkpoint.restore(tmp_path, like())


def test_save_refuses_what_it_cannot_keep(tmp_path):
    state = to_device(state_of(1))
    with pytest.raises(ValueError, match="keep: 0"):
        checkpoint.save(tmp_path, state, keep=0)
    with pytest.raises(ValueError, match=r"shared\['a'\]: 3 is no array"):
        checkpoint.save(tmp_path, state._replace(shared={"a": 3}))
    for round in (jnp.zeros(2, jnp.int32), jnp.int32(-1)):
        with pytest.raises(ValueError, match=r"state\.round"):
            checkpoint.save(tmp_path, state._replace(round=round))
    assert checkpoint.rounds(tmp_path) == []


@pytest.mark.parametrize("failure", ["other content", "nothing"])
def test_what_does_not_read_back_does_not_count(tmp_path, monkeypatch, failure):
    saved(tmp_path, 1)
    save = arrays.ocp.Checkpointer.save

    def save_badly(self, path, tree):
        if failure == "other content":
            save(self, path, tree | {"round": tree["round"] + 1})

    with monkeypatch.context() as patch:
        patch.setattr(arrays.ocp.Checkpointer, "save", save_badly)
        with pytest.raises(OSError, match="not read back as written|cannot be read"):
            saved(tmp_path, 2, keep=1)
    assert checkpoint.rounds(tmp_path) == [1]
    saved(tmp_path, 2)
    check_restores(tmp_path, 2)


# Writes of other arrays, still under way when one fails, find Orbax's loop closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("size", [100, 2000])
def test_a_full_disk_is_one_line_and_loses_nothing(size, tmp_path):
    saved(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # no file grows beyond it
    try:
        with pytest.raises(OSError, match="cannot be written") as error:
            saved(tmp_path, 2, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    check_restores(tmp_path, 1)
    saved(tmp_path, 2)
    check_restores(tmp_path, 2)


def test_placement_follows_like(tmp_path):
    saved(tmp_path, 1)
    free = checkpoint.restore(tmp_path, like()).state
    assert not any(x.committed for x in jax.tree.leaves(free))
    device = jax.devices()[0]
    bound = jax.tree.map(lambda x: jax.device_put(x, device), to_device(state_of(0)))
    found = checkpoint.restore(tmp_path, bound).state
    assert all(x.committed for x in jax.tree.leaves(found))


@contextlib.contextmanager
def run_child(code, *arguments, **environment):
    """Yields the output of a Python with this module's names; ends all it forked."""
    child = subprocess.Popen(
        [sys.executable, "-c", f"from tests.test_checkpoint import *\n{code}"]
        + [str(a) for a in arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with child:
        try:
            assert child.stdout is not None
            yield child.stdout
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def test_restores_onto_another_number_of_devices(tmp_path):
    saved(tmp_path, 1)
    code = """
from jax.sharding import NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((2,), ("clients",))
def place(x):
    spec = P("clients") if x.shape[:1] == (32,) else P()
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
target = jax.tree.map(place, like())
restored = checkpoint.restore(sys.argv[1], target)
assert_same(restored.state, to_device(state_of(1)))
for x, y in zip(jax.tree.leaves(restored.state), jax.tree.leaves(target)):
    assert x.sharding.is_equivalent_to(y.sharding, x.ndim), (x.sharding, y.sharding)
checkpoint.save(sys.argv[1], restored.state._replace(round=jnp.int32(1)))
print("fine")
"""
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    )
    with run_child(code, tmp_path, XLA_FLAGS=flags.strip()) as output:
        assert output.read() == "fine\n"
    check_restores(tmp_path, 1)  # and back


# Both programs fork, so that a killed process costs no new start of Python; that must
# come before JAX starts its threads, that is, before its first array.

# A process for each renaming and for each folder removed, which kills itself before.
KILLED_BEFORE_EACH_CHANGE = """
import itertools
base, number = Path(sys.argv[1]), int(sys.argv[2])
for moment in itertools.count():
    folder = base / str(moment)
    shutil.copytree(base / "start", folder)
    child = os.fork()
    if not child:
        left = moment
        def watch(event, _):
            global left
            if event in {"os.rename", "os.rmdir"}:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        state = to_device(state_of(number))
        sys.addaudithook(watch)
        checkpoint.save(folder, state, keep=2)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(moment, status, flush=True)
    if status != -signal.SIGKILL:
        break
"""


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(4, id="new"),
        pytest.param(3, id="replaced", marks=pytest.mark.slow),
    ],
)
def test_killed_before_each_change_to_the_folder(tmp_path, number):
    saved(tmp_path / "start", 1, 2, 3, keep=2)
    found, status = [], None
    with run_child(KILLED_BEFORE_EACH_CHANGE, tmp_path, number) as output:
        for line in output:
            moment, status = map(int, line.split())
            assert status in (0, -signal.SIGKILL)
            folder = tmp_path / str(moment)
            restored = check_restores(folder, 3, number)
            assert not restored.skipped
            found.append(restored.round)
            saved(folder, 9, keep=2)  # the leftovers do no harm and go
            assert sorted(map(int, os.listdir(folder))) == [restored.round, 9]
    assert status == 0
    assert len(found) > 6
    assert found == sorted(found)
    assert {found[0], found[-1]} == {3, number}


# Processes that save in a loop, each going on from what the one before it left; they
# are killed from outside, wherever they are.
SAVES_IN_A_LOOP = """
folder, extra = Path(sys.argv[1]), int(sys.argv[2])
def announced(module, name):
    function = getattr(module, name)
    def announce(*arguments, **options):
        print(os.getpid(), name, flush=True)
        return function(*arguments, **options)
    setattr(module, name, announce)
while True:
    child = os.fork()
    if not child:
        round = 0
        if checkpoint.rounds(folder):
            round = checkpoint.restore(folder, like(extra)).round
        announced(arrays, "_save")
        announced(arrays, "_restore")
        announced(checkpoint, "seal")
        while True:
            round += 1
            checkpoint.save(folder, to_device(state_of(round, extra)), keep=2)
            print(os.getpid(), round, flush=True)
    os.waitpid(child, 0)
    print(child, "dead", flush=True)
"""


@pytest.mark.slow
def test_killed_while_saving_in_a_loop(tmp_path):
    extra = 500  # 2 MB: writing takes far longer than a signal
    done, pid, what = 0, "", ""
    with run_child(SAVES_IN_A_LOOP, tmp_path, extra) as output:
        for lines in (1, 2, 3, 4, 9, 14):
            for _ in range(lines):
                pid, what = output.readline().split()
                done = int(what) if what.isdecimal() else done
            os.kill(int(pid), signal.SIGKILL)
            while what != "dead":
                _, what = output.readline().split()
                done = int(what) if what.isdecimal() else done
            if done == 0 and not checkpoint.rounds(tmp_path):
                continue  # killed in the very first save
            restored = check_restores(tmp_path, done, done + 1, extra=extra)
            assert not restored.skipped
            done = restored.round
    assert done > 4
