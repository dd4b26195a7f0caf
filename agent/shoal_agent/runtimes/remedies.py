"""From what a library says when it fails to what an operator can do about it. Pure."""

from __future__ import annotations

import re

# What the dynamic linker says of a library that it does not find (dlerror(3)). ONNX Runtime cuts
# its log lines, so the last library that is named is the one to look for.
_MISSING = re.compile(r"(lib[\w.+-]*?\.so[\w.]*): cannot open shared object file")
_UNDEFINED = re.compile(r"(?:symbol lookup error|undefined symbol): ?([\w@.]+)")
_GLIBC = re.compile(r"version `(GLIBC(?:XX)?_[\d.]+)' not found")

_CANN = "install CANN 8.x and source its set_env.sh"
_JETPACK = "on a Jetson, sudo apt install nvidia-jetpack"

# Libraries by the beginning of their names: CANN's from its "ascend-toolkit" layout, CUDA's from
# the requirements of ONNX Runtime's CUDA and TensorRT providers, Qualcomm's from the AI Engine
# Direct SDK, Android's and OpenCL's from the vendors' board support packages.
_LIBRARIES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"libascendcl|libacl_|libge_|libopapi|libhccl|libascend"), _CANN),
    (re.compile(r"libcudnn\w*\.so\.(?P<n>\d+)"), f"install cuDNN {{n}}; {_JETPACK}"),
    (re.compile(r"libcufft\.so\.12"), f"install CUDA 13; {_JETPACK}"),
    (re.compile(r"libcufft\.so\.11"), f"install CUDA 12; {_JETPACK}"),
    (re.compile(r"libcu\w+\.so\.(?P<n>1[1-9])"), f"install CUDA {{n}}; {_JETPACK}"),
    (re.compile(r"libcu\w+\.so"), f"install CUDA; {_JETPACK}"),
    (
        re.compile(r"libnv(infer|onnxparser)\w*\.so\.(?P<n>\d+)"),
        f"install TensorRT {{n}}; {_JETPACK}",
    ),
    (re.compile(r"libnvdla|libnvos|libnvrm"), "start the container with --runtime nvidia"),
    (re.compile(r"libcdsprpc|libadsprpc"), "install the board's FastRPC libraries"),
    (re.compile(r"libQnn|libqnn"), "install Qualcomm AI Engine Direct (QNN) 2.x"),
    (re.compile(r"libOpenCL"), "install the GPU's OpenCL driver"),
    (re.compile(r"libtensorflowlite_gpu|libnnapi"), "install the delegate of this board's image"),
)

# Texts of errors, the first that is found counts.
_TEXTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"driver version is insufficient", re.IGNORECASE),
        "the CUDA driver is older than the CUDA toolkit: update the driver",
    ),
    (
        re.compile(r"no CUDA-capable device", re.IGNORECASE),
        "no NVIDIA GPU is visible: check nvidia-smi, and --runtime nvidia in a container",
    ),
    (
        re.compile(r"out of memory|failed to allocate|bad_alloc|ENOMEM|MemoryError", re.IGNORECASE),
        "not enough memory on the accelerator: use a smaller variant, or unload other models",
    ),
    (
        re.compile(r"Please install TensorRT libraries"),
        "the TensorRT libraries are not found: install TensorRT 10",
    ),
    (
        re.compile(r"Code: 1002"),
        "QNN cannot make code for this chip: set its option soc_model",
    ),
)


def explain(said: str) -> str | None:
    """What is missing and what mends it, as one sentence; None where nothing is recognised.

    `said` is the error and what was written to standard error, the newest last.
    """
    missing = _MISSING.findall(said)
    if missing:
        library = missing[-1]
        return f"{library} not found: {_remedy(library)}"
    version = _GLIBC.search(said)
    if version:
        return f"{version[1]} not found: the system is older than the runtime, update it"
    for pattern, sentence in _TEXTS:
        if pattern.search(said):
            return sentence
    undefined = _UNDEFINED.search(said)
    if undefined:
        return (
            f"{undefined[1][:80]} is not in the driver's libraries: runtime and driver are of "
            "different versions"
        )
    return None


def _remedy(library: str) -> str:
    for pattern, remedy in _LIBRARIES:
        match = pattern.match(library)
        if match:
            return remedy.format(**match.groupdict())
    return "install the package that has it"
