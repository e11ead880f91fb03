import json
import os
import signal
import subprocess
import sys
from datetime import datetime

import jax.numpy as jnp
import numpy as np
import pytest

from fedcmi_jax.experiment import metrics_log, run_folder, summary_file
from fedcmi_jax.experiment.files import read_json, write_json
from fedcmi_jax.experiment.metrics_log import MetricsLog

EXPERIMENT = os.path.dirname(run_folder.__file__)
GOOD = b'{"round": 5, "acc": 0.5}\n{"round": 10, "acc": 0.75}\n'

# The child has the package without what its __init__ imports: it starts in no time.
CHILD = """
import sys, types
for name, path in (("fedcmi_jax", None), ("fedcmi_jax.experiment", sys.argv[1])):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from fedcmi_jax.experiment import metrics_log, run_folder
"""


@pytest.fixture
def child():
    """Starts Python with ``run_folder`` imported; ends what is left of it."""
    processes = []

    def start(code, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD + code, EXPERIMENT, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def log(tmp_path):
    return MetricsLog(tmp_path / "metrics.jsonl")


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_json_round_trip_of_numpy_and_jax_values(tmp_path):
    path = tmp_path / "a.json"
    value = {"a": np.float32(0.5), "b": jnp.int32(3), "c": (np.arange(2), None, True)}
    write_json(path, value)
    assert read_json(path) == {"a": 0.5, "b": 3, "c": [[0, 1], None, True]}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("bad", [float("nan"), -np.inf, np.float32("inf"), object()])
def test_write_json_refuses_what_json_lacks_and_keeps_the_old_file(tmp_path, bad):
    path = tmp_path / "config.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match=r"config\.json: cannot be written") as error:
        write_json(path, {"new": [bad]})
    one_line(error)
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["config.json"]


def test_write_json_can_null_non_finite_numbers(tmp_path):
    value = {"a": [jnp.float32("nan"), float("-inf"), 1.0]}
    write_json(tmp_path / "a.json", value, null_non_finite=True)
    assert read_json(tmp_path / "a.json") == {"a": [None, None, 1.0]}


def test_a_failed_replace_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", 1)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(run_folder.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(tmp_path / "a.json", 2)
    assert read_json(tmp_path / "a.json") == 1
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "content", [b"", b'{"a": 1', b"\xff\xfe{", b"[" * 100_000, b"{}\n{}"]
)
def test_read_json_names_the_corrupt_file(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON") as error:
        read_json(tmp_path / "config.json")
    one_line(error)


def test_metrics_are_valid_json_lines(log):
    log.append({"round": 5, "acc": np.float32(0.5), "loss": float("nan")})
    log.append({"round": np.int64(10), "acc": jnp.float32("inf"), "n": [1, np.nan]})
    lines = log.path.read_text().splitlines()

    def refuse(name):
        raise AssertionError(name)

    assert [json.loads(line, parse_constant=refuse) for line in lines] == log.read()
    assert log.read() == [
        {"round": 5, "acc": 0.5, "loss": None},
        {"round": 10, "acc": None, "n": [1, None]},
    ]


@pytest.mark.parametrize("round", [None, "5", 5.0, True, -1])
def test_append_needs_a_round(log, round):
    with pytest.raises(ValueError, match="needs an int 'round'"):
        log.append({"round": round})
    assert not log.path.exists()


def test_append_does_not_double_a_round(log):
    log.path.write_bytes(GOOD)
    for round in (9, 10):
        with pytest.raises(ValueError, match=f"round {round} after round 10"):
            log.append({"round": round})
    assert log.path.read_bytes() == GOOD


def test_append_refuses_an_unfinished_file(log):
    log.path.write_bytes(GOOD + b'{"rou')
    with pytest.raises(ValueError, match="unfinished; call truncate_after"):
        log.append({"round": 15})
    log.truncate_after(10)
    log.append({"round": 15})
    assert [r["round"] for r in log.read()] == [5, 10, 15]


def test_append_takes_back_a_half_line_when_the_disk_is_full(log, monkeypatch):
    log.append({"round": 5})
    before = log.path.read_bytes()

    def fail(_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            log.append({"round": 10})
    assert log.path.read_bytes() == before
    log.append({"round": 10})
    assert [r["round"] for r in log.read()] == [5, 10]


def test_no_file_is_an_empty_log(log):
    log.truncate_after(10)
    assert log.read() == []
    assert not log.path.exists()


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b"{",
        b'{"round": 15, "acc": 0.',
        b'{"round": 15, "acc": 0.9}',  # all but the newline
        b"\0\0\0\0",
        b"\xff\xfe\n",
        b'{"round": 15, "ac\n',
        b'{"acc": 0.9}\n',
        b'{"round": true}\n',
        b"[15]\n",
        b"\n",
        b"[" * 100_000,
    ],
)
def test_truncate_drops_a_half_written_last_line(log, tail):
    log.path.write_bytes(GOOD + tail)
    assert [r["round"] for r in log.read()] == [5, 10]  # a reader may meet it, too
    assert log.path.read_bytes() == GOOD + tail
    log.truncate_after(100)
    assert log.path.read_bytes() == GOOD


@pytest.mark.parametrize(("round", "kept"), [(4, 0), (5, 1), (9, 1), (10, 2), (11, 2)])
def test_truncate_drops_later_rounds(log, round, kept):
    log.path.write_bytes(GOOD + b'{"round": 15')
    log.truncate_after(round)
    assert log.path.read_bytes() == b"".join(GOOD.splitlines(keepends=True)[:kept])
    log.append({"round": round + 1})
    assert len(log.read()) == kept + 1
    assert len(os.listdir(log.path.parent)) == 1


