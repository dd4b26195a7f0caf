from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.models.pbtext import MAX_CHARACTERS, Word, parse


def test_all_forms_of_values() -> None:
    text = r"""
    # a comment
    name: "a" 'b' "\n\x41\101\"\303\244"   # adjacent texts are one
    count: -7, mask: 0x1F; rate: 2.5e-1 half: 1.5f
    flag: true kind: TYPE_X
    empty {} empty: <>
    list: [1, 2] list: 3 none: []
    blocks [ { a: 1 }, { a: 2 } ]
    [type.googleapis.com/some.Type] { x: 1 }
    """
    assert parse(text, "it") == {
        "name": ['ab\nAA"ä'],
        "count": [-7],
        "mask": [31],
        "rate": [0.25],
        "half": [1.5],
        "flag": [Word("true")],
        "kind": [Word("TYPE_X")],
        "empty": [{}, {}],
        "list": [1, 2, 3],
        "none": [],
        "blocks": [{"a": [1]}, {"a": [2]}],
        "[]": [{"x": [1]}],
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb {", "line 2: the block has no closing '}'"),
        ("a { b: 1 >", "a field's name is missing at '>'"),
        ("}", "a field's name is missing"),
        ("a", "neither ':' nor a block"),
        ("a 1", "neither ':' nor a block"),
        ("a:", "a value is missing"),
        ("a: [1,]", "a value is missing"),
        ("a: [1 2]", "']' is missing"),
        ("a: 'x", "cannot stand here"),
        ('a: "x\ny"', "cannot stand here"),
        ("a: 012", "is not a number"),
        ("a: 1e9 b: 9" + "9" * 5000, "is not a number"),
        ('a: "\\377"', "not UTF-8"),
        ('a: "\ud800"', "not UTF-8"),
        ("a: \x00", "cannot stand here"),
        ("a {" * 40 + "}" * 40, "blocks lie within one another"),
        ("a: " + "[" * 5000, "a value is missing"),
        ("#" * (MAX_CHARACTERS + 1), "characters"),
    ],
)
def test_what_is_malformed_is_refused_in_a_sentence(text: str, reason: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse(text, "config.pbtxt")
    assert reason in str(caught.value)
    assert str(caught.value).startswith("config.pbtxt")
    assert len(str(caught.value)) < 300


@given(st.text(alphabet="ab{}<>[]:,;'\"\\#\n 019.-+xe_", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text, "it")
    except InvalidError:
        pass
