"""The inputs in a folder, and how they are stacked into requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shoal_controlplane.cli.errors import CliError
from shoal_controlplane.cli.npzfile import load_npz
from shoal_controlplane.cli.quantizeinputs import ARRAYS, PICTURES
from shoal_controlplane.cli.tensorfiles import load_tensor
from shoal_controlplane.cli.views import ModelVersion
from shoal_controlplane.models.card import ImageInput, ModelCard, TextInput
from shoal_controlplane.models.media import (
    MAX_TEXT_BYTES,
    MediaError,
    image_to_tensor,
    load_picture,
    text_to_tensor,
)
from shoal_shared.oip import Tensor
from shoal_shared.signature import TensorSpec, shape_fits
from shoal_shared.tensors import Array, datatype_of

ARRAY = ".npy"
TEXT = ".txt"
REQUEST_BYTES = 16 << 20
REQUEST_ITEMS = 1024
OPEN_GROUPS = 16
WAITING_BYTES = 2 * REQUEST_BYTES
"""Inputs of different shapes that wait for more of their kind."""


@dataclass(frozen=True)
class Sample:
    """One input: its tensors with `rows` items, and the size of the picture it was made of."""

    index: int
    tensors: tuple[Tensor, ...]
    rows: int
    picture: tuple[int, int] | None = None

    @property
    def kind(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Samples of the same kind fit into one request."""
        return tuple((t.datatype, t.data.shape[1:]) for t in self.tensors)

    @property
    def size(self) -> int:
        return sum(_size(tensor.data) for tensor in self.tensors)


def find_inputs(folder: Path, version: ModelVersion, card: ModelCard | None) -> list[Path]:
    """The files that the model can take, sorted by name. Raises `CliError` if there are none."""
    suffixes = {ARRAYS}
    if len(version.signature.inputs) == 1:
        suffixes.add(ARRAY)
    if card is not None and isinstance(card.input, ImageInput):
        suffixes.update(PICTURES)
    if card is not None and isinstance(card.input, TextInput):
        suffixes.add(TEXT)
    try:
        files = sorted(f for f in folder.iterdir() if f.suffix.lower() in suffixes and f.is_file())
    except OSError as error:
        raise CliError(f"{folder} cannot be read: {error.strerror or error}") from None
    if not files:
        shown = ", ".join(sorted(suffixes))
        raise CliError(
            f"{folder} holds no files that {version.name}:{version.version} takes: {shown}"
        )
    return files


def load_input(index: int, path: Path, version: ModelVersion, card: ModelCard | None) -> Sample:
    """Read and check one input. Raises `CliError` or `MediaError` with one sentence."""
    specs = version.signature.inputs
    picture = None
    suffix = path.suffix.lower()
    if suffix == ARRAY:
        tensors = [load_tensor(specs[0].name, path, specs[0].datatype)]
    elif suffix == ARRAYS:
        tensors = _named(load_npz(path), specs)
    elif card is None:
        raise CliError("the model has no card that says how this becomes its input")
    elif suffix == TEXT:
        tensors = _named(text_to_tensor(card, _text(path)), specs)
    else:
        loaded = load_picture(path)
        picture, tensors = loaded.size, _named(image_to_tensor(card, loaded), specs)
    batched = version.max_batch > 0
    checked = _checked(tensors, specs, batched)
    rows = {len(tensor.data) for tensor in checked} if batched else {1}
    if len(rows) != 1 or 0 in rows:
        raise CliError("its arrays are empty or not equally long")
    return Sample(index, checked, rows.pop(), picture)


def stack(samples: Sequence[Sample]) -> list[Tensor]:
    """The inputs of a request: those of the samples, one below the other."""
    if len(samples) == 1:
        return list(samples[0].tensors)
    return [
        Tensor(column[0].name, column[0].datatype, np.concatenate([t.data for t in column]))
        for column in zip(*(sample.tensors for sample in samples), strict=True)
    ]


@dataclass
class _Group:
    """Samples alike that wait for more."""

    samples: list[Sample] = field(default_factory=list)
    rows: int = 0
    size: int = 0

    def fits(self, sample: Sample) -> bool:
        rows, size = self.rows + sample.rows, self.size + sample.size
        return not self.samples or (rows <= REQUEST_ITEMS and size <= REQUEST_BYTES)

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)
        self.rows += sample.rows
        self.size += sample.size


def group(samples: Iterable[Sample], *, stacked: bool) -> Iterator[list[Sample]]:
    """Samples that go together into a request: alike, and within its limits.

    What waits for more of its kind is bounded, too.
    """
    groups: dict[object, _Group] = {}
    for sample in samples:
        if not stacked:
            yield [sample]
            continue
        waiting = groups.setdefault(sample.kind, _Group())
        if not waiting.fits(sample):
            yield waiting.samples
            waiting = groups[sample.kind] = _Group()
        waiting.add(sample)
        if len(groups) > OPEN_GROUPS or sum(g.size for g in groups.values()) > WAITING_BYTES:
            yield groups.pop(max(groups, key=lambda kind: groups[kind].size)).samples
    for waiting in groups.values():
        yield waiting.samples


def _size(array: Array) -> int:
    if array.dtype.kind == "O":
        return sum(len(element) + 4 for element in array.reshape(-1))
    return int(array.nbytes)


def _named(arrays: Mapping[str, Array], specs: Sequence[TensorSpec]) -> list[Tensor]:
    known = {spec.name: spec.datatype for spec in specs}
    tensors = []
    for name, array in arrays.items():
        datatype = datatype_of(array)
        if datatype == "UINT16" and known.get(name) == "BF16":
            datatype = "BF16"
        tensors.append(Tensor(name, datatype, array))
    return tensors


def _checked(
    tensors: Sequence[Tensor], specs: Sequence[TensorSpec], batched: bool
) -> tuple[Tensor, ...]:
    """The tensors in the model's order; a batch dimension that is left out is added."""
    given = {tensor.name: tensor for tensor in tensors}
    expected = [spec.name for spec in specs]
    if sorted(given) != sorted(expected):
        raise CliError(
            f"it holds {_listed(given)}, but the model takes {_listed(expected)}: name the arrays "
            "as the inputs"
        )
    checked = []
    for spec in specs:
        tensor = given[spec.name]
        if batched and shape_fits(tensor.data.shape, spec.shape[1:]):
            tensor = Tensor(tensor.name, tensor.datatype, tensor.data[np.newaxis])
        if tensor.datatype != spec.datatype or not shape_fits(tensor.data.shape, spec.shape):
            raise CliError(
                f"'{spec.name}' is {tensor.datatype} {list(tensor.data.shape)}, but the model "
                f"takes {spec.datatype} {list(spec.shape)}"
            )
        checked.append(tensor)
    return tuple(checked)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name[:80]}'" for name in names)[:300]


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_TEXT_BYTES + 1).decode()
    except OSError as error:
        raise CliError(f"it cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise MediaError("The text is not valid UTF-8.") from None
