"""fedcmi report: the page loads nothing, is sound, and has the same bytes twice."""

import html.parser
import json
import re

import pytest

import fedcmi_jax as fc
from fedcmi_jax.cli.main import main
from fedcmi_jax.experiment import presets
from fedcmi_jax.results.blocks import Section, Table, Text
from fedcmi_jax.results.collect import collect
from fedcmi_jax.results.comparison import pairing
from fedcmi_jax.results.each_client import accuracies
from fedcmi_jax.results.markdown import markdown
from fedcmi_jax.results.page import page
from fedcmi_jax.results.report import MARK
from fedcmi_jax.results.sections import Context, sections
from tests.result_folders import config, lines_of, write_run, write_summary, write_sweep

VOID = ("meta", "link", "br", "img", "wbr")
SHAPES = ("g", "path", "use", "rect", "line", "image", "polygon", "circle")


class Checker(html.parser.HTMLParser):
    """Collects tags, attributes and text; fails where tags are not balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.seen, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in SHAPES
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "s"
    write_sweep(folder, ["fedavg", "fedcmi"], [0.1], 3, 3)
    return folder


@pytest.fixture(scope="module")
def report(sweep, tmp_path_factory):
    output = tmp_path_factory.mktemp("report") / "r"
    assert main(["report", str(sweep), f"--output={output}"]) == 0
    return output


@pytest.fixture(scope="module")
def checked(report):
    return Checker((report / "index.html").read_text())


def test_the_page_refers_to_nothing_outside(report, checked):
    for tag, name, value in checked.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert value.startswith(("#", "data:")), (tag, name, value)
    text = (report / "index.html").read_text()
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert "script" not in checked.seen


def test_names_of_drawings_are_unique_and_known(checked):
    names = [value for _, name, value in checked.attributes if name == "id"]
    assert len(names) == len(set(names))
    used = [v for _, n, v in checked.attributes if n.endswith("href") and v[0] == "#"]
    assert {value[1:] for value in used} <= set(names)


def test_the_page_can_be_read_aloud(checked):
    cells = [pair for pair in checked.attributes if pair[0] == "th"]
    assert {value for _, name, value in cells if name == "scope"} == {"row", "col"}
    assert checked.seen.count("caption") == checked.seen.count("table") > 5
    figures = checked.seen.count("figure")
    named = [v for tag, n, v in checked.attributes if (tag, n) == ("svg", "aria-label")]
    assert figures == len(named) == 6
    assert all(named)


def test_all_sections_are_there(checked):
    titles = re.findall(r"## (.*)", " ".join(f"## {t}\n" for t in checked.texts))
    for title in (
        *("Results", "Differences to fedavg", "Accuracy over rounds", "Classes"),
        *("Imbalance, dominance and temperatures", "Clients", "Who holds what"),
        *("Rounds, seconds and bytes", "Machine, versions and commands"),
    ):
        assert title in titles


def test_tables_and_figures_are_files_too(report):
    found = contents(report)
    names = {name.removesuffix(".svg") for name in found if name.endswith(".svg")}
    assert names == {name.removesuffix(".png") for name in found if ".png" in name}
    text = found["report.md"].decode()
    assert all(f"]({name}.png)" in text for name in names)
    first = found["01-results.csv"].decode().splitlines()
    assert first[0].startswith(",seeds,rounds,fused (%),strong alone (%)")
    assert first[1].startswith('"fedavg,alpha=0.1",3,15,')
    numbers = found["numbers.csv"].decode().splitlines()
    assert numbers[0] == "entry,method,partition.alpha,seed,round,column,value"
    assert '"fedavg,alpha=0.1",fedavg,0.1,0,5,seconds,2.0' in numbers


def test_the_same_runs_give_the_same_bytes(sweep, report, tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "font.size", 20)  # a user's own
    fc.report(sweep, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(report)
    assert matplotlib.rcParams["font.size"] == 20


HOSTILE = '<script>alert("x")</script>&--><b>'


def test_what_others_wrote_is_text(tmp_path):
    table = Table(HOSTILE, ["", HOSTILE], [[HOSTILE, HOSTILE]])
    parts = [Section(HOSTILE, [Text(HOSTILE), table])]
    checked = Checker(page(HOSTILE, parts))
    assert "script" not in checked.seen
    assert "b" not in checked.seen
    assert checked.texts.count(HOSTILE) >= 6
    text = markdown(HOSTILE, parts)
    assert not re.search(r"(?<!\\)<", text)


def test_hostile_names_in_a_sweep(tmp_path):
    write_sweep(tmp_path / "s", ["fedcmi"], [0.1], 1, 2, baseline=None)
    text = (tmp_path / "s/plan.json").read_text()
    name = json.dumps(HOSTILE)[1:-1]
    text = text.replace('"name": "fedcmi,alpha=0.1"', f'"name": "{name}"')
    (tmp_path / "s/plan.json").write_text(text)
    fc.report(tmp_path / "s", tmp_path / "r")
    checked = Checker((tmp_path / "r/index.html").read_text())
    assert "script" not in checked.seen
    assert any(HOSTILE.startswith(t) for t in checked.texts if t.startswith("<script"))


def test_an_unfinished_run_is_marked(tmp_path, capsys):
    write_run(tmp_path / "a", config(seeds=2), {0: lines_of([0.5, 0.6])}, (0,))
    args = ["report", str(tmp_path / "a"), f"--output={tmp_path / 'r'}"]
    assert main(args) == 0
    assert capsys.readouterr().out.startswith(f"written: {tmp_path / 'r/index.html'}")
    text = (tmp_path / "r/report.md").read_text()
    assert "> fedavg is unfinished: seed 0, 1" in text
    assert "1 of 2, unfinished" in text
    assert f"fedcmi resume {tmp_path / 'a'}" in text
    assert "## Differences" not in text
    assert "## Imbalance" not in text


def test_what_is_no_share_is_not_in_per_cent(tmp_path):
    write_sweep(tmp_path / "s", ["fedavg", "fedcmi"], [1.0], 2, 1, measure="loss_task")
    for i, name in enumerate(("fedavg", "fedcmi")):
        for seed in (0, 1):
            folder = tmp_path / f"s/cells/{name},alpha=1.0/seed-{seed}"
            write_summary(folder, lines := lines_of([0.5], loss_task=2.0 - i))
            (folder / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    found = collect([tmp_path / "s"])
    parts = sections(Context(found, pairing(found), None, []))
    table = next(b for b in parts[0].blocks if isinstance(b, Table))
    assert table.columns[-1] == "loss_task"
    assert table.rows[0][-1] == "2.000 ± 0.000"
    assert table.rows[0][table.columns.index("fused (%)")] == "50.0 ± 0.0"
    assert "fedavg,alpha=1.0: -1.000 loss_task, 95 %" in parts[0].blocks[0].text
    differences = next(b for b in parts[1].blocks if isinstance(b, Table))
    assert "in points" not in differences.caption
    assert differences.rows[0][3] == "-1.000"


def test_data_sets_of_other_modalities_have_tables_of_their_own(tmp_path):
    write_run(tmp_path / "a", config(**GONE), {0: lines_of([0.5])})
    renamed = json.dumps(lines_of([0.5])).replace("strong", "audio")
    other = config(**GONE, multimodal_fraction=1.0)
    write_run(tmp_path / "b", other, {0: json.loads(renamed)})
    paths = [tmp_path / "a", tmp_path / "b"]
    parts = sections(Context(found := collect(paths), pairing(found), None, []))
    one, two = (b for b in parts[0].blocks if isinstance(b, Table))
    assert "strong alone (%)" in one.columns
    assert "strong alone (%)" not in two.columns
    assert "audio alone (%)" in two.columns
    assert [row[0] for row in two.rows] == ["multimodal_fraction=1"]


GONE = {"dataset": {"name": "npz", "path": "/nowhere/gone.npz"}}


def test_a_run_without_an_evaluation_is_no_error(tmp_path):
    write_run(tmp_path / "a", config(**GONE), {})
    fc.report(tmp_path / "a", tmp_path / "r")
    text = (tmp_path / "r/report.md").read_text()
    assert "Nothing has been evaluated yet" in text
    assert re.search(r"The partition cannot be shown: .*gone\.npz", text)


def test_a_report_prepares_no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDCMI_DATA_ROOT", str(tmp_path / "data"))
    unprepared = presets.preset("hapt")
    write_run(tmp_path / "run", unprepared, {0: lines_of([0.5, 0.6])})
    output = tmp_path / "r"
    assert main(["report", str(tmp_path / "run"), f"--output={output}"]) == 0
    assert "cannot be shown: hapt: not prepared" in (output / "report.md").read_text()
    assert not (tmp_path / "data").exists()


def test_a_report_is_replaced_and_nothing_else(tmp_path, capsys):
    write_run(tmp_path / "a", config(**GONE), {})
    output = tmp_path / "r"
    fc.report(tmp_path / "a", output)
    (output / "mine.txt").write_text("kept")
    listed = json.loads((output / MARK).read_text())
    outside = tmp_path / "outside.txt"
    outside.write_text("kept")
    (output / "figures/old.png").write_text("of an older report")
    old = [*listed, "figures/old.png", "../outside.txt", str(outside)]
    (output / MARK).write_text(json.dumps(old))
    fc.report(tmp_path / "a", output)
    assert not (output / "figures/old.png").exists()
    assert (output / "mine.txt").read_text() == outside.read_text() == "kept"
    assert json.loads((output / MARK).read_text()) == listed
    (output / MARK).unlink()
    before = contents(output)
    assert main(["report", str(tmp_path / "a"), f"--output={output}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has content that is no report" in line
    assert contents(output) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "report: takes run or sweep folders"),
        (["nowhere"], "nowhere: there is no such folder"),
        (["."], ".: is no run and no sweep"),
        (["a", "--baseline=x"], "baseline: there is no 'x'; choose from fedavg"),
        (["a", "--target=90"], "target: 90.0 is outside (0, 1]"),
        (["a", "--target=nan"], "target: nan is outside (0, 1]"),
        (["a", "--output=a"], "--output: a has content that is no report"),
        (["a", "--output=a/config.json"], "--output: a/config.json is a file"),
        (["a", "--nonsense=1"], "--nonsense"),
    ],
)
def test_mistakes_take_one_line_and_write_nothing(
    args, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", config(), {0: lines_of([0.5])})
    before = contents(tmp_path)
    assert main(["report", *args]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedcmi: error: ")
    assert message in line
    assert contents(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_every_client_s_accuracy_is_drawn_where_all_seeds_have_it(tmp_path):
    folder, names = tmp_path / "run", ("each-client-test.svg", "each-client.svg")
    spread = {f"client_test_{k}": 0.5 for k in ("min", "p10", "median", "mean", "max")}
    lines = lines_of([0.5, 0.6], client_test_per_client=[0.5, None, 1.0], **spread)
    write_run(folder, config(seeds=2), {0: lines, 1: lines})

    def drawn(name):
        fc.report([folder], tmp_path / name)
        return [(tmp_path / name / "figures" / file).exists() for file in names]

    logs = [folder / f"seed-{seed}" / "clients.jsonl" for seed in (0, 1)]
    logs[0].write_text('{"round":9}\n{"round":10,"accuracy":[0.25,null]}\n')
    assert drawn("one log") == [True, False]
    logs[1].write_text('{"round":10,"accuracy":[0.75,0.5]}\n')
    assert drawn("both") == [True, True]
    (entry,) = collect([folder]).entries
    assert accuracies(entry, "client_test").tolist() == [0.5, 1.0] * 2
    assert accuracies(entry, "client").tolist() == [0.25, 0.75, 0.5]
    old = '{"round":9,"accuracy":[1]}\n'
    for damaged in (
        old,
        "5",
        '[1, {"two": 3}]',
        "",
        '{"round":10,"accu',
        '{"round":10}\n',
    ):
        logs[0].write_text(damaged)
        assert accuracies(entry, "client") is None
    assert accuracies(entry, "holdout") is None
