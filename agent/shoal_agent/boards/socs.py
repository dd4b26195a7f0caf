"""Qualcomm's chips: what stands behind the numbers that the kernel shows.

Kernel ids: include/dt-bindings/arm/qcom,ids.h of Linux; 498, 577 and 639 as Qualcomm's own
kernels have them there (QCS6490, SM8650P, SUNP). QNN's numbers: `Qnn_SocModel_t` in QnnTypes.h of
QAIRT 2.45, with which `_soc_info_table` in ExecuTorch's backends/qualcomm/serialization/
qc_schema.py and ONNX Runtime's QNN soc_table.h agree, as on the Hexagon's versions. QCS6490 and
QCM6490 are younger than that enumeration: 93 is what QNN reports there (google-ai-edge/LiteRT
#8345). Adreno and names: Qualcomm's product briefs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Soc:
    """One chip. `hexagon` is the version of its tensor processor or DSP, `qnn` its number in
    QNN, 0 where it is not known, `ids` are the kernel's numbers."""

    part: str
    name: str
    adreno: str
    hexagon: int
    qnn: int
    ids: tuple[int, ...]

    @property
    def has_htp(self) -> bool:
        """Whether the Hexagon is a tensor processor: QNN's HTP backend begins with v68."""
        return self.hexagon >= 68

    @property
    def precisions(self) -> tuple[str, ...]:
        """What the Hexagon computes in; half precision from v69 on."""
        if not self.has_htp:
            return ("int8",)
        return ("int8", "int16", "fp16") if self.hexagon >= 69 else ("int8", "int16")


SOCS = (
    Soc("SDM845", "Snapdragon 845", "630", 65, 1, (321, 341)),
    Soc("SM8150", "Snapdragon 855", "640", 66, 12, (339,)),
    Soc("SM8250", "Snapdragon 865", "650", 66, 21, (356,)),
    Soc("QRB5165", "Snapdragon 865", "650", 66, 21, (455,)),
    Soc("SM8350", "Snapdragon 888", "660", 68, 30, (439,)),
    Soc("SM8450", "Snapdragon 8 Gen 1", "730", 69, 36, (457, 480, 482)),
    Soc("SM8475", "Snapdragon 8+ Gen 1", "730", 69, 42, (530, 531, 540)),
    Soc("SM8550", "Snapdragon 8 Gen 2", "740", 73, 43, (519,)),
    Soc("SM8650", "Snapdragon 8 Gen 3", "750", 75, 57, (557, 577)),
    Soc("SM8750", "Snapdragon 8 Elite", "830", 79, 69, (618, 639)),
    Soc("QCS6490", "Dragonwing QCS6490", "643", 68, 93, (498,)),
    Soc("QCM6490", "Dragonwing QCM6490", "643", 68, 93, (497,)),
    Soc("QCS8550", "Dragonwing QCS8550", "740", 73, 66, (603, 604)),
    Soc("SC8280XP", "Snapdragon 8cx Gen 3", "690", 68, 37, (449,)),
    Soc("SA8295P", "Snapdragon Ride SA8295P", "695", 68, 39, (460,)),
    Soc("X1E80100", "Snapdragon X Elite", "X1-85", 73, 60, (555,)),
    Soc("X1P42100", "Snapdragon X Plus", "X1-45", 73, 0, ()),
)

BY_ID: dict[int, Soc] = {number: soc for soc in SOCS for number in soc.ids}
"""Chips by `/sys/devices/soc0/soc_id`."""

BY_PART: dict[str, Soc] = {soc.part.lower(): soc for soc in SOCS}
"""Chips by part number in lower case, as in `compatible` and `/sys/devices/soc0/machine`."""
