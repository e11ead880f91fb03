"""Callbacks: when they are called, what they see, how they end a run."""

import json

import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.cli import train as commands
from fedcmi_jax.cli.main import main
from fedcmi_jax.experiment import checkpoint, one_call, training
from fedcmi_jax.experiment.callbacks import Begun, CallbackError, Callbacks
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.testing.problem import assert_equal
from tests.test_launch import metrics
from tests.test_python_runs import VALUES

# Calls of two rounds, evaluations every third, checkpoints every second.
SPARSE = VALUES | {
    "rounds": 5,
    "eval_every": 3,
    "rounds_per_call": 2,
    "checkpoint_every": 2,
    "validation_fraction": 0.0,
}


class Heard(fc.Callback):
    """Keeps what it hears."""

    def __init__(self):
        self.calls, self.records, self.infos = [], [], []

    def started(self, begun):
        self.calls.append(f"started {begun.round}")

    def evaluated(self, record):
        self.calls.append(f"evaluated {record['round']}")
        self.records.append(record)

    def saved(self, round):
        self.calls.append(f"saved {round}")

    def ended(self, round, how):
        self.calls.append(f"{how} {round}")


class Rounds(Heard):
    """The same of every round."""

    def __init__(self, stop=None):
        super().__init__()
        self.stop = stop

    def round_start(self, round):
        self.calls.append(f"start {round}")

    def round_end(self, round, info, state):
        self.calls.append(f"end {round}")
        self.infos.append((int(state.round), info.cohort.copy()))
        return round == self.stop


class Broken(fc.Callback):
    def __init__(self, at):
        self.at = at

    def evaluated(self, record):
        if record["round"] == self.at:
            raise KeyError("mine")


@pytest.fixture(scope="module")
def built():
    return build(fc.config.from_dict(SPARSE))


@pytest.fixture(autouse=True, scope="module")
def _one_program(built):
    """All runs here are of one configuration: they share its program."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (one_call, commands):
            patch.setattr(module, "build", lambda *args, **kwargs: built)
        yield


@pytest.fixture(scope="module")
def run(_one_program, tmp_path_factory):
    folder, heard = tmp_path_factory.mktemp("runs") / "plain", Heard()
    return folder, heard, fc.train(SPARSE, output=folder, callbacks=[heard])


def test_without_round_hooks_calls_hold_several_rounds(run):
    _, heard, _ = run
    assert heard.calls == [
        *("started 0", "saved 2", "evaluated 3", "saved 4", "evaluated 5", "saved 5"),
        "finished 5",
    ]


def test_round_hooks_see_every_round_and_change_nothing(run):
    folder, plain, history = run
    rounds = Rounds()
    watched = fc.train(SPARSE, callbacks=[rounds])
    assert_equal(watched.params, history.params)
    assert [x for x in rounds.calls if " 3" in x] == ["start 3", "end 3", "evaluated 3"]
    assert [r for r, _ in rounds.infos] == [1, 2, 3, 4, 5]
    assert len({tuple(cohort) for _, cohort in rounds.infos}) > 1
    shown = [{k: v for k, v in r.items() if k != "seconds"} for r in rounds.records]
    assert shown == metrics(folder)
    assert rounds.calls[-1] == "finished 5"


def test_a_round_may_be_the_last_and_is_evaluated(run, tmp_path, capsys):
    folder, rounds = tmp_path / "run", Rounds(stop=4)
    history = fc.train(SPARSE, output=folder, callbacks=[rounds])
    assert [x["round"] for x in history.records] == [3, 4]
    assert rounds.calls[-4:] == ["end 4", "evaluated 4", "saved 4", "stopped 4"]
    assert history.records[0]["acc"] == run[2].records[0]["acc"]
    assert json.loads((folder / "summary.json").read_text())["stopped_early"] == 4
    assert main(["resume", str(folder)]) == 0
    assert "4 rounds, stopped early; nothing to do" in capsys.readouterr().out


def test_an_evaluation_may_be_the_last_without_a_folder():
    class Enough(Heard):
        def evaluated(self, record):
            super().evaluated(record)
            return np.bool_(record["acc"] >= 0)

    enough = Enough()
    history = fc.train(SPARSE, callbacks=[enough])
    assert [x["round"] for x in history.records] == [3]
    assert enough.calls == ["started 0", "evaluated 3", "stopped 3"]


def test_a_failure_saves_the_round_and_the_run_goes_on(run, tmp_path, capsys):
    folder, heard = tmp_path / "run", Heard()
    message = r"callback Broken.evaluated, 3 rounds done: KeyError: 'mine'; round 3 is"
    with pytest.raises(CallbackError, match=message) as error:
        fc.train(SPARSE, output=folder, callbacks=[Broken(3), heard])
    assert isinstance(error.value.__cause__, KeyError)
    assert checkpoint.rounds(folder / training.CHECKPOINTS) == [2, 3]
    assert heard.calls == ["started 0", "saved 2", "failed 3"]
    assert main(["resume", str(folder), "--devices=1"]) == 0
    assert metrics(folder) == metrics(run[0])
    assert_equal(fc.load_run(folder).params()[0], run[2].params)
    assert "round 5/5" in capsys.readouterr().out


def test_a_failure_without_a_folder_says_so():
    with pytest.raises(CallbackError, match="nothing is saved without output"):
        fc.train(SPARSE, callbacks=[Broken(3)])


def test_what_is_no_callback_is_refused():
    with pytest.raises(ValueError, match=r"callbacks: <built-in .*print> is no fedcmi"):
        fc.train(SPARSE, callbacks=[print])
    with pytest.raises(ValueError, match=r"callbacks: .* is no list; give \[callback"):
        fc.train(SPARSE, callbacks=fc.Callback())


def begun():
    return Begun(fc.config.Config(), None, 0)


def test_a_failed_start_trains_nothing():
    class Late(fc.Callback):
        def started(self, begun):
            raise OSError("disk is full")

    heard = Heard()
    with pytest.raises(CallbackError, match="started, 0 rounds done: OSError: disk is"):
        with Callbacks([Late(), heard]).run(begun()):
            pytest.fail("went on")
    assert heard.calls == ["failed 0"]


def test_every_callback_is_told_of_the_end_although_one_fails():
    class Last(fc.Callback):
        def ended(self, round, how):
            raise OSError("gone")

    heard = Heard()
    told = Callbacks([Last(), heard])
    with told.run(begun()):
        told.round = 7
    with pytest.raises(CallbackError, match="the run is complete"):
        told.finished(stopped=False)
    assert heard.calls == ["started 0", "finished 7"]


@pytest.mark.parametrize(
    ("error", "how"),
    [(training.Interrupted(2, 5), "interrupted"), (ValueError("bad"), "failed")],
)
def test_how_a_run_ends(error, how):
    heard = Heard()
    with pytest.raises(type(error)):
        with Callbacks([heard]).run(begun()):
            raise error
    assert heard.calls == ["started 0", f"{how} 0"]


def test_all_are_asked_though_one_wants_to_stop():
    class Stops(fc.Callback):
        def evaluated(self, record):
            return True

    heard = Heard()
    told = Callbacks([Stops(), heard])
    with told.run(begun()):
        assert not told.wants_stop
        told.evaluated({"round": 1})
    assert told.wants_stop
    assert heard.calls[-1] == "evaluated 1"


def test_wants_rounds():
    assert not Callbacks([Heard()]).wants_rounds
    assert Callbacks([Heard(), Rounds()]).wants_rounds
    assert not Callbacks().wants_rounds
