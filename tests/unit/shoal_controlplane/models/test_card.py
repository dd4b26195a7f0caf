from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.models.card import (
    CARD_FILE,
    AnchorBoxesOutput,
    CardError,
    CtcOutput,
    GoldenFacts,
    HeatmapBoxesOutput,
    ImageInput,
    LabelsOutput,
    ModelCard,
    ModelFacts,
    TextInput,
    card_from_dict,
    card_to_dict,
    load_card,
    parse_card,
)

CARD = """
[model]
name = "pets"
description = "Cats and dogs"
licence = "MIT"
tolerance = 0.001
[input]
kind = "image"
tensor = "image"
layout = "NCHW"
size = [32, 64]
resize = "center-crop"
mean = [1, 2.5, 3]
scale = 0.5
[output]
kind = "labels"
tensor = "prob"
labels = ["cat", "dog"]
"""
ANCHORS: dict[str, Any] = {
    "model": {"name": "faces"},
    "input": {
        "kind": "image",
        "tensor": "x",
        "layout": "NHWC",
        "size": [128, 128],
        "resize": "pad",
        "color": "BGR",
    },
    "output": {
        "kind": "anchor-boxes",
        "boxes": "b",
        "scores": "s",
        "labels": ["face"],
        "strides": [8, 16, 16, 16],
    },
}


def write(folder: Path, text: str) -> Path:
    (folder / CARD_FILE).write_text(text, "utf-8")
    return folder


def changed(section: str, **values: Any) -> dict[str, Any]:
    """The anchor card with keys of one section set, or dropped where the value is None."""
    document: dict[str, Any] = json.loads(json.dumps(ANCHORS))
    document[section].update(values)
    document[section] = {k: v for k, v in document[section].items() if v is not None}
    return document


def test_reads_a_card(tmp_path: Path) -> None:
    assert load_card(write(tmp_path, CARD)) == ModelCard(
        ModelFacts("pets", "Cats and dogs", "MIT", 0.001),
        ImageInput(
            tensor="image",
            size=(32, 64),
            resize="center-crop",
            layout="NCHW",
            mean=(1.0, 2.5, 3.0),
            scale=(0.5, 0.5, 0.5),
        ),
        LabelsOutput("prob", ("cat", "dog")),
    )


def test_reads_labels_from_a_file(tmp_path: Path) -> None:
    text = CARD.replace('labels = ["cat", "dog"]', 'labels_file = "names.txt"')
    (tmp_path / "names.txt").write_bytes("Katze\r\nHündin\n".encode())
    assert load_card(write(tmp_path, text)).output.labels == ("Katze", "Hündin")


def test_reads_labels_from_the_models_metadata(tmp_path: Path) -> None:
    text = CARD.replace('labels = ["cat", "dog"]', 'labels_metadata = "character"')
    card = load_card(write(tmp_path, text), {"character": "a\n\u3000\nb"})
    assert card.output.labels == ("a", "\u3000", "b")
    with pytest.raises(CardError, match="no metadata 'character'"):
        load_card(tmp_path)


def test_a_text_model() -> None:
    document = changed("input", **dict.fromkeys(ANCHORS["input"]))
    document["input"] = {"kind": "text", "tensor": "text"}
    document["output"] = {"kind": "labels", "tensor": "y", "labels": ["good", "bad"]}
    assert card_from_dict(document).input == TextInput("text", (1, 1))
    document["input"]["shape"] = [1]
    assert card_from_dict(document).input == TextInput("text", (1,))
    document["input"]["shape"] = [1, 2]
    with pytest.raises(CardError, match="shape must be a whole number from 1 to 1"):
        card_from_dict(document)


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
line = st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs"]), min_size=1, max_size=20)
labels = st.lists(line, min_size=1, max_size=5).map(tuple)
share = st.floats(0.01, 1)
channels = st.tuples(*[st.floats(-1e6, 1e6)] * 3)
images = st.builds(
    ImageInput,
    tensor=line,
    size=st.tuples(*[st.integers(1, 128).map(lambda n: n * 32)] * 2),
    resize=st.sampled_from(["center-crop", "stretch", "pad", "fit-height", "multiple-of"]),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    color=st.sampled_from(["RGB", "BGR"]),
    mean=channels,
    scale=channels.filter(all),
    multiple=st.sampled_from([1, 2, 16, 32]),
    datatype=st.sampled_from(["FP32", "FP16", "UINT8", "INT8"]),
)
facts = st.builds(ModelFacts, names, st.just("") | line, st.just("") | line, st.none() | share)
cards = st.builds(
    ModelCard,
    facts,
    images,
    st.builds(LabelsOutput, line, labels, st.integers(1, 1000), st.just("softmax"))
    | st.builds(CtcOutput, line, labels, st.booleans())
    | st.builds(HeatmapBoxesOutput, line, st.tuples(line), share, share, st.floats(0, 10)),
) | st.builds(
    ModelCard,
    facts,
    images.filter(lambda image: image.resize in {"center-crop", "stretch", "pad"}),
    st.builds(
        AnchorBoxesOutput,
        line,
        line,
        labels,
        st.lists(st.sampled_from([8, 16, 32]), min_size=1, max_size=16).map(tuple),
        share,
        share,
    ),
)


