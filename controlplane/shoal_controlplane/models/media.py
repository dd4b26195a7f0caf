"""From a picture or text to a model's input tensors, and from its outputs to an answer, as the
model's card says. The one module that callers need beside `card`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shoal_controlplane.models.answer import (
    Answer,
    Box,
    BoxesAnswer,
    RankedAnswer,
    Scored,
    TextAnswer,
    read_answer,
)
from shoal_controlplane.models.card import ImageInput, ModelCard, TextInput
from shoal_controlplane.models.picture import MediaError, load_picture, picture_to_array

__all__ = [
    "Answer",
    "Box",
    "BoxesAnswer",
    "MediaError",
    "RankedAnswer",
    "Scored",
    "TextAnswer",
    "image_to_tensor",
    "load_picture",
    "read_answer",
    "text_to_tensor",
]

MAX_TEXT_BYTES: Final = 1024 * 1024


def image_to_tensor(
    card: ModelCard, picture: bytes | Path | Image.Image
) -> dict[str, NDArray[Any]]:
    """Turn a picture file, or a picture from `load_picture`, into the model's input, batch of 1.

    Raises MediaError if the model takes no picture or the picture is broken or too large.
    """
    if not isinstance(card.input, ImageInput):
        raise MediaError(f"The model {card.model.name} takes a text, not a picture.")
    loaded = picture if isinstance(picture, Image.Image) else load_picture(picture)
    return {card.input.tensor: picture_to_array(card.input, loaded)}


def text_to_tensor(card: ModelCard, text: str) -> dict[str, NDArray[Any]]:
    """Turn a text into the model's input: a BYTES tensor (objects of type bytes), UTF-8.

    Raises MediaError if the model takes no text, or the text is too long or not valid Unicode.
    """
    if not isinstance(card.input, TextInput):
        raise MediaError(f"The model {card.model.name} takes a picture, not a text.")
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MediaError("The text is not valid Unicode.") from error
    if len(data) > MAX_TEXT_BYTES:
        raise MediaError(f"The text is longer than {MAX_TEXT_BYTES} bytes.")
    tensor = np.empty(card.input.shape, dtype=np.object_)
    tensor.fill(data)
    return {card.input.tensor: tensor}
