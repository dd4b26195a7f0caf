"""`shoal model quantize`: an int8 variant of a version, and what it costs in accuracy."""

from __future__ import annotations

import enum
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal_controlplane.cli import units
from shoal_controlplane.cli.client import Client
from shoal_controlplane.cli.errors import CliError
from shoal_controlplane.cli.modelfiles import download
from shoal_controlplane.cli.modelpath import VariantFile
from shoal_controlplane.cli.modelvariant import send_variant
from shoal_controlplane.cli.options import (
    DEFAULT_SERVER,
    Format,
    FormatOption,
    ServerOption,
    checked_name,
    model_reference,
)
from shoal_controlplane.cli.output import Block, Table, emit
from shoal_controlplane.cli.progress import note
from shoal_controlplane.cli.views import ModelVersion, read

if TYPE_CHECKING:
    from shoal_controlplane.cli.quantizeaccuracy import Comparison
    from shoal_controlplane.cli.quantizeinputs import Sample

MODELS = "/api/v1/models"
DEFAULT_LIMIT = 200
_STEPS = 4


class Activation(str, enum.Enum):
    """Type of the tensors between nodes."""

    UINT8 = "uint8"
    INT8 = "int8"
    UINT16 = "uint16"


class Weight(str, enum.Enum):
    """Type of the weights."""

    UINT8 = "uint8"
    INT8 = "int8"


@dataclass(frozen=True)
class Golden:
    """How the variant does on the version's golden cases."""

    passes: bool
    error: float
    absolute: float
    relative: float


