"""Build the demonstration's models, each a folder with a model file and its card `shoal.toml`.

`python -m shoal_simulators.demo.models [OUT]` downloads what is missing, builds all of them and
prints one line a model. The same inputs give the same bytes, so each model keeps its digest.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from PIL import Image

from shoal_simulators.demo import assets
from shoal_simulators.demo.assets import AssetError, asset_path, write_atomically
from shoal_simulators.demo.checkpoint import CheckpointError, read_checkpoint
from shoal_simulators.demo.efficientnet import build_efficientnet_lite0

_LINE_BOX = (0, 46, 384, 70)
LINE_TEXT = "Let us first determine markers of the coins and the"
COFFEE_LABEL = "espresso"

_EFFICIENTNET_CARD = """\
[model]
name = "efficientnet-lite0"
description = "What is in the picture: one of the 1000 ImageNet classes"
licence = "Apache-2.0"
tolerance = 0.01

[input]
kind = "image"
tensor = "image"
layout = "NCHW"
size = [224, 224]
resize = "center-crop"
color = "RGB"
mean = 127.0
scale = 0.0078125

[output]
kind = "labels"
tensor = "prob"
labels_file = "labels.txt"
top_k = 5
"""

_DETECTOR_CARD = """\
[model]
name = "ppocr-det"
description = "Where text stands in the picture (PP-OCRv4 mobile)"
licence = "Apache-2.0"
tolerance = 0.01

[input]
kind = "image"
tensor = "x"
layout = "NCHW"
size = [640, 640]
resize = "multiple-of"
multiple = 32
color = "BGR"
mean = 127.5
scale = 0.00784313725490196

[output]
kind = "heatmap-boxes"
tensor = "sigmoid_0.tmp_0"
labels = ["text"]
threshold = 0.3
box_threshold = 0.5
unclip = 1.6
"""

_RECOGNISER_CARD = """\
[model]
name = "ppocr-rec"
description = "Which text stands in the picture of one line (PP-OCRv4 mobile, Chinese and English)"
licence = "Apache-2.0"
tolerance = 0.01

[input]
kind = "image"
tensor = "x"
layout = "NCHW"
size = [48, 320]
resize = "fit-height"
multiple = 32
color = "BGR"
mean = 127.5
scale = 0.00784313725490196

[output]
kind = "ctc"
tensor = "softmax_11.tmp_0"
labels_metadata = "character"
append_space = true
"""

_FACE_CARD = """\
[model]
name = "face-detection"
description = "Where faces are in the picture (MediaPipe BlazeFace, short range)"
licence = "Apache-2.0"
tolerance = 0.01

[input]
kind = "image"
tensor = "input"
layout = "NHWC"
size = [128, 128]
resize = "pad"
color = "RGB"
mean = 127.5
scale = 0.00784313725490196

