"""What Jetson Linux (L4T) says of itself: releases, toolkits and the power mode."""

from __future__ import annotations

import re
from pathlib import Path

from shoal_agent.boards.sysfs import Sysfs

_RELEASE = re.compile(r"# R(\d{1,3}) \(release\), REVISION: (\d{1,3}(?:\.\d{1,3}){1,2})\b")
_STARTED = re.compile(r"# R\d")
_VERSION = re.compile(r"\d{1,6}(?:\.\d{1,9}){1,4}")
_MODE = re.compile(r"^pmode:\s*(\d{1,5})", re.MULTILINE)
_MODE_NAME = re.compile(r"<\s*POWER_MODEL\s+ID=(\d{1,5})\s+NAME=(\w{1,40})\s*>")

_DPKG_STATUS = "var/lib/dpkg/status"
_MAX_STATUS_BYTES = 32 << 20
_PACKAGES = {
    "nvidia-jetpack": re.compile(rb"Package: nvidia-jetpack\n"),
    "nvidia-l4t-core": re.compile(rb"Package: nvidia-l4t-core\n"),
    "tensorrt": re.compile(rb"Package: libnvinfer\d+\n"),
    "cudnn": re.compile(rb"Package: libcudnn\d+(?:-cuda-\d+)?\n"),
}
_INCLUDES = ("usr/include/aarch64-linux-gnu", "usr/include")

# Of NVIDIA's archive of JetPack releases, as the jetson-stats project keeps it.
_JETPACK = {
    "28.1.0": "3.1",
    "28.2.0": "3.2",
    "31.0.1": "4.0",
    "31.0.2": "4.1",
    "31.1.0": "4.1.1",
    "32.1.0": "4.2",
    "32.2.0": "4.2.1",
    "32.2.1": "4.2.2",
    "32.2.3": "4.2.3",
    "32.3.1": "4.3",
    "32.4.3": "4.4",
    "32.4.4": "4.4.1",
    "32.5.0": "4.5",
    "32.5.1": "4.5.1",
    "32.5.2": "4.5.1",
    "32.6.1": "4.6",
    "32.7.1": "4.6.1",
    "32.7.2": "4.6.2",
    "32.7.3": "4.6.3",
    "32.7.4": "4.6.4",
    "32.7.5": "4.6.5",
    "32.7.6": "4.6.6",
    "35.1.0": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6.0": "5.1.4",
    "35.6.1": "5.1.5",
    "35.6.2": "5.1.5",
    "35.6.3": "5.1.5",
    "35.6.4": "5.1.6",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.2": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "38.2.0": "7.0",
    "38.2.1": "7.0",
    "38.2.2": "7.0",
    "38.4.0": "7.1",
    "39.2.0": "7.2",
}


def is_l4t(files: Sysfs) -> bool:
    """Whether `/etc/nv_tegra_release` begins as NVIDIA writes it."""
    return _STARTED.match(files.text("etc/nv_tegra_release")) is not None


def toolkits(files: Sysfs) -> dict[str, str]:
    """Versions of "l4t", "jetpack", "cuda", "tensorrt" and "cudnn", of those that are there."""
    packages = _packages(files.root / _DPKG_STATUS)
    l4t = _l4t(files) or packages.get("nvidia-l4t-core", "")
    found = {
        "l4t": l4t,
        "jetpack": packages.get("nvidia-jetpack", "") or _JETPACK.get(l4t, ""),
        "cuda": _cuda(files),
        "tensorrt": packages.get("tensorrt", "")
        or _header(files, "NvInferVersion.h", r"(?:NV_TENSORRT|TRT)", "PATCH"),
        "cudnn": packages.get("cudnn", "")
        or _header(files, "cudnn_version.h", "CUDNN", "PATCHLEVEL"),
    }
    return {name: version for name, version in found.items() if version}


def power_mode(files: Sysfs) -> str:
    """The name of nvpmodel's mode, as "MAXN" or "15W"; "mode 2" where it has no name."""
    mode = _MODE.search(files.text("var/lib/nvpmodel/status"))
    if mode is None:
        return ""
    number = int(mode[1])
    for identifier, name in _MODE_NAME.findall(files.text("etc/nvpmodel.conf")):
        if int(identifier) == number:
            return str(name)
    return f"mode {number}"


def _l4t(files: Sysfs) -> str:
    """ "36.3.0" from "# R36 (release), REVISION: 3.0, GCID: …"."""
    release = _RELEASE.match(files.text("etc/nv_tegra_release"))
    return f"{release[1]}.{release[2]}" if release else ""


def _cuda(files: Sysfs) -> str:
    """ "12.6": from version 11 on of `version.json`, before of `version.txt`."""
    for pattern in ("usr/local/cuda", "usr/local/cuda-*"):
        for folder in reversed(files.glob(pattern)):
            for name, mark in (
                ("version.json", r'"cuda"\s*:\s*\{[^}]*"version"'),
                ("version.txt", "CUDA Version"),
            ):
                text = files.text(str((folder / name).relative_to(files.root)))
                version = re.search(mark + r'[\s:"]*(\d{1,3}\.\d{1,3})', text)
                if version:
                    return version[1]
    return ""


def _header(files: Sysfs, name: str, prefix: str, patch: str) -> str:
    for folder in _INCLUDES:
        text = files.text(f"{folder}/{name}")
        parts = [
            re.search(rf"#define {prefix}_{part}\w* (\d{{1,4}})\b", text)
            for part in ("MAJOR", "MINOR", patch)
        ]
        numbers = [part[1] for part in parts if part]
        if len(numbers) == len(parts):
            return ".".join(numbers)
    return ""


def _packages(status: Path) -> dict[str, str]:
    """Versions of the installed packages of `_PACKAGES`, without Debian's own revision."""
    try:
        with status.open("rb") as file:
            data = file.read(_MAX_STATUS_BYTES)
    except OSError:
        return {}
    found: dict[str, str] = {}
    for name, title in _PACKAGES.items():
        for begin in title.finditer(data):
            if begin.start() and data[begin.start() - 1 : begin.start()] != b"\n":
                continue
            end = data.find(b"\n\n", begin.end())
            fields = data[begin.end() : end if end >= 0 else None].decode(errors="replace")
            version = re.search(rf"^Version: ({_VERSION.pattern})", fields, re.MULTILINE)
            installed = re.search(r"^Status: install ok installed$", fields, re.MULTILINE)
            if version and installed:
                found[name] = version[1]
    return found
