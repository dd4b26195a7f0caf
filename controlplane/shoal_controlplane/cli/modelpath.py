"""What `shoal model push PATH` finds at its path: a file, a folder with a card, or a folder as
Triton's model repository holds it.

Label files and cards come with the model, maybe from strangers: only files inside the model's
own folder are read, never through a link.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import typer

from shoal_controlplane.cli.errors import CliError

SUFFIXES: Final = (".onnx", ".tflite")
CONFIG_FILE: Final = "config.pbtxt"
CARD_FILE: Final = "shoal.toml"
VARIANTS: Final = "variants"
"""Folder of more files of the model, each `NAME.onnx`, or `NAME@TARGET.onnx` if compiled."""
MAX_CONFIG_BYTES: Final = 256 * 1024
MAX_LABEL_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True)
class VariantFile:
    """One more file of a model; `target` is the chip it was compiled for, empty for any."""

    name: str
    file: Path
    target: str = ""


@dataclass(frozen=True)
class Found:
    """A model file with what lies beside it. `version` is None where the path gives none;
    `card`, `config` and `labels` as `POST /api/v1/models` takes them. `golden` is the file that
    the card names for golden inputs."""

    file: Path
    version: str | None = None
    card: dict[str, Any] | None = None
    config: str | None = None
    labels: dict[str, list[str]] = field(default_factory=dict)
    variants: tuple[VariantFile, ...] = ()
    golden: Path | None = None


def find_models(path: Path, version: str | None = None) -> list[Found]:
    """The versions at `path`, oldest first; only `version` if that is given.

    Raises `CliError` where there is no model, more than one, or something beside it is wrong.
    """
    if path.is_dir():
        numbered = sorted(
            (child for child in path.iterdir() if child.is_dir() and child.name.isdecimal()),
            key=lambda child: int(child.name),
        )
        if numbered or (path / CONFIG_FILE).is_file():
            return _repository(path, numbered, version)
        file = _only_model(path)
        card = _card(path, file)
        golden = _golden(path, card)
        return [Found(file, version, card, variants=_variants(path), golden=golden)]
    if not path.exists():
        raise CliError(f"there is nothing at {path}: give a model file or its folder")
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        raise CliError(f"{path} is no model: give an .onnx or .tflite file, or a model's folder")
    # A card belongs to the model it lies beside, if there is no doubt which that is.
    alone = len(_models(path.parent)) == 1
    card = _card(path.parent, path) if alone else None
    return [Found(path, version, card, golden=_golden(path.parent, card))]


def variant_file(text: str) -> VariantFile:
    """`NAME=FILE`, or `NAME=FILE@TARGET` for a compiled one. `CliError` if there is no file."""
    name, sign, rest = text.partition("=")
    if not (name and sign and rest):
        raise typer.BadParameter(f"{text[:80]!r} is not of the form NAME=FILE or NAME=FILE@TARGET.")
    file, target = Path(rest), ""
    if not file.is_file() and "@" in rest:
        before, _, target = rest.rpartition("@")
        file = Path(before)
    return VariantFile(name, checked_file(file), target)


def checked_file(file: Path) -> Path:
    """A model's file that is there. Raises `CliError`."""
    if file.suffix.lower() not in SUFFIXES or not file.is_file():
        raise CliError(f"{file} is no model: give an .onnx or .tflite file")
    return file


def _repository(folder: Path, numbered: list[Path], version: str | None) -> list[Found]:
    if not numbered:
        raise CliError(f"{folder} has a {CONFIG_FILE}, but no numbered folder of a version")
    chosen = [child for child in numbered if version in (None, child.name)]
    if not chosen:
        names = ", ".join(child.name for child in numbered)
        raise CliError(f"{folder} has no version {version}, only {names}")
    config, labels = _config(folder)
    found = []
    for child in chosen:
        file = _only_model(child)
        card, variants = _card(folder, file), _variants(child)
        golden = _golden(folder, card)
        found.append(Found(file, child.name, card, config, labels, variants, golden))
    return found


def _models(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.suffix.lower() in SUFFIXES)


def _only_model(folder: Path) -> Path:
    models = _models(folder)
    preferred = [model for model in models if model.stem == "model"] or models
    if len(preferred) != 1:
        what = "several models" if preferred else "no model"
        raise CliError(f"{folder} holds {what}: it needs one .onnx or .tflite file")
    if not preferred[0].is_file():
        raise CliError(f"{preferred[0]} is not a file: only models in one file can be pushed")
    return preferred[0]


def _variants(folder: Path) -> tuple[VariantFile, ...]:
    """What lies in the folder's `variants`."""
    if not (folder / VARIANTS).is_dir():
        return ()
    files = [checked_file(file) for file in _models(folder / VARIANTS)]
    parts = [(file, *file.stem.partition("@")) for file in files]
    return tuple(VariantFile(name, file, target) for file, name, _, target in parts)


def _golden(folder: Path, card: dict[str, Any] | None) -> Path | None:
    """The file of golden inputs that a card names; a card may come from strangers."""
    name = card.get("golden", {}).get("inputs") if card is not None else None
    if name is None:
        return None
    file = folder / str(name)
    if file.is_symlink() or not file.is_file():
        raise CliError(f"{CARD_FILE} names golden inputs in {file}, which is no file")
    return file


def _config(folder: Path) -> tuple[str | None, dict[str, list[str]]]:
    """Text of the folder's `config.pbtxt`, and the label files that it names, by output."""
    from shoal_controlplane.models.triton import parse_config

    if not (folder / CONFIG_FILE).exists():
        return None, {}
    text = _text(folder, CONFIG_FILE, MAX_CONFIG_BYTES)
    outputs = parse_config(text).outputs
    return text, {
        output.name: _text(folder, output.label_file, MAX_LABEL_BYTES).rstrip("\n").splitlines()
        for output in outputs
        if output.label_file
    }


def _text(folder: Path, name: str, limit: int) -> str:
    from shoal_controlplane.models.cardfields import read_bounded

    if name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise CliError(f"{CONFIG_FILE} names the file {name[:80]!r}, which is not in {folder}")
    try:
        return read_bounded(folder / name, limit).decode()
    except UnicodeDecodeError:
        raise CliError(f"{folder / name} is not UTF-8 text") from None


def _card(folder: Path, model: Path) -> dict[str, Any] | None:
    """The folder's card with its labels, None if it has none. Raises `CardError`."""
    from shoal_controlplane.models.card import card_to_dict, load_card

    if not (folder / CARD_FILE).exists():
        return None
    return card_to_dict(load_card(folder, _metadata(model)))


def _metadata(model: Path) -> dict[str, str]:
    """The metadata of an ONNX file, from which a card may take its labels."""
    if model.suffix.lower() != ".onnx":
        return {}
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load_model(str(model), load_external_data=False)
    except (DecodeError, OSError):
        raise CliError(f"{model} is not an ONNX model, or it is truncated") from None
    return {entry.key: entry.value for entry in proto.metadata_props}