[output]
kind = "anchor-boxes"
boxes = "regressors"
scores = "classificators"
labels = ["face"]
strides = [8, 16, 16, 16]
score_threshold = 0.5
iou_threshold = 0.3
"""


@dataclass(frozen=True)
class DemoModel:
    """A model ready for `shoal model push`: `path` is the folder, `file` the model within it."""

    name: str
    path: Path
    file: Path


@dataclass(frozen=True)
class DemoPictures:
    """The demonstration's pictures: a cup of espresso, a scanned page, a line cut from that page
    (it reads LINE_TEXT), and a portrait with one face."""

    coffee: Path
    page: Path
    line: Path
    astronaut: Path


def build_demo_models(cache: Path, out: Path) -> list[DemoModel]:
    """Build the four models into folders below `out`; files already right are left alone.

    Downloads into `cache` what is missing there. Raises AssetError in one sentence.
    """
    assets.fetch_assets(cache)
    recipes: dict[str, Callable[[Path], dict[str, bytes]]] = {
        "efficientnet-lite0": _efficientnet,
        "ppocr-det": _text_detector,
        "ppocr-rec": _text_recogniser,
        "face-detection": _face_detector,
    }
    built: list[DemoModel] = []
    try:
        for name, recipe in recipes.items():
            files = recipe(cache)
            for file, data in files.items():
                _write_if_changed(out / name / file, data)
            built.append(DemoModel(name, out / name, out / name / next(iter(files))))
    except (OSError, CheckpointError) as error:
        raise AssetError(f"The demo models cannot be built in {out}: {error}") from error
    return built


def demo_pictures(cache: Path) -> DemoPictures:
    """The demonstration's pictures inside `cache`, downloaded and cut if they are missing.

    Raises AssetError in one sentence.
    """
    assets.fetch_assets(cache, (assets.COFFEE, assets.PAGE, assets.ASTRONAUT))
    line = cache / "pictures" / "line.png"
    try:
        with Image.open(asset_path(cache, assets.PAGE)) as page:
            cut = page.convert("L").crop(_LINE_BOX)
        data = io.BytesIO()
        cut.save(data, format="PNG", compress_level=0)  # stored: no compressor can differ
        _write_if_changed(line, data.getvalue())
    except OSError as error:
        raise AssetError(f"The demo picture {line} cannot be made: {error}") from error
    return DemoPictures(
        coffee=asset_path(cache, assets.COFFEE),
        page=asset_path(cache, assets.PAGE),
        line=line,
        astronaut=asset_path(cache, assets.ASTRONAUT),
    )


def _efficientnet(cache: Path) -> dict[str, bytes]:
    weights = read_checkpoint(asset_path(cache, assets.EFFICIENTNET_WEIGHTS))
    return {
        "model.onnx": _serialised(build_efficientnet_lite0(weights)),
        "labels.txt": _imagenet_labels(cache).encode(),
        "shoal.toml": _EFFICIENTNET_CARD.encode(),
    }


def _imagenet_labels(cache: Path) -> str:
    """One label a class in the order of the model's output: the first lemma of its synset, with
    the synset where two classes share that word (crane: the bird, the machine)."""
    synsets = asset_path(cache, assets.IMAGENET_SYNSETS).read_text("utf-8").split()
    lemmas: dict[str, str] = {}
    for row in asset_path(cache, assets.IMAGENET_LEMMAS).read_text("utf-8").splitlines():
        synset, _, names = row.partition("\t")
        lemmas[synset] = names.split(",")[0].strip()
    counts = Counter(lemmas[synset] for synset in synsets)
    labels = (
        lemmas[synset] if counts[lemmas[synset]] == 1 else f"{lemmas[synset]} ({synset})"
        for synset in synsets
    )
    return "".join(f"{label}\n" for label in labels)


def _text_detector(cache: Path) -> dict[str, bytes]:
    model = onnx.load_model(asset_path(cache, assets.TEXT_DETECTOR))
    _name_dimensions(model, inputs=("N", 3, "H", "W"), outputs=("N", 1, "H", "W"))
    return {"model.onnx": _serialised(model), "shoal.toml": _DETECTOR_CARD.encode()}


def _text_recogniser(cache: Path) -> dict[str, bytes]:
    model = onnx.load_model(asset_path(cache, assets.TEXT_RECOGNISER))
    _name_dimensions(model, inputs=("N", 3, 48, "W"), outputs=("N", "T", 6625))
    return {"model.onnx": _serialised(model), "shoal.toml": _RECOGNISER_CARD.encode()}


def _face_detector(cache: Path) -> dict[str, bytes]:
    model = asset_path(cache, assets.FACE_DETECTOR).read_bytes()
    return {"model.tflite": model, "shoal.toml": _FACE_CARD.encode()}


def _name_dimensions(
    model: onnx.ModelProto, inputs: Sequence[str | int], outputs: Sequence[str | int]
) -> None:
    """Write the true shapes into the signature: the converter left '?' and numbered names, and
    a height that the network fixes was declared free, so that wrong inputs failed deep inside."""
    for value, shape in ((model.graph.input[0], inputs), (model.graph.output[0], outputs)):
        for dimension, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            # One of a oneof: setting either clears the other.
            if isinstance(size, int):
                dimension.dim_value = size
            else:
                dimension.dim_param = size


def _serialised(model: onnx.ModelProto) -> bytes:
    data: bytes = model.SerializeToString(deterministic=True)  # type: ignore[no-untyped-call]
    return data


def _write_if_changed(path: Path, data: bytes) -> None:
    if not path.is_file() or path.read_bytes() != data:
        write_atomically(path, data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m shoal_simulators.demo.models", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("out", nargs="?", type=Path, help="folder for the models (in the cache)")
    parser.add_argument("--cache", type=Path, default=assets.default_cache())
    options = parser.parse_args(arguments)
    try:
        for model in build_demo_models(options.cache, options.out or options.cache / "models"):
            data = model.file.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            print(f"{model.name}  {len(data) / 1e6:.1f} MB  sha256:{digest}  {model.path}")
        demo_pictures(options.cache)
    except AssetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
