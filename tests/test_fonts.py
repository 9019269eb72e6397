# SPDX-License-Identifier: Apache-2.0
"""Names in pictures: none is read as TeX, and each is drawn by a font that has its characters or named once."""

import os
import subprocess
import warnings
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from modeling_cover.dataset_tools.preparation_report import draw_class_histogram
from modeling_cover.evaluation.plots import draw_confusion_matrix, draw_scores_of_classes
from modeling_cover.fonts import find_fonts, told_if_not_drawn
from modeling_cover.training.curves import draw_training_curves
from PIL import Image, ImageFont
from python_server import python


LABELS = ["cash $$", "pay $5 or $10", "walk", "_hidden", r"$\frac{1}$", "<b>x</b>", "9%", r"\$ a_b^c", "走る", "ركض"]
NOWHERE = "\U00109abc\U00109abd"  # characters for private use, which no font of the machine has

WITH_A_FONT = f"""
import numpy as np
from modeling_cover.evaluation.plots import draw_confusion_matrix
from modeling_cover.fonts import find_fonts

name = "run {NOWHERE} run"
assert [file.rpartition("/")[2] for file in find_fonts([name])] == ["blocks.ttf"], find_fonts([name])
draw_confusion_matrix(np.eye(2, dtype=int), [name, "walk"], "title", "confusion.png")
"""


def texts(path: Path) -> list[str]:
    """Those of an SVG picture, as they were written."""
    return ["".join(text.itertext()) for text in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


@pytest.fixture
def as_text():
    """SVG pictures have text as text; and the user's own settings ask for TeX."""
    with matplotlib.rc_context({"svg.fonttype": "none", "text.usetex": True, "axes.formatter.use_mathtext": True}):
        yield


class TestMatplotlib:
    def test_labels_are_drawn_as_they_are(self, tmp_path, as_text):
        counts = np.eye(len(LABELS), dtype=int)
        draw_confusion_matrix(counts, LABELS, "a $b$ c$", tmp_path / "confusion.svg")
        drawn = texts(tmp_path / "confusion.svg")
        assert {*LABELS, "a $b$ c$"} <= set(drawn)
        assert [drawn.count(label) for label in LABELS] == [2] * len(LABELS)

        scores = np.linspace(0, 1, len(LABELS))
        draw_scores_of_classes(scores, counts.sum(axis=1), LABELS, "$", "accuracy", tmp_path / "scores.svg")
        assert {f"{label} (1)" for label in LABELS} | {"$"} <= set(texts(tmp_path / "scores.svg"))

    def test_controls_are_escaped_and_a_long_label_is_shortened(self, tmp_path, as_text):
        labels = ["a\tb\n\x1b[0m\u202e", "走" * 40]
        draw_confusion_matrix(np.eye(2, dtype=int), labels, "title", tmp_path / "confusion.svg")
        assert {r"a\tb\n\x1b[0m\u202e", "走" * 15 + "…"} <= set(texts(tmp_path / "confusion.svg"))

    def test_a_dataset_whose_name_begins_with_a_line_is_in_the_legend(self, tmp_path, as_text):
        history = [{"step": 1, "_hidden_loss": 0.5, "eval__hidden_top1": 0.5, "x_loss": 0.4}]
        draw_training_curves(history, ["_hidden", "x"], tmp_path / "curves.svg")
        assert {"_hidden, training", "_hidden, evaluation", "x, training"} <= set(texts(tmp_path / "curves.svg"))

    def test_settings_are_the_users_again_afterwards(self, tmp_path):
        before = dict(matplotlib.rcParams)
        draw_confusion_matrix(np.eye(2, dtype=int), LABELS[:2], "title", tmp_path / "confusion.png")
        assert dict(matplotlib.rcParams) == before


class TestFonts:
    def test_names_that_no_font_has_are_told_once_for_all_pictures(self, tmp_path, caplog):
        labels = ["walk", f"swim {NOWHERE}", f"dive {NOWHERE}"]
        counts = np.ones((3, 3), dtype=int)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            draw_confusion_matrix(counts, labels, "title", tmp_path / "confusion.png")
            draw_scores_of_classes(np.ones(3), np.ones(3, dtype=int), labels, "title", "accuracy", tmp_path / "x.png")
            draw_class_histogram("clips", dict.fromkeys(labels, 1), tmp_path / "y.png")
        assert [str(warning.message) for warning in caught if "Glyph" in str(warning.message)] == []
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 1
        assert "swim" in told[0] and "dive" in told[0] and "walk" not in told[0]

    def test_of_many_names_some_are_told(self, caplog):
        find_fonts([f"{NOWHERE}, {number}" for number in range(100)])
        assert "and 90 more" in caplog.text

    @pytest.mark.parametrize("name", ["走る人", "달리기를", "दौड़ना", "ركضًا", "วิ่งๆ"])
    def test_a_script_has_a_font_or_is_told(self, name, caplog):
        files = find_fonts([name])
        assert (name in caplog.text) == (not files and name != "ركضًا")
        assert all(ImageFont.truetype(file, 12).getlength(name) > 0 for file in files)

    def test_a_font_that_the_machine_has_is_used(self, tmp_path):
        write_font(tmp_path / "share" / "fonts" / "blocks.ttf", NOWHERE)
        (tmp_path / "share" / "fonts" / "text.ttf").write_text("no font")
        environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "share")}
        command = [python(), "-c", WITH_A_FONT]
        finished = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
        assert "no installed font" not in finished.stderr and "Glyph" not in finished.stderr
        # Letters are thin, and the font's characters are black areas of their size.
        confusion = np.asarray(Image.open(tmp_path / "confusion.png").convert("L")) < 60
        margin = confusion[:, :160]  # where the names of the rows are
        assert (margin.sum(axis=1) >= 26).sum() >= 12


def write_font(path: Path, characters: str) -> None:
    """A font whose characters are black squares."""
    pen = TTGlyphPen(None)
    for number, point in enumerate([(0, 0), (0, 1000), (1000, 1000), (1000, 0)]):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    names = [f"block{number}" for number in range(len(characters))]
    glyphs = {".notdef": TTGlyphPen(None).glyph(), **dict.fromkeys(names, pen.glyph())}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap(dict(zip(map(ord, characters), names, strict=True)))
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=1000, descent=-200)
    builder.setupNameTable({"familyName": "Blocks of a test", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path.parent.mkdir(parents=True, exist_ok=True)
    builder.save(path)


def test_a_picture_that_cannot_be_written_is_told_and_no_more(tmp_path, caplog):
    (tmp_path / "a\tb.png").mkdir()
    with told_if_not_drawn(tmp_path / "a\tb.png"):
        draw_confusion_matrix(np.eye(2, dtype=int), ["x", "y"], "title", tmp_path / "a\tb.png")
    assert caplog.text.count(r"a\tb.png is not drawn: ") == 1


def test_a_fault_of_ours_is_no_fault_of_a_picture(tmp_path):
    with pytest.raises(KeyError), told_if_not_drawn(tmp_path / "x.png"):
        raise KeyError("top1")
