"""Printing: nothing cut in a pipe, colours on a terminal only, nothing that drives it."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.cli import units
from shoal_controlplane.cli.options import Format
from shoal_controlplane.cli.output import (
    State,
    Table,
    as_text,
    clean,
    plain_lines,
    print_blocks,
    widths,
)

LONG = "a-device-with-a-very-long-name-" * 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    return Terminal()


def test_a_pipe_gets_whole_cells_without_colours(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()
    print_blocks([Table(("ID", "STATE"), [(LONG, State("ready")), ("b", "")])], stream)
    assert stream.getvalue() == f"{'ID':<{len(LONG)}}  STATE\n{LONG}  ready\nb\n"


def test_a_terminal_gets_colours_for_states_only(terminal):
    print_blocks([Table(("ID", "STATE"), [("ready", State("failed"))])], terminal)
    shown = terminal.getvalue()
    assert "\x1b[1;31mfailed" in shown
    assert "\x1b[32mready" not in shown


def test_a_terminal_loses_nothing_of_a_long_name(terminal):
    print_blocks([Table(("ID", "STATE"), [(LONG, State("ready"))])], terminal)
    letters = [line.split()[0] for line in terminal.getvalue().splitlines() if "-" in line]
    assert LONG in "".join(letters)


@pytest.mark.parametrize("width", [24, 40, 80, 200])
def test_a_terminal_of_any_width_loses_no_cell(terminal, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    row = ("jetson-orin-nano-1", State("online"), "resnet:1, yolo:2, ocr:3, faces:4", "5 s ago")
    print_blocks([Table(("DEVICE", "CONDITION", "MODELS", "SEEN"), [row])], terminal)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    for letters in ("DEVICE", "CONDITION", *row):
        assert not Counter(letters.replace(" ", "")) - Counter(shown)
    if width >= 80:
        assert all(cell in shown for cell in ("jetson-orin-nano-1", "online", "5 s ago"))


@given(st.lists(st.integers(1, 200), min_size=1, max_size=12), st.integers(1, 300))
def test_columns_fit_wherever_they_can(naturals, room):
    given_widths = widths(naturals, room)
    gaps = 2 * (len(naturals) - 1)
    assert all(1 <= width <= natural for width, natural in zip(given_widths, naturals, strict=True))
    if sum(naturals) + gaps <= room:
        assert given_widths == naturals
    elif 2 * len(naturals) + gaps <= room:
        assert sum(given_widths) + gaps <= room


def test_the_first_column_and_narrow_ones_stay_whole():
    assert widths([18, 9, 28, 50, 4, 8], 80) == [18, 9, 15, 15, 4, 8]


def test_markup_of_a_stranger_is_text(terminal):
    print_blocks([Table(("ID",), [("[bold]x[/bold]",)])], terminal)
    assert "[bold]x[/bold]" in terminal.getvalue()


@given(st.text())
def test_clean_text_has_no_hidden_characters_and_its_length(text):
    shown = clean(text)
    assert len(shown) == len(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1))
def test_a_plain_table_has_a_line_a_row(rows):
    assert len("".join(plain_lines(Table(("A", "B"), rows))).split("\n")) == len(rows) + 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_documents_come_back_from_json(document):
    text = as_text(Format.JSON, document)
    assert json.loads(text) == document
    assert not any("\x7f" <= c <= "\x9f" for c in text)
    assert as_text(Format.JSON, document, indent=None).count("\n") == 1


def test_documents_come_back_from_yaml():
    document = {"b": [1, None, True, 2.5, "no", "é\x1b", {"a": {}}], "a": "x"}
    text = as_text(Format.YAML, document)
    assert yaml.safe_load(text) == document
    assert list(yaml.safe_load(text)) == ["b", "a"]
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (18_600_000, "17.7 MiB"),
        (120 << 20, "120 MiB"),
        (8 << 30, "8.0 GiB"),
        (5000 << 40, "5000 TiB"),
    ],
)
def test_sizes(count, text):
    assert units.size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.421, "0.42 ms"), (9.994, "9.99 ms"), (9.996, "10.0 ms"), (99.96, "100 ms")],
)
def test_milliseconds(value, text):
    assert units.milliseconds(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "now"), (0.9, "now"), (59, "59 s ago"), (3599, "59 min ago"), (90_000, "1 d ago")],
)
def test_ages(seconds, text):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert units.age(now - timedelta(seconds=seconds), now) == text
