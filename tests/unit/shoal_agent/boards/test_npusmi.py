from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.boards import npusmi
from shoal_agent.boards.npusmi import MAX_AGE_S, Npu, NpuSmi, NpuSmiReader, parse_npu_smi

FIXTURES = Path(__file__).parents[3] / "fixtures/boards"
TABLE = (FIXTURES / "ascend-910b/npu-smi.txt").read_text()


def test_the_table_of_a_910b() -> None:
    answer = parse_npu_smi(TABLE)
    assert answer.version == "23.0.7"
    assert answer.chips[1] == Npu(
        name="910B2",
        health="OK",
        power_w=98.7,
        temperature_c=37.0,
        load=0.64,
        memory_used_bytes=29951 << 20,
        memory_bytes=65536 << 20,
    )


def test_processes_are_no_chips() -> None:
    assert len(parse_npu_smi((FIXTURES / "ascend-310p/npu-smi.txt").read_text()).chips) == 2


@pytest.mark.parametrize("text", ["", "npu-smi: command not found", "| | | |", "|0 310B4|OK|1|"])
def test_what_is_no_table_has_no_chips(text: str) -> None:
    assert parse_npu_smi(text).chips == ()


@given(st.integers(0, len(TABLE)))
def test_a_table_that_is_cut_never_raises(at: int) -> None:
    assert len(parse_npu_smi(TABLE[:at]).chips) <= 2


@given(st.text(alphabet="|0123456789 .:/NAOKnpu-smi\n", max_size=400))
def test_no_text_makes_it_raise(text: str) -> None:
    for chip in parse_npu_smi(text).chips:
        assert chip.load is None or 0 <= chip.load <= 1


def command(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def test_an_answer_is_handed_out_until_it_is_old() -> None:
    now = [0.0]
    reader = NpuSmiReader(command(f"print({TABLE!r})"), clock=lambda: now[0])
    answer = reader.latest(patience_s=20)
    assert isinstance(answer, NpuSmi)
    now[0] = MAX_AGE_S
    assert reader.latest() == answer
    now[0] = 2 * MAX_AGE_S + 1
    assert reader.latest() in (None, answer)  # It asks again, beside.


def test_a_tool_that_hangs_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npusmi, "TIMEOUT_S", 0.05)
    reader = NpuSmiReader(command("import time; time.sleep(60)"))
    assert reader.latest() is None
    assert reader.latest(patience_s=20) is None  # It was killed, or this would take 20 s.
    assert reader._running is not None
    assert not reader._running.is_alive()


def test_a_tool_that_is_missing_answers_nothing() -> None:
    assert NpuSmiReader(["/nonexistent/npu-smi"]).latest(patience_s=20) is None
