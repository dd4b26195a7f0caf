"""`shoal infer`: one request through the gateway, and its answer for people."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal_controlplane.cli import units
from shoal_controlplane.cli.asking import (
    DEFAULT_TIMEOUT_MS,
    ask,
    input_files,
    load_tensors,
    outputs,
)
from shoal_controlplane.cli.client import Client
from shoal_controlplane.cli.errors import CliError
from shoal_controlplane.cli.options import (
    DEFAULT_SERVER,
    Format,
    FormatOption,
    ServerOption,
    checked_name,
    model_reference,
)
from shoal_controlplane.cli.output import emit
from shoal_controlplane.cli.views import ModelVersion, read

if TYPE_CHECKING:
    from shoal_controlplane.models.answer import Answer
    from shoal_controlplane.models.card import ModelCard
    from shoal_shared.oip import InferReply, Tensor


class Priority(str, enum.Enum):
    """Whose requests go first where not all can be answered in time."""

    INTERACTIVE = "interactive"
    """Somebody waits for the answer."""
    STANDARD = "standard"
    """As requests that do not say."""
    BULK = "bulk"
    """It can wait for all others."""


PRIORITIES = {Priority.INTERACTIVE: 1, Priority.STANDARD: 2, Priority.BULK: 3}
"""As the request's parameter `priority`."""


@dataclass(frozen=True)
class Question:
    """What to send; `picture` is width and height of the picture it was made of."""

    inputs: list[Tensor]
    picture: tuple[int, int] | None = None


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("infer")(infer)


def infer(
    model: Annotated[str, typer.Argument(metavar="MODEL[:V]", help="By default the newest.")],
    image: Annotated[Path | None, typer.Option("--image", help="A picture.")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=@FILE.npy", help="An input tensor, repeatable."),
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="A text.")] = None,
    batch_dir: Annotated[
        Path | None,
        typer.Option(
            "--batch-dir",
            metavar="DIR",
            help="All pictures, .txt, .npy or .npz files of a folder, over the whole fleet.",
        ),
    ] = None,
    output_file: Annotated[
        Path | None,
        typer.Option(
            "--output-file",
            metavar="FILE",
            help="With --batch-dir: JSON Lines, or the outputs stacked if it ends in .npz; "
            "by default DIR-results.jsonl.",
        ),
    ] = None,
    timeout_ms: Annotated[
        int,
        typer.Option(
            "--timeout-ms", min=1, max=3_600_000, help="Answer each request within this time."
        ),
    ] = DEFAULT_TIMEOUT_MS,
    priority: Annotated[
        Priority | None,
        typer.Option(
            "--priority",
            help="Who goes first when the fleet is full; a folder is bulk, else standard.",
            show_choices=True,
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Save the outputs as .npy here.")
    ] = None,
    output: FormatOption = Format.TABLE,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Ask a model: a picture or a text as its card says, tensors as they are, or a folder."""
    if sum(given is not None for given in (image, text, inputs or None, batch_dir)) != 1:
        raise typer.BadParameter("give one of --image, --text, --input and --batch-dir.")
    if batch_dir is not None and save is not None:
        raise typer.BadParameter("--output goes with one request: name an --output-file.")
    if batch_dir is None and output_file is not None:
        raise typer.BadParameter("--output-file goes with --batch-dir.")
    files = input_files(inputs or [])
    # A folder is work that can wait for everybody else's.
    rank = priority or (Priority.BULK if batch_dir is not None else None)
    parameters = {} if rank is None else {"priority": PRIORITIES[rank]}
    name, wanted = model_reference(model)
    with Client(server) as client:
        version = _version(client, name, wanted)
        card = _card(version)
        if batch_dir is not None:
            from shoal_controlplane.cli.batchdir import run_folder

            def answer_of(tensors: list[Tensor]) -> InferReply:
                return ask(client, _path(version), tensors, timeout_ms, parameters)[0]

            run_folder(batch_dir, output_file, version, card, answer_of, output)
            return
        question = _question(version, card, image, text, files)
        reply, took_s = ask(client, _path(version), question.inputs, timeout_ms, parameters)
    answer = None
    if card is not None:
        answer = _answer(card, reply, question)
    _print(reply, answer, took_s, save, output)


def _version(client: Client, name: str, version: str | None) -> ModelVersion:
    """The version to ask: the one that is wanted, or the newest that is deployed."""
    path = f"/v2/models/{name}" + (f"/versions/{version}" if version else "")
    try:
        deployed = client.get(path)
    except CliError as error:
        raise CliError(f"{error}: see `shoal deployment list`") from None
    if version is None:
        known = deployed.get("versions") if isinstance(deployed, dict) else None
        if not isinstance(known, list) or not known:
            raise CliError(f"the gateway names no version of {name}: give one, as in {name}:1")
        version = checked_name(str(known[-1]))
    return read(ModelVersion, client.get(f"/api/v1/models/{name}/versions/{version}"))


def _card(version: ModelVersion) -> ModelCard | None:
    from shoal_controlplane.models.card import card_from_dict

    return None if version.card is None else card_from_dict(version.card)


def _question(
    version: ModelVersion,
    card: ModelCard | None,
    image: Path | None,
    text: str | None,
    files: dict[str, Path],
) -> Question:
    from shoal_controlplane.models.media import image_to_tensor, load_picture, text_to_tensor
    from shoal_shared.oip import Tensor
    from shoal_shared.tensors import datatype_of

    if files:
        return Question(load_tensors(version, files))
    if card is None:
        raise CliError(
            f"{version.name}:{version.version} has no model card that says how a picture or text "
            "becomes its input: give tensors with --input NAME=@FILE.npy"
        )
    picture = None
    if image is not None:
        loaded = load_picture(image)
        picture, arrays = loaded.size, image_to_tensor(card, loaded)
    else:
        arrays = text_to_tensor(card, text or "")
    return Question([Tensor(n, datatype_of(array), array) for n, array in arrays.items()], picture)


def _path(version: ModelVersion) -> str:
    return f"/v2/models/{version.name}/versions/{version.version}/infer"


def _answer(card: ModelCard, reply: InferReply, question: Question) -> Answer | None:
    """The outputs as the card reads them; None where a batch of more than one was sent."""
    from shoal_controlplane.cli.tensorfiles import by_name
    from shoal_controlplane.models.media import read_answer

    if any(tensor.data.shape[:1] not in ((), (1,)) for tensor in question.inputs):
        return None
    return read_answer(card, by_name(reply.outputs), question.picture)


def _print(
    reply: InferReply, answer: Answer | None, took_s: float, folder: Path | None, output: Format
) -> None:
    place = str(reply.parameters.get("device") or "a device")
    document: dict[str, Any] = {
        "model": reply.model_name,
        "version": reply.model_version,
        "device": place,
        "milliseconds": round(took_s * 1000, 3),
    }
    if target := str(reply.parameters.get("target") or ""):
        document["device"], document["target"] = None, target
        place = f"target {target}"
    if answer is not None:
        document["answer"] = asdict(answer)
    lines = outputs(reply.outputs, folder, document, answer.lines() if answer else None)
    lines.append(f"answered by {place} in {units.milliseconds(took_s * 1000)}")
    emit(output, document, lambda: lines)
