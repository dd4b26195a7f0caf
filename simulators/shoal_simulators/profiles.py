"""Published speed of real boards, for virtual ones to be paced to.

Speed is given as t(b) = a + c*b milliseconds for ResNet-50 (4.09e9 multiply-accumulates an
image). Where a source measured another network, c is scaled by multiply-accumulates.

Sources: MLPerf Inference edge results (Jetson AGX Orin, Orin NX, AGX Xavier: single stream and
offline); Qualcomm AI Hub `perf.yaml` (Snapdragon, QCS); Huawei ModelZoo-PyTorch (Ascend:
MobileNetV1 on the 310, ResNet-50 at batch 64 on the 310P3); NVIDIA's benchmarks of Jetson Nano
(ResNet-50, 36 frames/s) and Ultralytics' of Orin Nano (YOLOv8n INT8, 3.49 ms).
"""

from __future__ import annotations

from dataclasses import dataclass

RESNET50_MACS = 4.09e9
_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class BoardProfile:
    """A board as its data sheet and benchmarks describe it. Memory in bytes."""

    family: str
    model: str
    soc: str
    cores: int
    memory_bytes: int
    accelerator: str
    intercept_ms: float
    slope_ms: float

    def milliseconds(self, batch: int, macs: float) -> float:
        """Time for a batch of a network with `macs` multiply-accumulates an item, in ms."""
        return self.intercept_ms + self.slope_ms * batch * macs / RESNET50_MACS


def _jetson(model: str, soc: str, cores: int, gib: int, a: float, c: float) -> BoardProfile:
    return BoardProfile("jetson", model, soc, cores, gib * _GIB, "gpu", a, c)


def _ascend(model: str, soc: str, cores: int, gib: int, a: float, c: float) -> BoardProfile:
    return BoardProfile("ascend", model, soc, cores, gib * _GIB, "npu", a, c)


def _snapdragon(model: str, soc: str, gib: int, c: float) -> BoardProfile:
    return BoardProfile("snapdragon", model, soc, 8, gib * _GIB, "npu", 0.1, c)


PROFILES: dict[str, BoardProfile] = {
    "jetson-nano": _jetson("Jetson Nano", "Tegra X1", 4, 4, 1.0, 26.8),
    "jetson-orin-nano": _jetson("Jetson Orin Nano", "Tegra Orin", 6, 8, 0.7, 2.6),
    "jetson-orin-nx": _jetson("Jetson Orin NX", "Tegra Orin", 8, 16, 0.70, 0.379),
    "jetson-agx-orin": _jetson("Jetson AGX Orin", "Tegra Orin", 12, 64, 0.48, 0.156),
    "jetson-agx-xavier": _jetson("Jetson AGX Xavier", "Tegra Xavier", 8, 32, 1.56, 0.463),
    "ascend-310": _ascend("Atlas 200 DK", "Ascend 310", 8, 8, 0.525, 3.76),
    "ascend-310p3": _ascend("Atlas 300I Pro", "Ascend 310P3", 8, 21, 0.5, 0.235),
    "snapdragon-855": _snapdragon("Snapdragon 855", "SM8150", 8, 8.85),
    "snapdragon-qcs6490": _snapdragon("QCS6490", "QCS6490", 8, 2.57),
    "snapdragon-qcs8550": _snapdragon("QCS8550", "QCS8550", 16, 2.07),
    "snapdragon-8gen3": _snapdragon("Snapdragon 8 Gen 3", "SM8650", 12, 1.47),
    "snapdragon-8elite": _snapdragon("Snapdragon 8 Elite", "SM8750", 16, 1.18),
    "snapdragon-8elite-gen5": _snapdragon("Snapdragon 8 Elite Gen 5", "SM8850", 16, 1.0),
}
