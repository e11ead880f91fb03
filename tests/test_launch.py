"""Launch flags, and two real processes that train together."""

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
import types

import jax
import pytest

from fedcmi_jax.cli import launch, parser
from fedcmi_jax.cli.command import Launch
from fedcmi_jax.cli.main import main
from fedcmi_jax.data import places
from fedcmi_jax.data.tfds.prepare import data_root
from fedcmi_jax.experiment import programs

TRAIN = [
    *("train", "synthetic", "--clients=8", "--clients-per-round=4", "--rounds=30"),
    *("--checkpoint-every=1", "--local.epochs=1", "--method.personal-infiltration"),
    *("--dataset.train-samples=800", "--dataset.test-samples=100"),
]


TWO = ["--num-processes=2", "--process-id=0"]


def test_flags_are_taken_from_anywhere():
    flags = ["synthetic", "--host-devices", "2", "--rounds=3", "--devices=auto"]
    found = parser.parse(["train", *flags])
    assert found.launch == Launch(host_devices=2)
    assert (found.config.preset, found.config.rounds) == ("synthetic", 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--devices=0"], "--devices: '0' is no whole number of 1 or more"),
        (["--devices=many"], "--devices: 'many'"),
        (["--host-devices"], "--host-devices: has no value"),
        (["--coordinator=localhost:1"], "go together"),
        (["--process-id=-1"], "--process-id: '-1' is no whole number of 0"),
        *(
            ([f"--coordinator={text}", *TWO], f"{text!r} is no HOST:PORT")
            for text in ("nonsense", "a:abc", "a:65536", "a:0", ":80", "a:", "a b:1")
        ),
        (["--coordinator=no-such.invalid:80", *TWO], "'no-such.invalid' is not known"),
        (["--coordinator=192.0.2.1:80", *TWO], "cannot listen on 192.0.2.1:80"),
    ],
)
def test_bad_flags_are_one_line(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("process", "listens"), [(0, "127.0.0.1:{}"), (1, None)])
def test_process_0_listens_on_the_given_address_only(process, listens, monkeypatch):
    asked, port = [], free_port()

    def initialize(*args, **options):
        asked.append((args, options))
        raise RuntimeError("as far as this")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    address = f"127.0.0.1:{port}"
    with pytest.raises(ValueError, match="as far as this"):
        launch.start(Launch("auto", None, False, address, 2, process))
    bound = listens and listens.format(port)
    assert asked == [((address, 2, process), {"coordinator_bind_address": bound})]


def test_a_port_in_use_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"cannot listen on {address}.*in use"):
            launch.start(Launch("auto", None, False, address, 2, 0))


@pytest.mark.parametrize("folder", ["cache", "./cache", ""])
def test_compiled_programs_never_come_from_the_working_directory(folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", folder)
    for name in ("HOME", "FEDCMI_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # a user without an entry
    kept, values = [], {"jax_compilation_cache_dir": None}
    config = types.SimpleNamespace(values=values, update=lambda *x: kept.append(x))
    monkeypatch.setattr(programs, "jax", types.SimpleNamespace(config=config))
    if folder:
        with pytest.raises(ValueError, match="XDG_CACHE_HOME: .* no absolute path"):
            programs.keep_programs()
    else:
        programs.keep_programs()
        with pytest.raises(ValueError, match="FEDCMI_DATA_ROOT: is not set"):
            data_root()
        with pytest.raises(ValueError, match="~/own: no home folder is known"):
            places.expanded("~/own")
    assert kept == []


def command(*args):
    return [sys.executable, "-m", "fedcmi_jax.cli", *args]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start_two(args, folder):
    """Two processes; the second in a folder of its own, where it must write nothing."""
    port = free_port()
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    return [
        subprocess.Popen(
            command(
                *args,
                f"--coordinator=localhost:{port}",
                "--num-processes=2",
                f"--process-id={i}",
            ),
            cwd=(folder, elsewhere)[i],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]


def metrics(run):
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in x.items() if k != "seconds"} for x in lines]


@pytest.mark.slow
def test_two_processes_killed_and_resumed_are_one_run(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    both = start_two([*TRAIN, f"--output={whole}"], tmp_path)
    outputs = [p.communicate(timeout=240)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], outputs

    both = start_two([*TRAIN, f"--output={cut}"], tmp_path)
    deadline = time.monotonic() + 200
    while not (cut / "checkpoints" / "5").exists():
        assert time.monotonic() < deadline
        assert both[0].poll() is None
    for p in both:
        p.send_signal(signal.SIGKILL)
    for p in both:
        p.communicate()
    assert not (cut / "summary.json").exists()
    both = start_two(["resume", str(cut)], tmp_path)
    outputs = [p.communicate(timeout=240)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], outputs
    assert metrics(cut) == metrics(whole)
    assert list((tmp_path / "elsewhere").iterdir()) == []

    # One process, one device: the same run up to the order of summation.
    alone = tmp_path / "alone"
    done = subprocess.run(
        command(*TRAIN, f"--output={alone}"), capture_output=True, check=False
    )
    assert done.returncode == 0
    last, expected = metrics(alone)[-1], metrics(whole)[-1]
    assert last["loss_task"] == pytest.approx(expected["loss_task"], rel=1e-3)


@pytest.mark.slow
def test_a_run_is_resumed_on_another_number_of_devices_bit_for_bit(tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    subprocess.run(command(*TRAIN, f"--output={whole}"), env=environment, check=True)
    process = subprocess.Popen(
        command(*TRAIN, f"--output={run}", "--host-devices=2"), env=environment
    )
    deadline = time.monotonic() + 200
    while not (run / "checkpoints" / "5").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
    process.kill()
    process.wait()
    done = subprocess.run(
        command("resume", str(run), "--host-devices=4"), env=environment, check=False
    )
    assert done.returncode == 0
    assert metrics(run) == metrics(whole)