@given(cards)
def test_survives_the_way_over_http(card: ModelCard) -> None:
    assert card_from_dict(json.loads(json.dumps(card_to_dict(card)))) == card


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (changed("model", name="../up"), r"\[model\] name must start with a letter"),
        (changed("model", name=7), r"\[model\] name must be a text"),
        (changed("model", name=None), r"\[model\] lacks name"),
        (changed("model", colour="red"), r"\[model\] has an unknown key 'colour'"),
        (changed("model", description="\x1b[31mred"), "control characters"),
        (changed("model", description="a\u202eb"), "control characters"),
        (changed("model", description="x" * 1001), "1 to 1000 characters"),
        (changed("model", tolerance=0), "tolerance must be above 0"),
        (changed("model", tolerance=True), "tolerance must be a finite number"),
        (changed("input", kind="video"), "kind must be one of image, text"),
        (changed("input", kind=["image"]), "kind must be one of"),
        (changed("input", layout=None), r"\[input\] lacks layout"),
        (changed("input", layout="NCWH"), "layout must be one of"),
        (changed("input", size=[128]), "size must be a list of 2 whole numbers"),
        (changed("input", size=128), "size must be a list"),
        (changed("input", size=[128, 128.0]), "size must be a whole number"),
        (changed("input", size=[128, True]), "size must be a whole number"),
        (changed("input", size=[0, 128]), "from 1 to 4096"),
        (changed("input", size=[128, 10**9]), "from 1 to 4096"),
        (changed("input", mean=[1, 2]), "mean must be a number or a list of 3"),
        (changed("input", mean="127"), "mean must be a finite number"),
        (changed("input", mean=float("nan")), "mean must be a finite number"),
        (changed("input", mean=10**400), "mean must be a finite number"),
        (changed("input", mean=1e7), "between -1e6 and 1e6"),
        (changed("input", scale=0), "scale must not be zero"),
        (changed("input", resize="multiple-of", multiple=48), "does not fit multiple = 48"),
        (changed("input", resize="multiple-of"), "needs an input of a fixed size"),
        (changed("output", kind="mask"), "kind must be one of labels"),
        (changed("output", labels=None), "exactly one of labels"),
        (changed("output", labels_file="x"), "exactly one of labels"),
        (changed("output", labels=[]), "list of 1 to 100000 texts"),
        (changed("output", labels="face"), "list of 1 to 100000 texts"),
        (changed("output", labels=["a", ""]), "labels must be a text of 1 to 256"),
        (changed("output", labels=["a\nb"]), "control characters"),
        (changed("output", strides=[]), "list of 1 to 16 whole numbers"),
        (changed("output", strides=[7]), "stride 7 does not divide"),
        (changed("output", strides=[8] * 17), "list of 1 to 16 whole numbers"),
        (changed("output", score_threshold=1.5), "at most 1"),
        (changed("output", top_k=5), "unknown key 'top_k'"),
        ({"model": {"name": "a"}}, r"lacks its section \[input\]"),
        (ANCHORS | {"extra": {}}, "unknown key 'extra'"),
        (ANCHORS | {"output": []}, r"\[output\] must be a table"),
        (ANCHORS | {"input": {"kind": "text", "tensor": "t"}}, "boxes need an"),
        ([], "The model card must be a table"),
        (None, "The model card must be a table"),
    ],
)
def test_refuses_in_one_sentence(document: object, message: str) -> None:
    with pytest.raises(CardError, match=message) as caught:
        card_from_dict(document)
    assert "\n" not in str(caught.value)


