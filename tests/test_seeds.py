"""Several seeds: one after the other, or mapped, as one run."""

import dataclasses
import functools
import json
import shutil
import signal
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedcmi_jax.cli.main import main
from fedcmi_jax.experiment import (
    checkpoint,
    history,
    metrics_log,
    seed_axis,
    seeds,
    training,
)
from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment.curve import drawn
from fedcmi_jax.experiment.experiment import build, measure
from fedcmi_jax.experiment.run_folder import make_folder
from fedcmi_jax.experiment.sharing import Shared
from fedcmi_jax.testing import problem as problems
from tests.test_config import TINY
from tests.test_run import SCHEDULE, At, kill, metrics, newest

# Resumed runs are to be equal as they are shipped.
pytestmark = pytest.mark.shipped_flags

VALUES = TINY | SCHEDULE | {"method": {"name": "fedavg"}, "seed": 3, "seeds": 2}


def config(**values):
    return configs.from_dict(VALUES | values)


SHARED = Shared()


@functools.cache
def experiment(seed):
    """One for all tests: they share its compiled programs."""
    return build(seeds.alone(config(), seed), shared=SHARED)


@pytest.fixture(autouse=True)
def _compiled(monkeypatch):
    """Commands and functions take what is compiled already."""
    monkeypatch.setattr("fedcmi_jax.cli.train.build", lambda *_, **__: experiment(3))
    for module in (seeds, history):
        monkeypatch.setattr(
            module, "build", lambda config, *_, **__: experiment(config.seed)
        )


def start(config, folder):
    make_folder(folder)
    training.write_config(folder, config)
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A run of the seeds 3 and 4 that nothing interrupted."""
    folder = start(config(), tmp_path_factory.mktemp("runs") / "together")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeds, "build", lambda config, *_: experiment(config.seed))
        seeds.train(config(), folder)
    return folder


def timeless(value):
    """A nested value without what a clock says."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if "seconds" not in k}
    return value


def lines(folder):
    text = (folder / training.METRICS).read_text()
    return [timeless(json.loads(line)) for line in text.splitlines()]


def summary(folder):
    return timeless(json.loads((folder / training.SUMMARY).read_text()))


def assert_same_seed(folder, reference, seed):
    assert metrics(folder) == metrics(reference)
    assert summary(folder) == summary(reference)
    ours, theirs = (newest(f, experiment(seed)) for f in (folder, reference))
    assert ours.round == theirs.round == 8
    problems.assert_equal(ours.state, theirs.state)


def assert_same_run(folder, reference):
    assert lines(folder) == lines(reference)
    assert summary(folder) == summary(reference)
    for seed in (3, 4):
        own = (seeds.folder_of(f, seed) for f in (folder, reference))
        assert_same_seed(*own, seed)


@pytest.mark.parametrize("seed", [3, 4])
def test_each_seed_is_the_run_of_that_seed_alone(seed, together, tmp_path):
    alone = seeds.alone(config(), seed)
    folder = start(alone, tmp_path / "run")
    training.train(build(alone), folder)
    own = seeds.folder_of(together, seed)
    assert_same_seed(own, folder, seed)
    assert (own / training.CONFIG).read_text() == (folder / training.CONFIG).read_text()


def test_seeds_differ_in_everything_and_compile_once(together):
    first, second = (experiment(seed).federation for seed in (3, 4))
    assert not np.array_equal(first.labels, second.labels)
    assert not np.array_equal(first.available, second.available)
    states = [newest(seeds.folder_of(together, s), experiment(s)).state for s in (3, 4)]
    same = jax.tree.map(np.array_equal, *(s.params for s in states))
    assert not any(jax.tree.leaves(same))
    assert experiment(3).algorithm.run._cache_size() == 1


