from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.runtimes.remedies import explain

# As onnxruntime-cann 1.24.4 and onnxruntime-gpu 1.31.1 wrote it where their toolkits are missing.
CANN = """\
\x1b[1;31m2026-11-24 12:17:52.427762931 [E:onnxruntime:Default, provider_bridge_ort.cc:2387 \
TryGetProviderInfo_CANN] /root/Ascend-CI/onnxruntime/core/session/provider_bridge_ort.cc:1952 \
onnxruntime::Provider& onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed \
to load library /site-packages/onnxruntime/capi/libonnxruntime_providers_cann.so with error: \
libascendcl.so: cannot open shared object file: No such file or directory
\x1b[m
create CANN ExecutionProvider fail"""
CUDA = """\
[E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] FAIL : Failed to load library \
/capi/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object \
file: No such file or directory
[W:onnxruntime:Default] Failed to create CUDAExecutionProvider. Require cuDNN 9.* and CUDA 13.*.
CUDAExecutionProvider could not be used"""
TENSORRT = """\
Failed to load library /capi/libonnxruntime_providers_tensorrt.so with error: libcublas.so.13: \
cannot open shared object file: No such file or directory
Please install TensorRT libraries as mentioned in the GPU requirements page"""

JETPACK = "(on a Jetson: sudo apt install nvidia-jetpack)"
CANN_REMEDY = "install CANN 8.x and source /usr/local/Ascend/ascend-toolkit/set_env.sh"


def missing(library: str) -> str:
    return f"{library}: cannot open shared object file: No such file or directory"


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (CANN, f"libascendcl.so not found: {CANN_REMEDY}"),
        (CUDA, f"libcublasLt.so.13 not found: install CUDA 13 {JETPACK}"),
        (TENSORRT, f"libcublas.so.13 not found: install CUDA 13 {JETPACK}"),
    ],
)
def test_what_runtimes_say_without_their_toolkits(said: str, sentence: str) -> None:
    assert explain(said) == sentence


@pytest.mark.parametrize(
    ("library", "remedy"),
    [
        ("libge_runner.so", CANN_REMEDY),
        ("libascend_hal.so", "install the Ascend NPU driver"),
        ("libcuda.so.1", "install the NVIDIA driver (in a container: --runtime nvidia)"),
        ("libnvidia-ml.so.1", "install the NVIDIA driver (in a container: --runtime nvidia)"),
        ("libcudnn.so.9", f"install cuDNN 9 {JETPACK}"),
        ("libcudnn_graph.so.9", f"install cuDNN 9 {JETPACK}"),
        ("libcudart.so.12", f"install CUDA 12 {JETPACK}"),
        ("libcufft.so.12", f"install CUDA 13 {JETPACK}"),
        ("libcufft.so.11", f"install CUDA 12 {JETPACK}"),
        # CUDA 12 and 13 both have this one.
        ("libcurand.so.10", f"install CUDA {JETPACK}"),
        ("libnvinfer.so.10", f"install TensorRT 10 {JETPACK}"),
        ("libnvinfer_plugin.so.10", f"install TensorRT 10 {JETPACK}"),
        ("libnvonnxparser.so.10", f"install TensorRT 10 {JETPACK}"),
        ("libQnnHtp.so", "install Qualcomm AI Engine Direct (QNN) 2.x"),
        ("libQnnHtpV73Stub.so", "install Qualcomm AI Engine Direct (QNN) 2.x"),
        (
            "libQnnTFLiteDelegate.so",
            "install the TFLite delegate of Qualcomm AI Engine Direct (QNN) 2.x",
        ),
        ("libcdsprpc.so", "install the board's FastRPC libraries"),
        ("libOpenCL.so.1", "install the GPU's OpenCL driver"),
        ("libvndksupport.so", "use the driver for Linux, this one is for Android"),
        ("libtensorflowlite_gpu_delegate.so", "install the delegate of this board's image"),
        ("libnobody-knows+it.so.7.1", "install the package that has it"),
    ],
)
def test_a_missing_library_is_named_with_its_remedy(library: str, remedy: str) -> None:
    assert explain(missing(library)) == f"{library} not found: {remedy}"
    assert explain(f"x\n{missing('/opt/lib/' + library)}\ny") == f"{library} not found: {remedy}"


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
            "the CUDA driver is older than the CUDA toolkit: update the driver",
        ),
        ("CUDA failure 100: no CUDA-capable device is detected ; GPU=0", "no NVIDIA GPU is"),
        ("CUDA error 209: no kernel image is available for execution", "no code for this GPU"),
        ("NvRmMemInitNvmap failed with Permission denied", "group video"),
        ("cudaErrorMemoryAllocation: out of memory", "not enough memory on the accelerator: use"),
        ("BFCArena: Failed to allocate memory for 4096", "not enough memory on the accelerator"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "not enough memory:"),
        ("MemoryError: there is not enough memory", "not enough memory: use a smaller variant"),
        ("Please install TensorRT libraries as mentioned", "install TensorRT 10"),
        (
            "Failed to finalize QNN graph. Error code: 1002 at location x\n... Code: 1002",
            "QNN cannot make code for this chip: set its option soc_model",
        ),
        (
            "/lib/aarch64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by /x.so)",
            "GLIBC_2.38 not found: the system is older than the runtime, update it",
        ),
        (
            "libstdc++.so.6: version `GLIBCXX_3.4.32' not found",
            "GLIBCXX_3.4.32 not found: the system is older than the runtime, update it",
        ),
        (
            "symbol lookup error: /x/libcann.so: undefined symbol: aclrtGetVersion_v2",
            "aclrtGetVersion_v2 is not in the driver's libraries",
        ),
        (
            "/opt/libQnnHtp.so: wrong ELF class: ELFCLASS32",
            "libQnnHtp.so is damaged or for another processor",
        ),
        (
            "libascendcl.so: cannot open shared object file: Permission denied",
            "libascendcl.so may not be read: check its permissions",
        ),
    ],
)
def test_errors_are_told_in_plain_words(said: str, sentence: str) -> None:
    assert sentence in (explain(f"noise\n{said}\nmore noise") or "")


def test_the_last_of_several_missing_libraries_counts() -> None:
    said = f"{missing('libcdsprpc.so')}\n{missing('libascendcl.so')}"
    assert (explain(said) or "").startswith("libascendcl.so not found")


@pytest.mark.parametrize(
    "said", ["", "all is well", "Segmentation fault", "the model file is damaged", "libQnnHtp.so"]
)
def test_nothing_is_made_up(said: str) -> None:
    assert explain(said) is None


@given(st.text(max_size=300), st.sampled_from([CANN, CUDA, "undefined symbol: f", ""]))
def test_it_is_one_sentence_whatever_is_said(noise: str, said: str) -> None:
    found = explain(noise + said)
    assert found is None or ("\n" not in found and len(found) < 400)


@given(st.from_regex(r"lib[a-z0-9_]{1,30}\.so(\.[0-9]{1,3})?", fullmatch=True))
def test_every_missing_library_has_a_remedy(library: str) -> None:
    found = explain(missing(library))
    assert found is not None
    assert found.startswith(f"{library} not found: ")
    assert "{" not in found
