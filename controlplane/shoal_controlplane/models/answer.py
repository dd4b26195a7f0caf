"""What a model's outputs mean to a person: ranked labels, a text, or boxes in the picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shoal_controlplane.models.boxes import (
    FloatArray,
    anchor_centres,
    grow,
    heatmap_regions,
    suppress_overlaps,
)
from shoal_controlplane.models.card import (
    AnchorBoxesOutput,
    CtcOutput,
    HeatmapBoxesOutput,
    ImageInput,
    LabelsOutput,
    ModelCard,
)
from shoal_controlplane.models.picture import MediaError, place

MAX_BOXES: Final = 1000
MIN_REGION_SIDE: Final = 3
"""Regions of a heat map thinner than this many map pixels are noise."""

Outputs: TypeAlias = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Scored:
    """A label and its score."""

    label: str
    score: float


@dataclass(frozen=True)
class RankedAnswer:
    """The best labels, best first."""

    ranking: tuple[Scored, ...]

    def lines(self) -> list[str]:
        return [f"{item.label}  {item.score:.2f}" for item in self.ranking]


@dataclass(frozen=True)
class TextAnswer:
    """A text that was read; `confidence` is the mean over its characters, 0 if it is empty."""

    text: str
    confidence: float

    def lines(self) -> list[str]:
        return [f"{self.text or '(no text)'}  {self.confidence:.2f}"]


@dataclass(frozen=True)
class Box:
    """A labelled box; right and bottom are exclusive."""

    label: str
    score: float
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class BoxesAnswer:
    """Boxes in picture pixels: text regions from top to bottom, objects by score."""

    boxes: tuple[Box, ...]

    def lines(self) -> list[str]:
        return [
            f"{box.label}  {box.score:.2f}  "
            f"from ({box.left:.0f}, {box.top:.0f}) to ({box.right:.0f}, {box.bottom:.0f})"
            for box in self.boxes
        ] or ["nothing found"]


Answer: TypeAlias = RankedAnswer | TextAnswer | BoxesAnswer


def read_answer(
    card: ModelCard, outputs: Outputs, picture: tuple[int, int] | None = None
) -> Answer:
    """Read the outputs of one input (batch of 1) as the card says.

    `picture` is the (width, height) of the picture that was sent; boxes are given in its pixels,
    or in pixels of the model's input if it is None. Raises MediaError if the outputs do not fit
    the card.
    """
    output = card.output
    if isinstance(output, LabelsOutput):
        return _ranked(output, _tensor(outputs, output.tensor))
    if isinstance(output, CtcOutput):
        return _text(output, _tensor(outputs, output.tensor))
    # The card's check ties boxes to pictures.
    if not isinstance(card.input, ImageInput):
        raise MediaError("The model card gives boxes without a picture.")
    if isinstance(output, HeatmapBoxesOutput):
        return _regions(output, card.input, _tensor(outputs, output.tensor), picture)
    return _objects(
        output,
        card.input,
        _tensor(outputs, output.boxes),
        _tensor(outputs, output.scores),
        picture,
    )


def _tensor(outputs: Outputs, name: str) -> FloatArray:
    """One output without its batch dimension."""
    if name not in outputs:
        raise MediaError(f"The model returned no tensor {name!r}, which its card names.")
    values = np.asarray(outputs[name])
    if values.dtype.kind not in "fiu" or values.ndim < 1 or values.shape[0] != 1:
        raise MediaError(f"Output {name!r} is not one row of numbers: {_form(values)}.")
    if not np.isfinite(values).all():
        raise MediaError(f"Output {name!r} holds values that are not finite numbers.")
    row: FloatArray = values[0].astype(np.float64)
    return row


def _ranked(output: LabelsOutput, scores: FloatArray) -> RankedAnswer:
    scores = scores.ravel()
    if len(scores) != len(output.labels):
        raise MediaError(
            f"The model returned {len(scores)} scores, its card has {len(output.labels)} labels."
        )
    if output.activation == "softmax":
        powers = np.exp(scores - scores.max())
        scores = powers / powers.sum()
    elif output.activation == "sigmoid":
        scores = _sigmoid(scores)
    best = np.argsort(-scores, kind="stable")[: output.top_k]
    return RankedAnswer(tuple(Scored(output.labels[i], float(scores[i])) for i in best))


def _text(output: CtcOutput, scores: FloatArray) -> TextAnswer:
    symbols = ("", *output.labels, *([" "] if output.append_space else []))
    if scores.ndim != 2 or scores.shape[1] != len(symbols):
        raise MediaError(
            f"The text output has the form {_form(scores)}, its card has {len(symbols)} symbols."
        )
    if not len(scores):
        return TextAnswer("", 0.0)
    best = scores.argmax(axis=1)
    # Greedy decoding: collapse repeats, then drop the blank.
    kept = best != 0
    kept[1:] &= best[1:] != best[:-1]
    text = "".join(symbols[i] for i in best[kept])
    return TextAnswer(text, float(scores.max(axis=1)[kept].mean()) if kept.any() else 0.0)


def _regions(
    output: HeatmapBoxesOutput,
    spec: ImageInput,
    heat: FloatArray,
    picture: tuple[int, int] | None,
) -> BoxesAnswer:
    heat = heat[0] if heat.ndim == 3 and heat.shape[0] == 1 else heat
    if heat.ndim != 2 or not heat.size:
        raise MediaError(f"The heat map has the form {_form(heat)} instead of [1, 1, h, w].")
    boxes, scores = heatmap_regions(heat, output.threshold)
    wide = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) >= MIN_REGION_SIDE
    chosen = wide & (scores >= output.box_threshold)
    boxes, scores = grow(boxes[chosen], output.unclip), scores[chosen]
    best = np.sort(np.argsort(-scores, kind="stable")[:MAX_BOXES])
    boxes, scores = boxes[best], scores[best]
    if picture is None:
        boxes = np.clip(boxes, 0.0, np.array([heat.shape[1], heat.shape[0]] * 2))
    else:
        placement = place(spec, *picture)
        # Some detectors return a smaller map than their input.
        scale = [placement.canvas[1] / heat.shape[1], placement.canvas[0] / heat.shape[0]] * 2
        boxes = placement.to_picture(boxes * np.array(scale))
    return _boxes(boxes, scores, [output.labels[0]] * len(boxes))


def _objects(
    output: AnchorBoxesOutput,
    spec: ImageInput,
    raw: FloatArray,
    logits: FloatArray,
    picture: tuple[int, int] | None,
) -> BoxesAnswer:
    centres = anchor_centres(spec.size, output.strides)
    expected = (len(centres), len(output.labels))
    if raw.ndim != 2 or raw.shape[0] != len(centres) or raw.shape[1] < 4:
        raise MediaError(f"The boxes have the form {_form(raw)}, not [{len(centres)}, 4 or more].")
    if logits.shape != expected:
        raise MediaError(f"The scores have the form {_form(logits)}, not {list(expected)}.")
    scores = _sigmoid(logits)
    likely = np.flatnonzero(scores.max(axis=1) > output.score_threshold)
    likely = likely[np.argsort(-scores[likely].max(axis=1), kind="stable")[:MAX_BOXES]]
    middle = centres[likely] + raw[likely, :2]
    half = raw[likely, 2:4] / 2
    boxes = np.concatenate([middle - half, middle + half], axis=1)
    kept = suppress_overlaps(boxes, scores[likely].max(axis=1), output.iou_threshold)
    boxes, scores = boxes[kept], scores[likely[kept]]
    if picture is None:
        boxes = np.clip(boxes, 0.0, np.array([spec.size[1], spec.size[0]] * 2))
    else:
        boxes = place(spec, *picture).to_picture(boxes)
    labels = [output.labels[i] for i in scores.argmax(axis=1)]
    return _boxes(boxes, scores.max(axis=1), labels)


def _boxes(boxes: FloatArray, scores: FloatArray, labels: list[str]) -> BoxesAnswer:
    return BoxesAnswer(
        tuple(
            Box(label, float(score), *(float(side) for side in box))
            for label, score, box in zip(labels, scores, boxes, strict=True)
        )
    )


def _sigmoid(values: FloatArray) -> FloatArray:
    # Clipped, since exp overflows on the logits of certain outputs.
    result: FloatArray = 1 / (1 + np.exp(-np.clip(values, -80, 80)))
    return result


def _form(values: NDArray[Any]) -> str:
    return f"{values.dtype} {list(values.shape)}"