def test_truncate_leaves_a_fitting_file_alone(log):
    log.path.write_bytes(GOOD)
    before = log.path.stat()
    log.truncate_after(10)
    assert log.path.stat().st_ino == before.st_ino


@pytest.mark.parametrize(
    ("line", "what"),
    [(b"\0\0", "corrupt"), (b"", "corrupt"), (b'{"round": 5}', "round 5 again")],
)
def test_a_corrupt_line_in_the_middle_is_named(log, line, what):
    content = GOOD.replace(b"\n", b"\n" + line + b"\n", 1)
    log.path.write_bytes(content)
    for action in (log.read, lambda: log.truncate_after(5)):
        with pytest.raises(ValueError, match=f"metrics.jsonl, line 2: {what}") as error:
            action()
        one_line(error)
    assert log.path.read_bytes() == content


@pytest.mark.parametrize("name", metrics_log.NUMBERS)
@pytest.mark.parametrize("value", ["high", True, [0.5], {"a": 1}])
def test_a_line_with_another_type_is_no_line(log, name, value):
    line = json.dumps({"round": 1, name: value}) + "\n"
    for text in (line, line + '{"round": 2}\n'):  # no killed process wrote it
        log.path.write_text(text)
        with pytest.raises(ValueError, match="line 1: corrupt"):
            log.read()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_ordinary_file_is_named_at_once(make, tmp_path):
    for name in ("config.json", run_folder._LOCK):
        make(tmp_path / name)
    with pytest.raises(ValueError, match=r"config\.json: is no ordinary file"):
        read_json(tmp_path / "config.json")
    with (
        pytest.raises(ValueError, match=r"\.lock: is no ordinary file"),
        run_folder.lock(tmp_path),
    ):
        raise AssertionError("locked")


SUMMARY = {
    "rounds": 8,
    "stopped_early": None,
    "final": {"round": 8, "acc": 0.5},
    "best": None,
    "seconds": 1.5,
}


@pytest.mark.parametrize("name", SUMMARY)
@pytest.mark.parametrize("value", ["8", True, [8], {"acc": "0.5"}, {}])
def test_a_summary_with_another_type_is_named(name, value, tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, SUMMARY)
    assert summary_file.read_summary(tmp_path) == SUMMARY
    write_json(path, SUMMARY | {name: value})
    if name == "stopped_early" and value == {}:
        return
    with pytest.raises(ValueError, match=f"summary.json: has no valid '{name}'; rem"):
        summary_file.read_summary(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '{"rounds"'])
def test_a_summary_that_is_none_is_named(text, tmp_path):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ValueError, match=r"summary\.json: .*; remove the file, and"):
        summary_file.read_summary(tmp_path)


def test_a_killed_writer_loses_at_most_its_unfinished_line(child, log):
    code = """
log = metrics_log.MetricsLog(sys.argv[2])
for round in range(10**9):
    log.append({"round": round, "text": "x" * 5000})
    print(round, flush=True)
"""
    done = -1
    for _ in range(3):
        log.truncate_after(done)
        process = child(code.replace("range(", f"range({done + 1}, "), str(log.path))
        for _ in range(20):
            done = int(process.stdout.readline())
        process.kill()
        done = int((process.communicate()[0].splitlines() or [done])[-1])
        rounds = [r["round"] for r in log.read()]
        assert rounds == list(range(len(rounds)))
        assert len(rounds) - 1 in (done, done + 1)  # on disk before it was announced


def test_create_takes_new_and_empty_folders(tmp_path):
    run_folder.make_folder(tmp_path / "a" / "b")
    run_folder.make_folder(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / ".config.json.123.tmp").touch()
    with run_folder.lock(tmp_path / "a" / "b"):
        run_folder.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_create_refuses_what_is_there(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(ValueError, match="exists; choose another --output") as error:
        run_folder.make_folder(tmp_path)
    assert f"fedcmi resume {tmp_path}" in one_line(error)
    with pytest.raises(ValueError, match="is a file"):
        run_folder.make_folder(tmp_path / "config.json")
    assert os.listdir(tmp_path) == ["config.json"]


def test_check_free_makes_nothing(tmp_path):
    run_folder.check_free(tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_check_run(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        run_folder.check_run(tmp_path / "no")
    with pytest.raises(ValueError, match=r"has no config\.json") as error:
        run_folder.check_run(tmp_path)
    one_line(error)
    assert not run_folder.is_run(tmp_path)
    write_json(tmp_path / "config.json", {})
    run_folder.check_run(tmp_path)
    assert run_folder.is_run(tmp_path)


def test_lock_excludes_a_second_process_until_it_is_killed(child, tmp_path):
    process = child(
        """
with run_folder.lock(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
""",
        str(tmp_path),
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="in use by another process") as error:
        with run_folder.lock(tmp_path):
            pytest.fail("locked twice")
    one_line(error)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with run_folder.lock(tmp_path):
        pass
    with run_folder.lock(tmp_path):  # released by leaving, too
        pass


def test_lock_needs_a_folder(tmp_path):
    with pytest.raises(ValueError, match="does not exist; create it first"):
        with run_folder.lock(tmp_path / "no"):
            pytest.fail("locked nothing")


def test_default_folder_is_new(tmp_path):
    now = datetime(2026, 11, 21, 14, 23)
    names = []
    for _ in range(3):
        path = run_folder.default_folder(tmp_path, "noisy_digits fedcmi", 0, now)
        run_folder.make_folder(path)
        names.append(path.name)
    stem = "noisy-digits-fedcmi-s0-20261121-142300"
    assert names == [stem, f"{stem}-2", f"{stem}-3"]
    assert run_folder.default_folder(tmp_path, "a", 1).name.startswith("a-s1-20")
    with pytest.raises(ValueError, match="no letter or digit"):
        run_folder.default_folder(tmp_path, "../", 0)