def test_mean_and_sample_deviation_beside_the_seeds(together):
    own = [metrics(seeds.folder_of(together, seed)) for seed in (3, 4)]
    found = lines(together)
    assert [line["round"] for line in found] == [3, 6, 8]
    for i, line in enumerate(found):
        values = [log[i]["acc"] for log in own]
        assert line["seeds"] == [3, 4]
        assert line["per_seed"]["acc"] == values
        assert line["acc"] == pytest.approx(statistics.mean(values))
        assert line["acc_std"] == pytest.approx(statistics.stdev(values))
        assert len(line["per_class_std"]) == 3
    total = summary(together)
    assert total["final"]["per_seed"]["acc"] == [log[-1]["acc"] for log in own]
    assert total["per_seed"]["4"]["final"] == own[1][-1]
    assert total["best"] is total["chosen_on"] is None


def test_one_run_in_the_list(together, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(together, "runs/a")
    (tmp_path / "runs/b").mkdir()
    shutil.copy(together / training.CONFIG, "runs/b")
    assert main(["list", "runs"]) == 0
    done, begun = capsys.readouterr().out.splitlines()[1:]
    assert done.split()[3] == "3-4"
    assert done.rstrip().endswith("finished")
    assert "8/8" in done
    assert "interrupted, 0 of 2 seeds done" in begun
    for name in ("fixed_partition", "map_seeds"):
        training.write_config(tmp_path / "runs/b", config(**{name: True}))
        assert main(["list", "runs"]) == 0
        done, begun = capsys.readouterr().out.splitlines()[1:]
        assert "partition of seed 0" in begun
        assert "partition of seed 0" not in done


def test_seeds_that_stopped_early_are_done(together, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(together, tmp_path / "runs/a")
    # As if seed 3 had stopped at round 6: the last line is that of seed 4 alone.
    path = folder / "seed-3" / training.SUMMARY
    log = metrics_log.MetricsLog(path.parent / training.METRICS)
    stopped = json.loads(path.read_text()) | {"final": log.read()[1], "rounds": 6}
    stopped["final"]["acc"] = 0.25
    stopped["stopped_early"] = 6
    path.write_text(json.dumps(stopped))
    log.truncate_after(6)
    last = seeds.write_summary(config(), folder)["per_seed"][4]["final"]["acc"]
    assert main(["list", "runs"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert f"{50 * (0.25 + last):.1f} %" in row
    assert row.endswith("finished")
    assert "8/8" in row

    (folder / training.SUMMARY).unlink()
    path.unlink()
    assert main(["list", "runs"]) == 0
    assert "interrupted, 1 of 2 seeds done" in capsys.readouterr().out


def test_the_seeds_have_a_picture_each_and_one_together(together):
    for folder in (together, together / "seed-3", together / "seed-4"):
        text = (folder / "metrics.jsonl").read_text()
        records = [json.loads(x) for x in text.splitlines()]
        assert (folder / "curve.svg").read_text() == drawn(records)
    assert "<polygon" in (together / "curve.svg").read_text()


def test_the_best_state_is_that_of_one_seed(together):
    with pytest.raises(ValueError, match="give one of its seed-S folders") as error:
        training.load_best(together)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="seed-3 has no best round"):
        training.load_best(together / "seed-3")


def interrupted(folder, seed, round):
    """Trains until that round of that seed, and stops as SIGINT does."""

    class Stop(At):
        def note(self, text):
            super().note(text)
            self.round = round if f"seed {seed} " in text else self.round

    observer = Stop(-1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(training.Interrupted) as stopped:
        seeds.train(config(), folder, callbacks=[observer])
    return stopped.value


@pytest.mark.parametrize(("seed", "round"), [(3, 3), (3, 8), (4, 6)])
def test_interrupted_and_resumed(seed, round, together, tmp_path, capsys):
    folder = start(config(), tmp_path / "run")
    stopped = interrupted(folder, seed, round)
    assert str(stopped) == f"saved round {round} of seed {seed}"
    assert not (folder / training.SUMMARY).exists()
    finished = folder / "seed-3" / training.SUMMARY
    before = finished.stat().st_mtime_ns if finished.exists() else None
    assert main(["resume", str(folder), "--devices=1"]) == 0
    assert "over 2 seeds" in capsys.readouterr().out
    assert before in (None, finished.stat().st_mtime_ns)
    assert_same_run(folder, together)


@pytest.mark.slow
@pytest.mark.parametrize(("calls", "when"), [(3, "after"), (6, "before")])
def test_killed_and_resumed(calls, when, together, tmp_path, capsys):
    folder = start(config(), tmp_path / "run")
    kill(folder, "checkpoint", calls, when)
    assert main(["resume", str(folder), "--devices=1"]) == 0
    assert_same_run(folder, together)


def test_what_stands_beside_the_seeds_follows_from_them(together, tmp_path, capsys):
    folder = shutil.copytree(together, tmp_path / "run")
    (folder / training.METRICS).write_text("")
    (folder / "seed-4" / training.METRICS).unlink()
    assert main(["resume", str(folder)]) == 0
    captured = capsys.readouterr()
    assert "finished: 8 rounds" in captured.out
    assert captured.err.count("\n") == 2
    assert_same_run(folder, together)
    (folder / training.SUMMARY).unlink()
    (folder / training.METRICS).unlink()
    assert main(["resume", str(folder), "--devices=1"]) == 0
    assert_same_run(folder, together)


@pytest.mark.parametrize("how", ["emptied", "a corrupt line", "missing"])
@pytest.mark.parametrize("unfinished", [True, False])
def test_the_log_of_a_seed_that_has_finished_is_rebuilt(
    how, unfinished, together, tmp_path, capsys
):
    folder = shutil.copytree(together, tmp_path / "run")
    (folder / training.SUMMARY).unlink()
    if unfinished:
        (folder / "seed-4" / training.SUMMARY).unlink()
    log = folder / "seed-3" / training.METRICS
    first, _, *rest = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(
        b"" if how == "emptied" else b"".join([first, b"not JSON\n", *rest])
    )
    if how == "missing":
        log.unlink()
    assert main(["resume", str(folder), "--devices=1"]) == 0
    (note,) = [x for x in capsys.readouterr().err.splitlines() if "rebuilt" in x]
    assert str(log) in note
    assert_same_run(folder, together)


def test_a_finished_run_that_lost_a_seeds_summary_is_refused(
    together, tmp_path, capsys
):
    folder = shutil.copytree(together, tmp_path / "run")
    (folder / "seed-4" / training.SUMMARY).unlink()
    assert main(["resume", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"seed-4/{training.SUMMARY}: there is no such file" in line
    assert lines(folder) == lines(together)
    (folder / training.SUMMARY).unlink()
    assert main(["resume", str(folder), "--devices=1"]) == 0
    assert_same_run(folder, together)


def test_a_seeds_folder_of_another_configuration_is_refused(together, tmp_path, capsys):
    folder = shutil.copytree(together, tmp_path / "run")
    (folder / training.SUMMARY).unlink()
    (folder / "seed-4" / training.SUMMARY).unlink()
    training.write_config(folder / "seed-4", config(seed=5, seeds=1))
    assert main(["resume", str(folder), "--devices=1"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "seed-4: its config.json is not that of seed 4" in errors[-1]


def test_a_diverging_seed_ends_like_a_diverging_run(
    together, tmp_path, monkeypatch, capsys
):
    folder = start(config(), tmp_path / "run")

    def poisoned(config, *_):
        built = experiment(config.seed)
        federation = built.federation
        for client in range(4 if config.seed == 3 else 0):
            federation = problems.poison(federation, client)
        return built._replace(federation=federation)

    monkeypatch.setattr(seeds, "build", poisoned)
    assert main(["resume", str(folder), "--devices=1"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("fedcmi: error: seed 3: round 3")
    assert not (folder / training.SUMMARY).exists()
    assert_same_seed(folder / "seed-4", together / "seed-4", 4)
    assert [line["seeds"] for line in lines(folder)] == [[4]] * 3
    assert lines(folder)[0]["acc_std"] is None


def test_histories_are_those_of_the_runs(together):
    found = history.histories(config(), [3, 4], 3)
    for seed, ours_of in zip((3, 4), found, strict=True):
        log = metrics(seeds.folder_of(together, seed))
        assert [h["round"] for h in ours_of] == [3, 6, 8]
        for ours, theirs in zip(ours_of, log, strict=True):
            assert ours["acc"] == theirs["acc"]
            assert all(theirs[name] == value for name, value in ours.items())


def test_histories_name_a_seed_that_diverges(monkeypatch):
    built = experiment(4)
    federation = built.federation
    for client in range(4):
        federation = problems.poison(federation, client)
    poisoned = built._replace(federation=federation)
    monkeypatch.setattr(history, "build", lambda *_, **__: poisoned)
    with pytest.raises(training.DivergedError, match="seed 4: round 3, .*--clip-norm"):
        history.histories(config(), [4], 3)


def test_histories_look_at_statistics_too(monkeypatch):
    built = experiment(4)

    def lame(key, federation):
        state = built.algorithm.init(key, federation)
        return state._replace(batch_stats={"fusion": {"mean": np.float32(np.nan)}})

    first = jax.eval_shape(built.algorithm.init, built.key, built.federation)
    _, infos = jax.eval_shape(built.algorithm.run, first, built.federation, np.int32(2))

    def still(state, federation, piece):
        return state, jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), infos)

    algorithm = built.algorithm._replace(init=lame, run=still)
    lost = built._replace(algorithm=algorithm)
    monkeypatch.setattr(history, "build", lambda *_, **__: lost)
    with pytest.raises(training.DivergedError, match="seed 4: round 2, .*model is not"):
        history.histories(config(), [4], 3)


def test_a_configuration_of_several_seeds_is_not_one_run(tmp_path):
    built = experiment(3)._replace(config=config())
    with pytest.raises(ValueError, match="seeds: 2 is not one run"):
        training.train(built, tmp_path)


MAPPED = {"map_seeds": True, "seeds": 2}
STREAMED = {"stream": True, "rounds_per_call": None}


@functools.cache
def mapped_experiment():
    return build(config(**MAPPED))


@pytest.mark.slow
def test_mapped_seeds_are_the_seeds_on_one_partition():
    built = mapped_experiment()
    algorithm = built.algorithm
    states = algorithm.init(built.key, built.federation)
    states, infos = algorithm.run(states, built.federation, np.int32(1))
    assert infos.cohort.shape[:2] == (2, 2)
    fixed = seeds.alone(config(fixed_partition=True), 7)
    first = build(fixed)
    problems.assert_equal(first.federation, built.federation)
    for i, seed in enumerate((3, 4)):
        state = first.algorithm.init(jax.random.key(seed), first.federation)
        state, info = first.algorithm.run(state, first.federation, np.int32(1))
        problems.assert_close(seed_axis.one_seed(states, i), state)
        np.testing.assert_array_equal(infos.cohort[0, i], info.cohort[0])


@pytest.mark.slow
def test_mapped_seeds_are_a_run_like_any_other(tmp_path, monkeypatch, capsys):
    built = mapped_experiment()
    whole = start(config(**MAPPED), tmp_path / "whole")
    done = training.train(built, whole)
    assert built.algorithm.run._cache_size() == 1
    assert [line["round"] for line in lines(whole)] == [3, 6, 8]
    last = lines(whole)[-1]
    assert last["seeds"] == [3, 4]
    assert last["acc_std"] == pytest.approx(statistics.stdev(last["per_seed"]["acc"]))
    ours = measure(built, seed_axis.one_seed(done.state, 1))
    assert last["per_seed"]["acc"][1] == ours["acc"]

    found = summary(whole)
    assert found["fixed_partition"] is done.fixed_partition is True
    assert found["seeds"] == [3, 4]
    assert list(found["per_seed"]) == ["3", "4"]
    own = found["per_seed"]["4"]
    assert (own["rounds"], own["stopped_early"], own["best"]) == (8, None, None)
    assert (own["final"]["round"], own["final"]["acc"]) == (8, ours["acc"])
    assert own["final"]["per_class"] == last["per_seed"]["per_class"][1]

    cut = start(config(**MAPPED), tmp_path / "cut")
    with pytest.raises(training.Interrupted):
        training.train(built, cut, [At(3, lambda: signal.raise_signal(2))])
    monkeypatch.setattr("fedcmi_jax.cli.train.build", lambda *_, **__: built)
    assert main(["resume", str(cut), "--devices=1"]) == 0
    said = capsys.readouterr().out
    assert "over 2 seeds" in said
    assert "only up to rounding, 1e-5 after one round" in said
    assert lines(cut) == lines(whole)
    assert summary(cut) == summary(whole)
    problems.assert_equal(newest(cut, built).state, newest(whole, built).state)


@pytest.mark.slow
def test_a_mapped_seed_that_diverges_is_named(tmp_path):
    built = mapped_experiment()
    init = built.algorithm.init

    def lame(key, federation):
        states = init(key, federation)
        bad = jax.tree.map(lambda x: x.at[1].set(np.nan), states.params)
        return states._replace(params=bad)

    algorithm = built.algorithm._replace(init=lame)
    folder = start(config(**MAPPED), tmp_path / "run")
    with pytest.raises(training.DivergedError, match="^seed 4, round"):
        training.train(built._replace(algorithm=algorithm), folder)
    assert checkpoint.rounds(folder / training.CHECKPOINTS) == []
    assert lines(folder)
    assert all(sorted(line["rejected"]) == ["4"] for line in lines(folder))


def test_mapped_seeds_need_one_device_and_resident_data():
    mesh = jax.make_mesh((2,), ("clients",))
    with pytest.raises(ValueError, match="map_seeds.*--devices=1"):
        build(config(**MAPPED), mesh)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": 0}, "seeds: 0 is below 1"),
        ({"seeds": 1, "map_seeds": True}, "map_seeds: there is one seed only"),
        (MAPPED | STREAMED, "map_seeds: .*leave out map_seeds or stream"),
    ],
)
def test_what_seeds_cannot_do_is_one_line(values, message):
    with pytest.raises(ValueError, match=message) as error:
        configs.check_config(config(**values))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flags", [["--seeds=0"], ["--seeds=many"], ["--map-seeds"]])
def test_the_command_refuses_in_one_line(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedcmi_jax.cli.train.build", build)
    assert main(["train", "synthetic", *flags]) == 2
    error = capsys.readouterr().err
    assert flags[0].partition("=")[0].removeprefix("--").replace("-", "_") in (
        error.replace("-", "_")
    )
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_pool_of_one_seed_has_no_deviation():
    one = seed_axis.pool({0: {"round": 5, "acc": 0.5, "loss": None, "c": [1.0, None]}})
    assert (one["acc"], one["acc_std"], one["loss"]) == (0.5, None, None)
    assert "round" not in one
    assert one["c"][0] == 1.0


def test_pool_of_lists_by_client():
    lists = {0: [0.5, None, 1.0], 1: [1.0, 0.0, 0.0]}
    both = seed_axis.pool({seed: {"c": values} for seed, values in lists.items()})
    assert (both["c"][0], both["c"][2]) == (0.75, 0.5)
    assert np.isnan(both["c"][1])  # which a log writes as null
    assert both["per_seed"]["c"] == [lists[0], lists[1]]
    ragged = seed_axis.pool({0: {"c": [0.5, None]}, 1: {"c": [1.0]}, 2: {"c": None}})
    assert (ragged["c"], ragged["c_std"]) == (None, None)


def test_alone_leaves_everything_else():
    one = seeds.alone(config(**MAPPED, rounds=5), 7)
    assert one == dataclasses.replace(
        config(rounds=5), seed=7, seeds=1, map_seeds=False
    )
