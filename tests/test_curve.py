"""The picture in a run's folder."""

import xml.etree.ElementTree as ElementTree

from fedcmi_jax.experiment import curve

LINES = [
    {"round": 5, "acc": 0.25, "acc_a_zero": 0.0, "acc_b_zero": 1.0},
    {"round": 15, "acc": 0.75, "acc_a_zero": 0.5, "acc_b_zero": None},
]
SVG = "{http://www.w3.org/2000/svg}"


def shapes(text, kind):
    return ElementTree.fromstring(text).findall(f"{SVG}{kind}")


def test_a_line_for_fused_and_every_modality():
    text = curve.drawn(LINES)
    fused, a, b = (line.get("points") for line in shapes(text, "polyline"))
    # 190 pixels are 100 %, the top is at 30.
    assert fused == "44.0,172.5 424.0,77.5"
    assert a == "44.0,220.0 424.0,125.0"
    assert b == "44.0,30.0"
    texts = [found.text for found in shapes(text, "text")]
    assert texts[-3:] == ["fused 75.0 %", "a 50.0 %", "b -"]
    assert not shapes(text, "polygon")


def test_several_seeds_have_a_band():
    lines = [line | {"acc_std": 0.25} for line in LINES]
    (band,) = shapes(curve.drawn(lines), "polygon")
    assert band.get("points") == "44.0,125.0 424.0,30.0 424.0,125.0 44.0,220.0"


def test_one_line_is_a_point_and_names_are_text():
    text = curve.drawn([{"round": 1, "acc": 0.5, "acc_<b>&_zero": 0.5}])
    assert len(shapes(text, "path")) == 2
    assert shapes(text, "text")[-1].text == "<b>& 50.0 %"


def test_a_picture_that_cannot_be_written_is_no_error(tmp_path):
    assert not curve.write_curve(tmp_path / "gone", LINES)
    assert curve.write_curve(tmp_path, LINES)
