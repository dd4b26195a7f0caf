"""Qualcomm's chips: what stands behind the numbers that the kernel shows.

Kernel ids: Linux, include/dt-bindings/arm/qcom,ids.h. QNN's numbers: Qnn_SocModel_t in QnnTypes.h
of Qualcomm AI Engine Direct. Adreno and Hexagon: Qualcomm's product briefs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Soc:
    """One chip. `hexagon` is the version of its tensor processor or DSP, `qnn` its number in
    QNN, 0 where it has none."""

    part: str
    name: str
    adreno: str
    hexagon: int
    qnn: int

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


_SDM845 = Soc("SDM845", "Snapdragon 845", "630", 65, 1)
_SM8150 = Soc("SM8150", "Snapdragon 855", "640", 66, 12)
_SM8250 = Soc("SM8250", "Snapdragon 865", "650", 66, 21)
_QRB5165 = Soc("QRB5165", "Snapdragon 865", "650", 66, 21)
_SM8350 = Soc("SM8350", "Snapdragon 888", "660", 68, 30)
_SM8450 = Soc("SM8450", "Snapdragon 8 Gen 1", "730", 69, 36)
_SM8475 = Soc("SM8475", "Snapdragon 8+ Gen 1", "730", 69, 42)
_SM8550 = Soc("SM8550", "Snapdragon 8 Gen 2", "740", 73, 43)
_SM8650 = Soc("SM8650", "Snapdragon 8 Gen 3", "750", 75, 57)
_SM8750 = Soc("SM8750", "Snapdragon 8 Elite", "830", 79, 69)
_QCS6490 = Soc("QCS6490", "Dragonwing QCS6490", "643", 68, 35)
_QCM6490 = Soc("QCM6490", "Dragonwing QCM6490", "643", 68, 35)
_QCS8550 = Soc("QCS8550", "Dragonwing QCS8550", "740", 73, 66)
_SC8280XP = Soc("SC8280XP", "Snapdragon 8cx Gen 3", "690", 68, 37)
_SA8295P = Soc("SA8295P", "Snapdragon Ride SA8295P", "695", 68, 39)
_X1E80100 = Soc("X1E80100", "Snapdragon X Elite", "X1-85", 73, 60)
_X1P42100 = Soc("X1P42100", "Snapdragon X Plus", "X1-45", 73, 60)

BY_ID: dict[int, Soc] = {
    321: _SDM845,
    339: _SM8150,
    356: _SM8250,
    455: _QRB5165,
    439: _SM8350,
    457: _SM8450,
    480: _SM8450,
    482: _SM8450,
    530: _SM8475,
    531: _SM8475,
    540: _SM8475,
    519: _SM8550,
    557: _SM8650,
    618: _SM8750,
    497: _QCM6490,
    498: _QCS6490,
    603: _QCS8550,
    604: _QCS8550,
    449: _SC8280XP,
    460: _SA8295P,
    555: _X1E80100,
    615: _X1P42100,
}
"""Chips by `/sys/devices/soc0/soc_id`."""

BY_PART: dict[str, Soc] = {soc.part.lower(): soc for soc in BY_ID.values()}
"""Chips by part number in lower case, as in `compatible` and `/sys/devices/soc0/machine`."""
