"""From what a library says when it fails to what an operator can do about it. Pure."""

from __future__ import annotations

import re

# What the dynamic linker says (dlerror(3), ld.so(8)). Of several libraries the last one counts:
# loaders try one after the other, and name the one that they could not do without last.
_UNOPENED = re.compile(
    r"(lib[\w.+-]*?\.so[\w.]*): cannot open shared object file(?:: (?P<why>[^\n:]*))?"
)
_FOREIGN = re.compile(
    r"(lib[\w.+-]*?\.so[\w.]*): (?:wrong ELF class|invalid ELF header|file too short)"
)
_UNDEFINED = re.compile(r"undefined symbol: ?([\w@.]+)")
_TOO_OLD = re.compile(r"version `(GLIBC(?:XX)?_[\d.]+|CXXABI_[\d.]+)' not found")

_CANN = "install CANN 8.x and source /usr/local/Ascend/ascend-toolkit/set_env.sh"
_JETPACK = "(on a Jetson: sudo apt install nvidia-jetpack)"
_CONTAINER = "(in a container: --runtime nvidia)"
_SMALLER = "use a smaller variant, or unload other models"

# Libraries by the beginning of their names, the first that matches counts. `n` is the version in
# the library's name where it is that of the package, too.
_LIBRARIES: tuple[tuple[re.Pattern[str], str], ...] = (
    # CANN's "ascend-toolkit" and "ascend-driver" folders, and its environment script.
    (re.compile(r"libascend_hal|libdrv(?:dsmi|hdc)|libdcmi"), "install the Ascend NPU driver"),
    (re.compile(r"libascendcl|libacl|libge_|libgraph|libopapi|libhccl|libascend"), _CANN),
    # The driver's libraries, which the NVIDIA container runtime brings in.
    (
        re.compile(r"libcuda\.so|libnvidia-|libnvrm|libnvos|libnvdla|libnvcu"),
        f"install the NVIDIA driver {_CONTAINER}",
    ),
    # ONNX Runtime's requirements for CUDA and TensorRT. Libraries of the CUDA toolkit that keep
    # numbers of their own (cuFFT, cuRAND, cuSOLVER, cuSPARSE) do not tell the toolkit's.
    (re.compile(r"libcudnn\w*\.so\.(?P<n>\d+)"), f"install cuDNN {{n}} {_JETPACK}"),
    (
        re.compile(r"lib(?:cudart|cublas(?:Lt)?|nvrtc|nvJitLink|cupti)\.so\.(?P<n>\d+)"),
        f"install CUDA {{n}} {_JETPACK}",
    ),
    (re.compile(r"libcufft\.so\.12"), f"install CUDA 13 {_JETPACK}"),
    (re.compile(r"libcufft\.so\.11"), f"install CUDA 12 {_JETPACK}"),
    (re.compile(r"libcu\w+\.so|libnvrtc|libnvJitLink"), f"install CUDA {_JETPACK}"),
    (
        re.compile(r"libnv(?:infer|onnxparser)\w*\.so\.(?P<n>\d+)"),
        f"install TensorRT {{n}} {_JETPACK}",
    ),
    # Qualcomm AI Engine Direct SDK, "Linux Setup"; FastRPC's user space.
    (re.compile(r"lib[acs]dsprpc"), "install the board's FastRPC libraries"),
    (
        re.compile(r"libQnnTFLite"),
        "install the TFLite delegate of Qualcomm AI Engine Direct (QNN) 2.x",
    ),
    (re.compile(r"libQnn|libqnn|libHtp"), "install Qualcomm AI Engine Direct (QNN) 2.x"),
    # Vendors' board support packages; libvndksupport is Android's.
    (re.compile(r"libOpenCL"), "install the GPU's OpenCL driver"),
    (re.compile(r"libvndksupport"), "use the driver for Linux, this one is for Android"),
    (
        re.compile(r"libtensorflowlite_gpu|libnnapi"),
        "install the delegate of this board's image",
    ),
)

# Texts of errors, the first that is found counts.
_TEXTS: tuple[tuple[re.Pattern[str], str], ...] = (
    # CUDA runtime API, cudaError: 35, 100, 209 and 2.
    (
        re.compile(r"driver version is insufficient", re.IGNORECASE),
        "the CUDA driver is older than the CUDA toolkit: update the driver",
    ),
    (
        re.compile(r"no CUDA-capable device", re.IGNORECASE),
        f"no NVIDIA GPU is visible: check nvidia-smi {_CONTAINER}, and that the agent's user is "
        "in the group video",
    ),
    (
        re.compile(r"no kernel image is available", re.IGNORECASE),
        "the runtime has no code for this GPU: install the build for this board",
    ),
    # Jetson's memory manager, where /dev/nvmap may not be opened.
    (
        re.compile(r"NvRmMemInit\w* failed"),
        "the GPU's memory may not be used: add the agent's user to the group video",
    ),
    (
        re.compile(r"out of memory|failed to allocate", re.IGNORECASE),
        f"not enough memory on the accelerator: {_SMALLER}",
    ),
    (
        re.compile(r"MemoryError|bad_alloc|cannot allocate memory", re.IGNORECASE),
        f"not enough memory: {_SMALLER}",
    ),
    # onnxruntime_pybind_state.cc, RegisterTensorRTPluginsAsCustomOps.
    (
        re.compile(r"Please install TensorRT libraries"),
        f"the TensorRT libraries are not found: install TensorRT 10 {_JETPACK}",
    ),
    # What QNN's simulator says without a soc_model.
    (
        re.compile(r"Failed to finalize QNN graph.*?code: 1002", re.DOTALL | re.IGNORECASE),
        "QNN cannot make code for this chip: set its option soc_model",
    ),
)


def explain(said: str) -> str | None:
    """What is missing and what mends it, as one sentence; None where nothing is recognised.

    `said` is what was written to standard error and then the error, the newest last.
    """
    unopened = list(_UNOPENED.finditer(said))
    if unopened:
        library, why = unopened[-1][1], unopened[-1]["why"]
        if why and "Permission denied" in why:
            return f"{library} may not be read: check its permissions and those of its folder"
        return f"{library} not found: {_remedy(library)}"
    foreign = _FOREIGN.search(said)
    if foreign:
        return f"{foreign[1]} is damaged or for another processor: install this board's"
    version = _TOO_OLD.search(said)
    if version:
        return f"{version[1]} not found: the system is older than the runtime, update it"
    for pattern, sentence in _TEXTS:
        if pattern.search(said):
            return sentence
    undefined = _UNDEFINED.search(said)
    if undefined:
        return (
            f"{undefined[1][:80]} is not in the driver's libraries: runtime and driver are of "
            "different versions, install those that belong together"
        )
    return None


def _remedy(library: str) -> str:
    for pattern, remedy in _LIBRARIES:
        match = pattern.match(library)
        if match:
            return remedy.format(**match.groupdict())
    return "install the package that has it"
