from __future__ import annotations

import pytest

from shoal_controlplane.cli.units import money, runs_on
from shoal_shared.placement import Placement, Proof, of_nodes

QNN, CPU, CUDA = "QNNExecutionProvider", "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.mark.parametrize(
    ("placement", "names", "text"),
    [
        (of_nodes({QNN: 97}), (QNN, CPU), "100 % QNN (97 of 97 nodes)"),
        (of_nodes({QNN: 999, CPU: 1}), (QNN, CPU), "99 % QNN (999 of 1000 nodes)"),
        (
            of_nodes({"TensorrtExecutionProvider": 80, CUDA: 16, CPU: 1}),
            (),
            "98 % Tensorrt, CUDA (96 of 97 nodes)",
        ),
        (of_nodes({CPU: 97}), (QNN, CPU), "CPU only"),
        (of_nodes({}), (CPU,), "CPU only"),
        (Placement(accelerated=1.0, proof=Proof.TIMING), (CUDA, CPU), "100 % CUDA (by timing)"),
        (Placement(accelerated=0.0, proof=Proof.TIMING), (CUDA, CPU), "CPU only"),
        (Placement(accelerated=1.0, proof=Proof.LISTED), (CUDA, CPU), "CUDA, not proven"),
        (Placement(accelerated=1.0, proof=Proof.LISTED), (), "accelerator, not proven"),
        (Placement(accelerated=0.29, proof=Proof.GRAPH), (CUDA,), "29 % CUDA"),
        (Placement(accelerated=1.0, proof=Proof.GRAPH), (), "100 % accelerator"),
        (None, (CUDA, CPU), "CUDA, CPU"),
        (None, (), ""),
    ],
)
def test_where_a_model_runs(placement: Placement | None, names: tuple[str, ...], text: str) -> None:
    assert runs_on(placement, names) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0"), (0.0, "0"), (1.2, "1.20"), (40, "40.00"), (0.999, "1.00"), (0.00042, "0.00042")],
)
def test_money(amount, text):
    assert money(amount) == text