def test_a_heat_map_has_one_label_and_labels_their_limit() -> None:
    output = {"kind": "heatmap-boxes", "tensor": "h", "labels": ["a", "b"]}
    with pytest.raises(CardError, match="exactly one label"):
        card_from_dict(ANCHORS | {"output": output})
    output = {"kind": "labels", "tensor": "h", "labels": ["a"], "top_k": 0}
    with pytest.raises(CardError, match="top_k must be a whole number from 1 to 1000"):
        card_from_dict(ANCHORS | {"output": output})


@pytest.mark.parametrize(
    "text", [b"not toml", b"\xff\xfe", b"a = " + b"[" * 5000, b"[model]\nname = 'a'\nname = 'b'"]
)
def test_refuses_what_is_not_toml(text: bytes) -> None:
    with pytest.raises(CardError, match="not valid TOML"):
        parse_card(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(
    st.sampled_from([(section, key) for section in ANCHORS for key in ANCHORS[section]]),
    json_values,
)
def test_any_value_is_accepted_or_cleanly_refused(where: tuple[str, str], value: object) -> None:
    document = {name: dict(section) for name, section in ANCHORS.items()}
    document[where[0]][where[1]] = value
    try:
        card = card_from_dict(document)
    except CardError:
        return
    assert card_from_dict(card_to_dict(card)) == card


class TestLabelFile:
    """A label file lies in the model's folder, whatever the card says."""

    def refused(self, folder: Path, name: str) -> str:
        text = CARD.replace('labels = ["cat", "dog"]', f"labels_file = {json.dumps(name)}")
        with pytest.raises(CardError) as caught:
            load_card(write(folder, text))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", ".", "a/b", "a\\b"])
    def test_a_name_that_climbs(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "secret").write_text("a\nb\n")
        folder = tmp_path / "model"
        folder.mkdir()
        assert "must be a file in the model's folder" in self.refused(folder, name)

    def test_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "names.txt").symlink_to("/etc/passwd")
        assert self.refused(tmp_path, "names.txt") == "names.txt is a link."

    def test_a_pipe_does_not_hang(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "names.txt")
        assert self.refused(tmp_path, "names.txt") == "names.txt is not a regular file."

    def test_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "names.txt").mkdir()
        assert self.refused(tmp_path, "names.txt") == "names.txt is not a regular file."

    def test_a_missing_file(self, tmp_path: Path) -> None:
        assert "cannot be read: No such file" in self.refused(tmp_path, "names.txt")

    def test_a_name_with_a_zero_byte(self, tmp_path: Path) -> None:
        assert "control characters" in self.refused(tmp_path, "a\x00b")

    def test_binary_bytes(self, tmp_path: Path) -> None:
        (tmp_path / "names.txt").write_bytes(b"\xff\xfe\n")
        assert "is not UTF-8 text" in self.refused(tmp_path, "names.txt")

    def test_an_oversized_file(self, tmp_path: Path) -> None:
        with (tmp_path / "names.txt").open("wb") as file:
            file.truncate(4 * 1024 * 1024 + 1)
        assert "is larger than" in self.refused(tmp_path, "names.txt")

    def test_no_file_over_http(self) -> None:
        with pytest.raises(CardError, match="only beside the model"):
            card_from_dict(changed("output", labels=None, labels_file="names.txt"))


def test_a_folder_without_a_card(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"shoal\.toml cannot be read: No such file"):
        load_card(tmp_path)


def test_golden_tolerance(tmp_path: Path) -> None:
    text = CARD + '[golden]\nabsolute = 0.05\nrelative = 0.1\ninputs = "golden.npz"\n'
    card = load_card(write(tmp_path, text))
    assert card.golden == GoldenFacts(0.05, 0.1, "golden.npz")
    assert card_from_dict(card_to_dict(card)) == card
    assert parse_card(CARD.encode()).golden == GoldenFacts()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("absolute = 0", "absolute must be above 0"),
        ("relative = 2", "at most 1"),
        ("relative = nan", "finite"),
        ('inputs = "../x.npz"', "in the model's folder"),
        ("unknown = 1", "unknown key 'unknown'"),
    ],
)
def test_a_wrong_golden_section(line: str, reason: str) -> None:
    with pytest.raises(CardError, match=reason):
        parse_card(f"{CARD}[golden]\n{line}\n".encode())
