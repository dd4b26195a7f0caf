"""The one file that holds the results of many inputs.

Results come in any order and are kept on disk, so that memory does not depend on their number;
the file appears under its name when it is complete, or not at all.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from shoal_controlplane.cli.errors import CliError
from shoal_controlplane.cli.tensorfiles import as_document
from shoal_shared.oip import Tensor
from shoal_shared.signature import ModelSignature
from shoal_shared.tensors import Array

STACKED = ".npz"
FILES, ERRORS = "__files__", "__errors__"
"""Names in a `.npz` of what is no output."""


class ResultFile(ABC):
    """Results by the index of their input."""

    @abstractmethod
    def add(self, index: int, outputs: Sequence[Tensor], answer: Mapping[str, Any] | None) -> None:
        """Keep the outputs of an input, read as `answer` if there is one. Raises `CliError` if
        the file cannot hold them."""

    @abstractmethod
    def failed(self, index: int, error: str) -> None:
        """There is no result for an input."""

    @abstractmethod
    def write(self, path: Path) -> None:
        """Put everything together in the order of the inputs."""

    @abstractmethod
    def close(self) -> None:
        """Let go of all files."""


@contextlib.contextmanager
def result_file(
    path: Path, names: Sequence[str], signature: ModelSignature, *, rows: bool
) -> Iterator[ResultFile]:
    """A file for results of the inputs `names`: `.npz` for stacked outputs, else JSON Lines.

    `rows` says that outputs have a batch dimension. The file is written at the end of a block
    that ends well. Raises `CliError`.
    """
    if path.is_dir():
        raise CliError(f"{path} is a folder: name a file for the results")
    texts = [spec.name for spec in signature.outputs if spec.datatype == "BYTES"]
    stacked = path.suffix.lower() == STACKED
    if stacked and texts:
        raise CliError(f"output '{texts[0][:80]}' is text, which only a .jsonl file can hold")
    try:
        with tempfile.TemporaryDirectory(prefix=".shoal-", dir=path.parent) as scratch:
            folder = Path(scratch)
            results = Stack(folder, names, rows) if stacked else Lines(folder, names)
            with contextlib.closing(results):
                yield results
                results.write(folder / "complete")
            (folder / "complete").replace(path)
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror or error}") from None


class Lines(ResultFile):
    """JSON Lines: file name, and its answer, its outputs, or the error."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._names = names
        self._spool: BinaryIO = (folder / "lines").open("w+b")
        self._found: dict[int, tuple[int, int]] = {}

    def add(self, index: int, outputs: Sequence[Tensor], answer: Mapping[str, Any] | None) -> None:
        if answer is not None:
            self._put(index, {"answer": answer})
        else:
            self._put(index, {"outputs": [as_document(tensor) for tensor in outputs]})

    def failed(self, index: int, error: str) -> None:
        self._put(index, {"error": error})

    def write(self, path: Path) -> None:
        with path.open("wb") as file:
            for index in range(len(self._names)):
                start, size = self._found[index]
                self._spool.seek(start)
                file.write(self._spool.read(size))

    def close(self) -> None:
        self._spool.close()

    def _put(self, index: int, document: dict[str, Any]) -> None:
        text = json.dumps({"file": self._names[index], **document}, ensure_ascii=False)
        # Half a character of a file name becomes its JSON escape.
        line = text.encode(errors="backslashreplace") + b"\n"
        start = self._spool.seek(0, 2)
        self._spool.write(line)
        self._found[index] = (start, len(line))


class Stack(ResultFile):
    """A `.npz`: each output stacked over the inputs, zeros where there is none, the names of the
    inputs, and the errors, empty where all is well."""

    def __init__(self, folder: Path, names: Sequence[str], rows: bool) -> None:
        self._folder = folder
        self._names = names
        self._rows = rows
        self._errors = [""] * len(names)
        self._columns: dict[str, _Column] = {}

    def add(self, index: int, outputs: Sequence[Tensor], answer: Mapping[str, Any] | None) -> None:
        rows = [(tensor.name, self._row(tensor)) for tensor in outputs]
        for name, row in rows:
            column = self._columns.get(name)
            if column is not None and column.shape != row.shape:
                raise CliError(
                    f"output '{name}' has shape {list(row.shape)}, but others have "
                    f"{list(column.shape)}: write a .jsonl file"
                )
        for name, row in rows:
            column = self._columns.get(name)
            if column is None:
                path = self._folder / f"{len(self._columns)}.npy"
                column = self._columns[name] = _Column(path, row, len(self._names))
            column.put(index, row)

    def failed(self, index: int, error: str) -> None:
        self._errors[index] = error

    def write(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, column in self._columns.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as target:
                    column.copy(target)
            for name, texts in ((FILES, self._names), (ERRORS, self._errors)):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as target:
                    np.lib.format.write_array(target, np.array(list(texts), dtype=np.str_))

    def close(self) -> None:
        for column in self._columns.values():
            column.close()

    def _row(self, tensor: Tensor) -> Array:
        """What an input adds to a column: its outputs without their batch dimension."""
        if not self._rows:
            return tensor.data
        if len(tensor.data) != 1:
            raise CliError(
                f"output '{tensor.name}' has {len(tensor.data)} rows, but a stack takes one of "
                "each input: write a .jsonl file, or split the input"
            )
        row: Array = tensor.data[0]
        return row


class _Column:
    """One output of all inputs, as a `.npy` file that is filled in any order."""

    def __init__(self, path: Path, row: Array, count: int) -> None:
        self.shape = row.shape
        self._file: BinaryIO = path.open("w+b")
        whole = {
            "descr": np.lib.format.dtype_to_descr(row.dtype),
            "fortran_order": False,
            "shape": (count, *row.shape),
        }
        np.lib.format.write_array_header_2_0(self._file, whole)
        self._start = self._file.tell()
        self._file.truncate(self._start + count * row.nbytes)

    def put(self, index: int, row: Array) -> None:
        self._file.seek(self._start + index * row.nbytes)
        self._file.write(row.tobytes())

    def copy(self, target: IO[bytes]) -> None:
        self._file.seek(0)
        shutil.copyfileobj(self._file, target, 1 << 20)

    def close(self) -> None:
        self._file.close()