def quantize_version(
    model: Annotated[str, typer.Argument(metavar="NAME[:V]", help="By default the newest.")],
    inputs: Annotated[
        Path | None,
        typer.Option(
            "--inputs",
            metavar="FILE.npz|FOLDER",
            help="Real inputs to calibrate with: arrays by the inputs' names, or a folder of such "
            "files and of pictures, which become inputs as the card says.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--as", metavar="VNAME", help="Its name, by default int8, or a16w8 with uint16."
        ),
    ] = None,
    activation: Annotated[
        Activation, typer.Option("--activation", help="Between nodes.", show_choices=True)
    ] = Activation.UINT8,
    weight: Annotated[
        Weight | None,
        typer.Option("--weight", help="By default uint8, or int8 where that is needed."),
    ] = None,
    per_channel: Annotated[
        bool,
        typer.Option(
            "--per-channel/--per-tensor", help="A scale for each channel of the weights, or one."
        ),
    ] = True,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=100_000, help="Use at most so many inputs.")
    ] = DEFAULT_LIMIT,
    output: FormatOption = Format.TABLE,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Make a quantised variant of an ONNX model on this machine, state the accuracy that it
    costs, and add it to the version. Of 8 inputs or more, a quarter is kept for the comparison."""
    from shoal_controlplane.cli.quantizeinputs import find_samples
    from shoal_controlplane.cli.reference import require_runtime

    wanted = model_reference(model)
    name = checked_name(name or ("a16w8" if activation is Activation.UINT16 else "int8"))
    if inputs is None:
        raise CliError(
            "quantising needs real inputs to calibrate with: give --inputs with a .npz file or a "
            "folder of pictures, some 20 to 200 as the model will see them"
        )
    signed = per_channel or activation is Activation.INT8
    weight = weight or (Weight.INT8 if signed else Weight.UINT8)
    require_runtime("onnx")
    with Client(server) as client, tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        version = _version(client, *wanted)
        if version.format != "onnx":
            raise CliError(
                f"{version.name}:{version.version} is {version.format}, and only ONNX models can "
                "be quantised here: do it when you convert it, and add it with "
                "`shoal model variant add`"
            )
        if any(variant.name == name for variant in version.variants):
            raise CliError(
                f"{version.name}:{version.version} has a variant '{name}' already: remove it "
                "with `shoal model variant remove`, or name another with --as"
            )
        samples = find_samples(inputs, version.signature, version.card, limit)
        reference, quantised = Path(folder) / "model.onnx", Path(folder) / f"{name}.onnx"
        what = f"{version.name}:{version.version}"
        download(client, version.digest, version.size_bytes, reference, what)
        comparison = _quantise(
            version, reference, quantised, samples, (activation, weight), per_channel
        )
        golden = _golden(client, version, quantised, Path(folder) / "golden")
        remark = (
            f"QDQ {activation.value}/{weight.value}, {len(samples)} inputs: {comparison.summary()}"
        )
        path = f"{MODELS}/{version.name}/versions/{version.version}"
        size = quantised.stat().st_size
        document = send_variant(client, path, VariantFile(name, quantised), remark)
    emit(output, document, lambda: _report(version, name, size, comparison, golden))
    if golden is not None and not golden.passes:
        note(_warning(golden, activation, per_channel))


def _version(client: Client, name: str, version: str | None) -> ModelVersion:
    if version is None:
        summary = client.get(f"{MODELS}/{name}")
        version = checked_name(str(summary.get("latest") if isinstance(summary, dict) else ""))
    return read(ModelVersion, client.get(f"{MODELS}/{name}/versions/{version}"))


def _quantise(
    version: ModelVersion,
    reference: Path,
    quantised: Path,
    samples: list[Sample],
    types: tuple[Activation, Weight],
    per_channel: bool,
) -> Comparison:
    """Make the file, and compare it with the reference."""
    from shoal_controlplane.cli.quantizeaccuracy import Comparison, ranked_outputs
    from shoal_controlplane.cli.quantizeinputs import hold_out
    from shoal_controlplane.cli.reference import ReferenceModel, quantize_model

    calibrating, comparing = hold_out(samples)
    activation, weight = types[0].value, types[1].value
    given = _told(f"calibrating with {len(calibrating)} inputs", calibrating)
    remark = quantize_model(reference, quantised, activation, weight, per_channel, given)
    if remark:
        note(remark)
    comparison = Comparison(ranked_outputs(version.signature, version.card))
    with ReferenceModel(reference, "onnx") as exact, ReferenceModel(quantised, "onnx") as rough:
        for inputs in _told(f"comparing on {len(comparing)} inputs", comparing):
            comparison.add(exact.run(inputs), rough.run(inputs))
    return comparison


def _golden(client: Client, version: ModelVersion, quantised: Path, file: Path) -> Golden | None:
    """The check that devices make before they serve a variant; None without golden cases."""
    from shoal_controlplane.cli.reference import ReferenceModel
    from shoal_shared.golden import GoldenError, agrees, decode

    known = version.golden
    if known is None:
        return None
    download(client, known.digest, known.size_bytes, file, "its golden cases")
    try:
        golden = decode(file.read_bytes())
    except GoldenError as broken:
        raise CliError(f"the golden cases of the version cannot be used: {broken}") from None
    passes, largest = True, 0.0
    with ReferenceModel(quantised, "onnx") as model:
        for case in golden.cases:
            fine, error = agrees(
                case.outputs, model.run(case.inputs), known.absolute, known.relative
            )
            passes, largest = passes and fine, max(largest, error)
    return Golden(passes, largest, known.absolute, known.relative)


def _told(what: str, samples: list[Sample]) -> Iterator[dict[str, Any]]:
    """The inputs one by one, with notes on how far it is."""
    note(what)
    told = 0
    for index, sample in enumerate(samples):
        yield sample()
        step = (index + 1) * _STEPS // len(samples)
        if step > told:
            told = step
            note(f"{what}: {units.percent(step / _STEPS)}")


def _report(
    version: ModelVersion, name: str, size: int, comparison: Comparison, golden: Golden | None
) -> Iterable[Block]:
    smaller = f"{units.size(version.size_bytes)} to {units.size(size)}"
    yield f"{version.name}:{version.version} has the variant {name} ({smaller})"
    yield Table(
        ("OUTPUT", "LARGEST DIFFERENCE", "OF THE RANGE", "MEAN", "RANGE"), comparison.rows()
    )
    if comparison.asked:
        yield comparison.top1()
    if golden is not None and golden.passes:
        yield f"it agrees with the golden outputs: largest difference {golden.error:.3g}"


def _warning(golden: Golden, activation: Activation, per_channel: bool) -> str:
    finer = [
        *(["--activation uint16"] if activation is not Activation.UINT16 else []),
        *(["--per-channel"] if not per_channel else []),
        "more inputs",
    ]
    return (
        f"Warning: devices will refuse this variant: on the golden inputs it is off by "
        f"{golden.error:.3g}, and the version allows {golden.absolute:g} + "
        f"{golden.relative * 100:g} % of the largest output. Try {', '.join(finer)}, or push the "
        "model as a new version with a higher tolerance in [golden] of its card."
    )
