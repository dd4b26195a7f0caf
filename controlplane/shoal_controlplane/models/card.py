"""The model card `shoal.toml`: how a picture or a text becomes a model's input, and how its
output reads.

A card is optional and lies beside the model file. It comes from strangers, so every key is
checked; CardError says in one sentence what is wrong. Labels are resolved when the card is read,
so that `to_dict` gives a document that stands alone (the CLI receives it over HTTP).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast

import tomllib

from shoal_controlplane.models.cardfields import CardError, Section, read_bounded

__all__ = [
    "CARD_FILE",
    "AnchorBoxesOutput",
    "CardError",
    "CtcOutput",
    "GoldenFacts",
    "HeatmapBoxesOutput",
    "ImageInput",
    "InputSpec",
    "LabelsOutput",
    "ModelCard",
    "ModelFacts",
    "OutputSpec",
    "TextInput",
    "card_from_dict",
    "card_to_dict",
    "load_card",
    "parse_card",
]

CARD_FILE: Final = "shoal.toml"
MAX_CARD_BYTES: Final = 256 * 1024
MAX_LABEL_FILE_BYTES: Final = 4 * 1024 * 1024
MAX_LABELS: Final = 100_000
MAX_SIDE: Final = 4096
MAX_ANCHOR_LAYERS: Final = 16
COMPRESSIONS: Final = ("fp16", "int8")

Resize: TypeAlias = Literal["center-crop", "stretch", "pad", "fit-height", "multiple-of"]
Datatype: TypeAlias = Literal["FP32", "FP16", "UINT8", "INT8"]
Channels: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True)
class ModelFacts:
    """`[model]`: what people should know. `tolerance` is the largest absolute difference between
    two runtimes' outputs that still counts as the same answer; None if the author gave none.
    `compression` allows tensors between the stages of the sharded model to travel as "fp16" or
    "int8"."""

    name: str
    description: str = ""
    licence: str = ""
    tolerance: float | None = None
    compression: str = ""


@dataclass(frozen=True)
class ImageInput:
    """`[input]` with `kind = "image"`: one picture, as x = (pixel - mean) * scale.

    `size` is (height, width) in pixels. `resize` says how a picture gets there:

    - `center-crop`: the largest centred part of the right proportions, resized to `size`
    - `stretch`: resized to `size`, proportions lost
    - `pad`: scaled to fit into `size`, centred, the rest is zero in the tensor
    - `fit-height`: scaled to the height, proportions kept; the width is rounded up to a multiple
      of `multiple` and is at least that of `size`, zeros on the right
    - `multiple-of`: scaled to fit into `size`, each side rounded to a multiple of `multiple`

    `mean` and `scale` are per channel, in the order of `color`, for pixels from 0 to 255.
    """

    tensor: str
    size: tuple[int, int]
    resize: Resize
    layout: Literal["NCHW", "NHWC"]
    color: Literal["RGB", "BGR"] = "RGB"
    mean: Channels = (0.0, 0.0, 0.0)
    scale: Channels = (1.0, 1.0, 1.0)
    multiple: int = 1
    datatype: Datatype = "FP32"
    kind: Literal["image"] = "image"


@dataclass(frozen=True)
class TextInput:
    """`[input]` with `kind = "text"`: a BYTES tensor of the UTF-8 text, for models that split it
    into tokens themselves. `shape` is (1,) or (1, 1)."""

    tensor: str
    shape: tuple[int, ...] = (1, 1)
    kind: Literal["text"] = "text"


@dataclass(frozen=True)
class LabelsOutput:
    """`kind = "labels"`: one score a label; the best `top_k` are shown."""

    tensor: str
    labels: tuple[str, ...]
    top_k: int = 5
    activation: Literal["none", "softmax", "sigmoid"] = "none"
    kind: Literal["labels"] = "labels"


@dataclass(frozen=True)
class CtcOutput:
    """`kind = "ctc"`: scores [1, steps, symbols] of a text; symbol 0 is the blank, then come the
    labels, then a space if `append_space`."""

    tensor: str
    labels: tuple[str, ...]
    append_space: bool = False
    kind: Literal["ctc"] = "ctc"


@dataclass(frozen=True)
class HeatmapBoxesOutput:
    """`kind = "heatmap-boxes"`: a map [1, 1, h, w] of probabilities. Regions above `threshold`
    whose mean reaches `box_threshold` become boxes, grown by `unclip` x area / perimeter."""

    tensor: str
    labels: tuple[str, ...]
    threshold: float = 0.3
    box_threshold: float = 0.5
    unclip: float = 1.6
    kind: Literal["heatmap-boxes"] = "heatmap-boxes"


@dataclass(frozen=True)
class AnchorBoxesOutput:
    """`kind = "anchor-boxes"`: single-shot detection with MediaPipe's anchors.

    Tensor `boxes` [1, anchors, >= 4] holds centre and size in input pixels, relative to the
    anchor; tensor `scores` [1, anchors, labels] holds logits. `strides` has one entry a layer;
    every layer puts two anchors of unit size into each cell, layers of equal stride together.
    """

    boxes: str
    scores: str
    labels: tuple[str, ...]
    strides: tuple[int, ...]
    score_threshold: float = 0.5
    iou_threshold: float = 0.3
    kind: Literal["anchor-boxes"] = "anchor-boxes"


@dataclass(frozen=True)
class GoldenFacts:
    """`[golden]`: how far outputs of variants and boards may be off the reference's, at most
    `absolute` + `relative` times the largest magnitude of that output.

    Without `absolute` that is the model's `tolerance`. `inputs` names a file in the model's
    folder, as `shoal model push --golden` takes it.
    """

    absolute: float | None = None
    relative: float | None = None
    inputs: str = ""


InputSpec: TypeAlias = ImageInput | TextInput
OutputSpec: TypeAlias = LabelsOutput | CtcOutput | HeatmapBoxesOutput | AnchorBoxesOutput


@dataclass(frozen=True)
class ModelCard:
    """A whole card, checked, with its labels resolved."""

    model: ModelFacts
    input: InputSpec
    output: OutputSpec
    golden: GoldenFacts = GoldenFacts()


def load_card(folder: Path, metadata: Mapping[str, str] | None = None) -> ModelCard:
    """Read `shoal.toml` of a model's folder, with its label file if it names one.

    `metadata` is the model's own (ONNX `metadata_props`), for cards that take their labels from
    there. Raises CardError, also if there is no card.
    """
    data = read_bounded(folder / CARD_FILE, MAX_CARD_BYTES)
    return parse_card(data, folder, metadata)


def parse_card(
    data: bytes, folder: Path | None = None, metadata: Mapping[str, str] | None = None
) -> ModelCard:
    """Check the TOML text of a card; label files are looked up in `folder` only. CardError."""
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise CardError(f"The model card is not valid TOML: {error}.") from error
    return _card(document, folder, metadata or {})


def card_from_dict(document: object) -> ModelCard:
    """Check a card as plain JSON values, labels inline (the form of `card_to_dict`). CardError."""
    return _card(document, None, {})


def card_to_dict(card: ModelCard) -> dict[str, Any]:
    """The card as plain JSON values; `card_from_dict` gives the same card back."""
    document = cast("dict[str, Any]", _plain(asdict(card)))
    document["model"] = {k: v for k, v in document["model"].items() if v is not None}
    if not card.model.compression:
        del document["model"]["compression"]
    golden = {
        key: value for key, value in document.pop("golden").items() if value not in (None, "")
    }
    return {**document, "golden": golden} if golden else document


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _card(document: object, folder: Path | None, metadata: Mapping[str, str]) -> ModelCard:
    root = Section("", document)
    model, picture, answer = (root.section(name) for name in ("model", "input", "output"))
    golden = _golden(root.section("golden")) if "golden" in root else GoldenFacts()
    root.finish()
    card = ModelCard(_model(model), _input(picture), _output(answer, folder, metadata), golden)
    if isinstance(card.output, HeatmapBoxesOutput | AnchorBoxesOutput):
        if not isinstance(card.input, ImageInput):
            raise CardError('[output] boxes need an [input] with kind = "image".')
        if isinstance(card.output, AnchorBoxesOutput):
            _check_anchors(card.input, card.output)
    return card


def _model(section: Section) -> ModelFacts:
    facts = ModelFacts(
        name=section.name("name"),
        description=section.text("description", default="", limit=1000),
        licence=section.text("licence", default="", limit=100),
        tolerance=section.number("tolerance", above=0.0, most=1.0, optional=True),
        compression=(
            section.choice("compression", COMPRESSIONS) if "compression" in section else ""
        ),
    )
    section.finish()
    return facts


def _input(section: Section) -> InputSpec:
    kind = section.choice("kind", ("image", "text"))
    tensor = section.text("tensor", limit=256)
    spec: InputSpec
    if kind == "text":
        spec = TextInput(tensor, section.integers("shape", 1, 1, lengths=(1, 2), default=(1, 1)))
    else:
        resize = section.choice(
            "resize", ("center-crop", "stretch", "pad", "fit-height", "multiple-of")
        )
        size = section.integers("size", 1, MAX_SIDE, lengths=(2,))
        scale = section.per_channel("scale", default=1.0)
        if 0.0 in scale:
            raise CardError("[input] scale must not be zero.")
        spec = ImageInput(
            tensor=tensor,
            size=(size[0], size[1]),
            resize=cast("Resize", resize),
            layout=cast("Literal['NCHW', 'NHWC']", section.choice("layout", ("NCHW", "NHWC"))),
            color=cast(
                "Literal['RGB', 'BGR']", section.choice("color", ("RGB", "BGR"), default="RGB")
            ),
            mean=section.per_channel("mean", default=0.0),
            scale=scale,
            multiple=section.integer("multiple", 1, 256, default=1),
            datatype=cast(
                "Datatype",
                section.choice("datatype", ("FP32", "FP16", "UINT8", "INT8"), default="FP32"),
            ),
        )
        free = {"fit-height": size[1:], "multiple-of": size}.get(resize, ())
        if any(side % spec.multiple for side in free):
            raise CardError(f"[input] size does not fit multiple = {spec.multiple}.")
    section.finish()
    return spec


def _output(section: Section, folder: Path | None, metadata: Mapping[str, str]) -> OutputSpec:
    kind = section.choice("kind", ("labels", "ctc", "heatmap-boxes", "anchor-boxes"))
    labels = _labels(section, folder, metadata)
    spec: OutputSpec
    if kind == "labels":
        activation = section.choice("activation", ("none", "softmax", "sigmoid"), default="none")
        spec = LabelsOutput(
            tensor=section.text("tensor", limit=256),
            labels=labels,
            top_k=section.integer("top_k", 1, 1000, default=5),
            activation=cast("Literal['none', 'softmax', 'sigmoid']", activation),
        )
    elif kind == "ctc":
        spec = CtcOutput(
            tensor=section.text("tensor", limit=256),
            labels=labels,
            append_space=section.flag("append_space", default=False),
        )
    elif kind == "heatmap-boxes":
        if len(labels) != 1:
            raise CardError('[output] kind = "heatmap-boxes" needs exactly one label.')
        spec = HeatmapBoxesOutput(
            tensor=section.text("tensor", limit=256),
            labels=labels,
            threshold=section.number("threshold", above=0.0, most=1.0, default=0.3),
            box_threshold=section.number("box_threshold", above=0.0, most=1.0, default=0.5),
            unclip=section.number("unclip", above=-1e-9, most=10.0, default=1.6),
        )
    else:
        lengths = tuple(range(1, MAX_ANCHOR_LAYERS + 1))
        spec = AnchorBoxesOutput(
            boxes=section.text("boxes", limit=256),
            scores=section.text("scores", limit=256),
            labels=labels,
            strides=section.integers("strides", 2, MAX_SIDE, lengths=lengths),
            score_threshold=section.number("score_threshold", above=0.0, most=1.0, default=0.5),
            iou_threshold=section.number("iou_threshold", above=0.0, most=1.0, default=0.3),
        )
    section.finish()
    return spec


def _golden(section: Section) -> GoldenFacts:
    facts = GoldenFacts(
        absolute=section.number("absolute", above=0.0, most=1e6, optional=True),
        relative=section.number("relative", above=0.0, most=1.0, optional=True),
        inputs=section.text("inputs", default="", limit=255),
    )
    section.finish()
    if facts.inputs in {".", ".."} or "/" in facts.inputs or "\\" in facts.inputs:
        raise CardError(f"[golden] inputs {facts.inputs!r} must be a file in the model's folder.")
    return facts


def _check_anchors(picture: ImageInput, output: AnchorBoxesOutput) -> None:
    if picture.resize in {"fit-height", "multiple-of"}:
        raise CardError('[output] kind = "anchor-boxes" needs an input of a fixed size.')
    for stride in output.strides:
        if any(side % stride for side in picture.size):
            raise CardError(f"[output] stride {stride} does not divide the input's size.")


def _labels(section: Section, folder: Path | None, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Labels from exactly one of `labels` (a list), `labels_file` (one a line, in the model's
    folder) and `labels_metadata` (a key of the model's metadata, one a line)."""
    sources = [key for key in ("labels", "labels_file", "labels_metadata") if key in section]
    if len(sources) != 1:
        raise CardError("[output] needs exactly one of labels, labels_file and labels_metadata.")
    if sources == ["labels"]:
        return section.texts("labels", limit=256, count=MAX_LABELS)
    if sources == ["labels_file"]:
        text = _label_file(section.text("labels_file", limit=255), folder)
    else:
        key = section.text("labels_metadata", limit=256)
        if key not in metadata:
            raise CardError(f"[output] labels_metadata: the model has no metadata {key!r}.")
        text = metadata[key]
    lines = text.removesuffix("\n").split("\n")
    given: dict[str, object] = {"labels": [line.removesuffix("\r") for line in lines]}
    return Section("output", given).texts("labels", limit=256, count=MAX_LABELS)


def _label_file(name: str, folder: Path | None) -> str:
    if folder is None:
        raise CardError("[output] labels_file works only beside the model; give labels inline.")
    if name in {".", ".."} or "/" in name or "\\" in name:
        raise CardError(f"[output] labels_file {name!r} must be a file in the model's folder.")
    try:
        return read_bounded(folder / name, MAX_LABEL_FILE_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CardError(f"[output] labels_file {name!r} is not UTF-8 text.") from error
