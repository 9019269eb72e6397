# SPDX-License-Identifier: Apache-2.0
"""Names as text for people, whatever is in them, and terminals that lack their characters."""

import io
import json
import sys
import unicodedata

import pytest
from modeling_cover.files import to_json, write_json
from modeling_cover.text import (
    byte_size,
    counted,
    display_width,
    make_printable,
    padded,
    printable,
    shortened,
    some,
    table,
)


class TestPrintable:
    @pytest.mark.parametrize(
        "name", ["cash $$", "<b>x</b>", "走る", "दौड़", "ركض", "_x", "a\\tb", "\u3000", "👩\u200d🔬", "क्\u200dष"]
    )
    def test_a_name_stays_as_it_is(self, name):
        assert printable(name) == name

    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("a\tb\r\nc", r"a\tb\r\nc"),
            ("\x1b[31mred", r"\x1b[31mred"),
            ("\u202egnp", r"\u202egnp"),
            ("a\u2066b\u200fc", r"a\u2066b\u200fc"),
            ("a\u200bb\ufeff", r"a\u200bb\ufeff"),
            ("a\u200db", r"a\u200db"),
            ("\u2028", r"\u2028"),
            ("caf\udce9", r"caf\udce9"),
            ("\x9b1m", r"\x9b1m"),
        ],
    )
    def test_what_moves_the_cursor_or_is_not_seen_is_escaped(self, name, shown):
        assert printable(name) == shown
        assert printable(shown) == shown


class TestWidth:
    @pytest.mark.parametrize(
        ("text", "columns"),
        [("walk", 4), ("走る", 4), ("ｱ", 1), ("\uff21\uff22", 4), ("한국", 4), ("café", 4), ("ركض", 3), ("कु", 1)],
    )
    def test_it_is_that_of_a_terminal(self, text, columns):
        for form in ("NFC", "NFD"):
            assert display_width(unicodedata.normalize(form, text)) == columns

    @pytest.mark.parametrize(
        "name", ["走る人が走る", "running and jumping", "한국어한국어", "e\u0301" * 20, "a\tb" * 9, "कु" * 12]
    )
    @pytest.mark.parametrize("width", [1, 2, 5, 8, 10])
    def test_a_shortened_name_is_the_start_of_it_and_fits(self, name, width):
        short = shortened(name, width)
        assert short.endswith("…") and width - 1 <= display_width(short) <= width
        assert unicodedata.normalize("NFC", printable(name)).startswith(short[:-1])

    def test_a_name_that_fits_is_not_shortened(self):
        assert shortened("走る", 4) == "走る"
        assert padded("走る", 6) == "走る  "

    def test_the_columns_of_a_table_begin_one_below_the_other(self):
        lines = table(
            [["class", "rows", "of"], ["走る", "1", "x"], ["a\tb", "12", "한국"], ["दौड़\n", "3", "y"]]
        ).splitlines()
        assert lines == ["class  rows  of", "走る   1     x", r"a\tb   12    한국", r"दौड़\n  3     y"]
        starts = [line[: line.index(cell)] for line, cell in zip(lines, ("of", "x", "한", "y"), strict=True)]
        assert set(map(display_width, starts)) == {13}


def test_of_many_names_some_are_listed():
    assert some([]) == "none"
    assert some(["a", "b"]) == "'a', 'b'"
    assert some(list("abcdefg")) == "'a', 'b', 'c', 'd', 'e' and 2 more"
    assert some(["a", "b"], most=1) == "'a' and 1 more"


def test_nouns_are_in_the_plural_where_they_should_be():
    assert [counted(number, "row") for number in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert counted(2, "class", "classes") == "2 classes"


def test_sizes_have_the_unit_in_which_they_are_easy_to_read():
    sizes = [0, 999, 1500, 2_000_000, 3.14159e9, 5e12]
    assert list(map(byte_size, sizes)) == ["0 B", "999 B", "1.5 kB", "2 MB", "3.14 GB", "5e+03 GB"]


def test_what_an_ascii_terminal_lacks_is_escaped(monkeypatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    make_printable()
    for stream in streams.values():
        print("走る caf\udce9", file=stream, flush=True)
        assert stream.buffer.getvalue() == rb"\u8d70\u308b caf\udce9" + b"\n"


def test_a_stream_that_is_no_terminal_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    make_printable()
    print("走る")
    assert sys.stdout.getvalue() == "走る\n"


def test_json_has_any_name_and_no_number_that_is_none(tmp_path):
    value = {"走る": [float("nan"), 1.5], "caf\udce9": {"x": (float("-inf"), "$\u2028")}}
    write_json(tmp_path / "x.json", value, indent=1)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"走る": [None, 1.5], "caf\udce9": {"x": [None, "$\u2028"]}}
    assert "走る" in text and text.endswith("}\n")
    assert json.loads(to_json(value)) == json.loads(text)
