"""What fakes of runtimes and models have in common: one way to run, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal_agent.runtimes.base import ProviderSet
from shoal_shared.messages import RuntimeInfo
from shoal_shared.placement import Placement, of_nodes

CPU_SET = ProviderSet(name="cpu", providers=(("CPUExecutionProvider", {}),))


class OnCpu:
    """A model whose nodes all run on the CPU."""

    placement: Placement = of_nodes({"CPUExecutionProvider": 1})


class CpuRuntime:
    """A runtime with nothing but the CPU."""

    info = RuntimeInfo(name="fake", version="1", formats=("onnx",))
    note: str | None = None

    @property
    def version(self) -> str:
        return f"{self.info.name} {self.info.version}"

    def provider_sets(self, options: Mapping[str, Any]) -> tuple[ProviderSet, ...]:
        return (CPU_SET,)
