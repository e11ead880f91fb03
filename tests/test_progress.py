"""Progress in a terminal, in a pipe and in a notebook."""

import importlib.machinery
import io
import sys
import types

import pytest
import rich.console

import fedcmi_jax as fc
from fedcmi_jax.experiment import progress
from fedcmi_jax.experiment.callbacks import Begun, Callbacks

RECORD = {"acc": 0.5, "acc_clean_zero": 0.25}


def follow(shown, rounds=3, seeds=1):
    """A run of so many rounds as its progress sees it."""
    config = fc.config.from_dict({"rounds": rounds})
    told = Callbacks([shown])
    for _ in range(seeds):
        with told.run(Begun(config, None, 0)):
            told.note("a [note]")
            for round in range(1, rounds + 1):
                told.evaluated(RECORD | {"round": round})
        told.finished(stopped=False)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_pipe_has_lines(capsys):
    console = rich.console.Console(file=io.StringIO(), force_jupyter=False)
    shown = progress.progress(console)
    assert isinstance(shown, progress.PlainProgress)
    follow(shown, rounds=90)
    lines = capsys.readouterr()
    assert lines.err == "fedcmi: a [note]\n"
    first, *rounds = lines.out.splitlines()
    assert first == "training from round 0 to 90"
    assert 15 <= len(rounds) <= 22
    assert rounds[-1] == "round 90/90  accuracy 50.0 %  clean 25.0 %"


def test_a_terminal_has_a_bar_for_each_run():
    screen = Terminal()
    console = rich.console.Console(
        file=screen, force_jupyter=False, force_terminal=True, width=100
    )
    shown = progress.progress(console)
    assert isinstance(shown, progress.BarProgress)
    follow(shown, seeds=2)
    text = screen.getvalue()
    assert "a [note]" in text
    assert "accuracy 50.0 %  clean 25.0 %" in text
    assert not shown.bar.live.is_started
    # The second run's bar comes alone.
    last = text[text.rindex("a [note]") :]
    assert last.split("\n")[-2].count("round 3/3") == 1


@pytest.fixture
def notebook(monkeypatch):
    """Stands in for IPython and its widgets: keeps what a cell shows."""
    shown = []

    class Output:
        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

        def clear_output(self, wait):
            pass

    display = types.ModuleType("IPython.display")
    display.display = shown.append
    widgets = types.ModuleType("ipywidgets")
    widgets.Output = Output
    widgets.__spec__ = importlib.machinery.ModuleSpec("ipywidgets", None)
    python = types.ModuleType("IPython")
    python.display = display
    for name, module in {
        "IPython": python,
        "IPython.display": display,
        "ipywidgets": widgets,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return shown


def test_a_notebook_has_a_bar(notebook):
    shown = progress.progress(rich.console.Console(force_jupyter=True))
    assert isinstance(shown, progress.BarProgress)
    follow(shown)
    pages = [x.html for x in notebook if hasattr(x, "html")]
    assert "round 3/3" in [page for page in pages if "round" in page][-1]


def test_a_notebook_without_widgets_has_lines(notebook, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    shown = progress.progress(rich.console.Console(force_jupyter=True))
    assert isinstance(shown, progress.PlainProgress)
    follow(shown)
    assert "round 3/3" in capsys.readouterr().out
