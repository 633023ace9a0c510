"""The roofline's geometry, and what the picture says."""

import importlib
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from residency.errors import UsageError
from residency.verifier.roofline import Point, Roofline, Scale, roofline_svg, write_png

POINTS = (
    Point(label="decode x1", kind="decode", operations_per_byte=3.0, operations_per_second=1.2e11),
    Point(label="decode x2", kind="decode", operations_per_byte=3.1, operations_per_second=1.2e11),
    Point(label="prefill <512>", kind="prefill", operations_per_byte=300.0, operations_per_second=4e11),
)
ROOFLINE = Roofline(bytes_per_second=5e10, operations_per_second=8e11, prompt_operations_per_second=8e11, points=POINTS)
WITH_TILES = replace(ROOFLINE, prompt_operations_per_second=3e12)
SVG = "{http://www.w3.org/2000/svg}"


def test_the_ridge_is_where_both_roofs_meet() -> None:
    assert ROOFLINE.ridge * ROOFLINE.bytes_per_second == ROOFLINE.operations_per_second


@pytest.mark.parametrize(("operations_per_byte", "roof"), [(1.0, 5e10), (16.0, 8e11), (1000.0, 8e11)])
def test_the_roof_is_the_lower_of_the_two(operations_per_byte: float, roof: float) -> None:
    assert ROOFLINE.roof(operations_per_byte) == roof


def test_prompts_that_are_computed_faster_have_a_roof_of_their_own() -> None:
    root = ElementTree.fromstring(roofline_svg(WITH_TILES, "a model"))
    assert {"matrix products: 800 Gop/s", "of prompts: 3.00 Top/s"} <= {text.text for text in root.iter(f"{SVG}text")}


def test_an_axis_is_of_whole_decades_that_hold_all_values() -> None:
    scale = Scale.around([0.5, 30.0], 0, 300)
    assert scale.decades == [0.1, 1.0, 10.0, 100.0]


def test_a_decade_is_as_long_as_every_other() -> None:
    scale = Scale.around([0.5, 30.0], 0, 300)
    assert [round(scale.at(value)) for value in scale.decades] == [0, 100, 200, 300]


def test_more_operations_a_second_are_higher_up() -> None:
    assert ROOFLINE.y.at(8e11) < ROOFLINE.y.at(1e11)


def test_every_point_lies_inside_the_axes() -> None:
    inside = [
        ROOFLINE.x.least <= point.operations_per_byte <= ROOFLINE.x.most
        and ROOFLINE.y.least <= point.operations_per_second <= ROOFLINE.y.most
        for point in POINTS
    ]
    assert all(inside)


def test_the_picture_has_a_circle_for_each_point() -> None:
    root = ElementTree.fromstring(roofline_svg(ROOFLINE, "a model"))
    assert [circle.get("class") for circle in root.iter(f"{SVG}circle")] == ["decode", "decode", "prefill"][::-1]


def test_labels_are_text_whatever_is_in_them() -> None:
    root = ElementTree.fromstring(roofline_svg(ROOFLINE, "a & b"))
    assert {"prefill <512>", "a & b"} <= {text.text for text in root.iter(f"{SVG}text")}


def test_labels_of_points_that_are_close_lie_below_each_other() -> None:
    root = ElementTree.fromstring(roofline_svg(ROOFLINE, "a model"))
    at = {text.text: float(text.get("y", "0")) for text in root.iter(f"{SVG}text")}
    assert abs(at["decode x1"] - at["decode x2"]) >= 15


def test_a_dark_page_has_colours_of_its_own() -> None:
    assert "@media (prefers-color-scheme: dark)" in roofline_svg(ROOFLINE, "a model")


def test_a_png_without_its_library_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UsageError, match=r"pip install 'residency\[png\]'"):
        write_png("<svg/>", tmp_path / "picture.png")
