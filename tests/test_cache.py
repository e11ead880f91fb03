"""Prepared arrays: made once, complete or not at all, whatever happens meanwhile."""

import functools
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from fedcmi_jax.data import raw
from fedcmi_jax.data.raw.cache import prepared
from fedcmi_jax.data.raw.decoding import Item, silent

COUNT = 5
SHAPES = {"a": (2, 3), "b": (4,)}


def decode(item, *, offset=0.0):
    """Sample i has the values i + offset and -i."""
    i = float(item.sources[0].read_text())
    a = np.arange(6, dtype=np.float64).reshape(3, 2).T + i + offset
    return {"a": a, "b": np.full(4, -i, np.float32)}


def refuse_third(item):
    if item.values == (2.0,):
        raise ValueError("is damaged")
    return decode(item)


def die(item):
    os._exit(1)


def sources(root):
    for i in range(COUNT):
        (root / f"{i}.txt").write_text(str(i))
    return listed(root)


def listed(root):
    return [
        Item((root / f"{i}.txt",), f"list.txt, row {i + 1}", (float(i),))
        for i in range(COUNT)
    ]


def make(tmp_path, items=None, decode=decode, *, workers=1, log=silent, shapes=SHAPES):
    return prepared(
        "name",
        {"train": sources(tmp_path) if items is None else items},
        decode,
        shapes,
        root=tmp_path,
        cache_dir=str(tmp_path / "cache"),
        workers=workers,
        log=log,
    )["train"]


def folders(tmp_path):
    return sorted(
        p.name for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock")
    )


def check(arrays, offset=0.0):
    root = pathlib.Path(arrays["a"].filename).parents[2]
    for i, item in enumerate(listed(root)):
        expected = decode(item)
        np.testing.assert_array_equal(arrays["a"][i], expected["a"] + offset)
        np.testing.assert_array_equal(arrays["b"][i], expected["b"])


def test_arrays_are_memory_maps_made_once(tmp_path):
    items, lines = sources(tmp_path), []
    first = make(tmp_path, items, log=lines.append)
    check(first)
    for values in first.values():
        assert isinstance(values, np.memmap)
        assert values.dtype == np.float32
        assert not values.flags.writeable
    assert "preparing 5 samples" in lines[0]
    assert "5 of 5 samples" in lines[-1]
    check(make(tmp_path, items, log=lines.append))
    assert len(lines) == 2, "prepared twice"


def test_safe_to_delete(tmp_path):
    items = sources(tmp_path)
    make(tmp_path, items)
    shutil.rmtree(tmp_path / "cache")
    check(make(tmp_path, items))


def test_several_processes_give_the_same(tmp_path):
    check(make(tmp_path, workers=2))


def test_key_depends_on_files_options_and_shapes(tmp_path):
    items = sources(tmp_path)

    def key(items=items, decode=decode, shapes=SHAPES):
        return raw.cache._key(items, decode, shapes, tmp_path)

    first = key()
    assert key() == first
    options = functools.partial(decode, offset=1.0)
    others = [
        key(decode=options),
        key(decode=functools.partial(decode, offset=2.0)),
        key(decode=refuse_third),
        key(shapes={"a": (2, 3)}),
        key(items=items[:4]),
        key(items=items[::-1]),
        key(items=[items[0]._replace(values=(7.0,)), *items[1:]]),
    ]
    os.utime(items[0].sources[0], ns=(0, 0))
    others.append(key())
    items[0].sources[0].write_text("00")
    os.utime(items[0].sources[0], ns=(0, 0))
    others.append(key())
    assert len({first, *others}) == len(others) + 1
    # Where the folder lies does not matter.
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    shutil.copytree(tmp_path, moved)
    there = [i._replace(sources=(moved / i.sources[0].name,)) for i in items]
    assert raw.cache._key(there, decode, SHAPES, moved) == others[-1]
    check(make(tmp_path, sources(tmp_path), options), offset=1.0)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_sample_is_named_and_leaves_nothing(tmp_path, workers):
    with pytest.raises(ValueError, match=r"^list.txt, row 3: is damaged$"):
        make(tmp_path, decode=refuse_third, workers=workers)
    assert folders(tmp_path) == []


def test_a_missing_file_is_named_before_any_work(tmp_path):
    items = sources(tmp_path)
    items[3].sources[0].unlink()
    with pytest.raises(ValueError, match=r"^list.txt, row 4: .*3.txt: No such file"):
        make(tmp_path, items)
    assert not (tmp_path / "cache").exists()


def test_a_process_that_dies_is_reported_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^workers=2: a decoding process died"):
        make(tmp_path, decode=die, workers=2)
    assert folders(tmp_path) == []


def test_no_space_is_found_before_any_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(raw.cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"needs 0.0 MB.*free some space.*cache'"):
        make(tmp_path)
    assert folders(tmp_path) == []


def test_a_disk_that_fills_up_leaves_nothing(tmp_path):
    """The kernel refuses to let a file grow, as on a full disk."""
    items = sources(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"too large; free some space.*cache'"
        ) as error:
            make(tmp_path, items)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert folders(tmp_path) == []
    check(make(tmp_path, items))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ValueError, match=r"^cache_dir='.*cache': File exists"):
        make(tmp_path)


def test_what_a_killed_process_left_is_replaced(tmp_path):
    items = sources(tmp_path)
    name = f"name-train-{raw.cache._key(items, decode, SHAPES, tmp_path)}"
    left = tmp_path / "cache" / f".{name}.tmp"
    left.mkdir(parents=True)
    (left / "a.npy").write_bytes(b"half")
    check(make(tmp_path, items))
    assert folders(tmp_path) == [name]


def test_damaged_arrays_are_named(tmp_path):
    items = sources(tmp_path)
    values = make(tmp_path, items)["a"]
    path = pathlib.Path(values.filename)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"a.npy: damaged; delete .*name-train-"):
        make(tmp_path, items)


def test_the_second_of_two_waits_and_takes_what_the_first_made(tmp_path):
    items, decoded, results = sources(tmp_path), [], []
    begun, second_waits = threading.Event(), threading.Event()

    def slow(item):
        begun.set()
        assert second_waits.wait(60)
        decoded.append(item)
        return decode(item)

    def second_says(line):
        if "waiting for another process" in line:
            second_waits.set()

    def run(log):
        results.append(make(tmp_path, items, slow, log=log))

    first = threading.Thread(target=run, args=(silent,))
    second = threading.Thread(target=run, args=(second_says,))
    first.start()
    assert begun.wait(60)
    second.start()
    first.join(60)
    second.join(60)
    assert len(decoded) == 5
    for arrays in results:
        check(arrays)
    assert len(results) == 2


@pytest.mark.slow
def test_two_processes_at_once_end_well(tmp_path):
    sources(tmp_path)
    program = (
        "import pathlib, sys\n"
        "from tests.test_cache import check, listed, make\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "check(make(root, listed(root)))\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
        for _ in range(2)
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    assert len(folders(tmp_path)) == 1
