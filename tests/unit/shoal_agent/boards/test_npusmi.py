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


def chip(
    name: str, power: float | None, celsius: float, used: int, total: int, load: float = 0.0
) -> Npu:
    return Npu(name, "OK", power, celsius, load, used << 20, total << 20)


# Chips as printed in public reports and read-mes.
TABLES = {
    "a 910B4": (TABLE, "24.1.1", chip("910B4", 88.2, 30.0, 26838, 32768)),
    # https://github.com/vllm-project/vllm-ascend/issues/2534: two chips share one figure of power.
    "an A3, whose second chip tells no power": (
        """
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     Ascend910           | OK            | -           36                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 7           0    / 0          3195 / 65536         |
""",
        "",
        chip("910", None, 36.0, 3195, 65536, 0.07),
    ),
    # https://github.com/vllm-project/vllm-ascend/issues/1141
    "a 310P that has HBM's column": (
        """
| npu-smi 25.0.rc1.1            Version: 25.0.rc1.1 |
| NPU Name | Health | Power(W) Temp(C) Hugepages-Usage(page)|
| Chip | Bus-Id | AICore(%) Memory-Usage(MB) HBM-Usage(MB) |
| 0 310P3 | OK | 89.2 39 0 / 0 |
| 0 | 0000:81:00.0 | 0 0 / 0 1460/ 44280 |
""",
        "25.0.rc1.1",
        chip("310P3", 89.2, 39.0, 1460, 44280),
    ),
    "a first 910, with DDR and HBM": (
        """
| npu-smi 21.0.4                   Version: 21.0.4                                          |
| 0     910A           | OK            | 70.9        42                15   / 15            |
| 0                    | 0000:C1:00.0  | 0           839  / 15170      1    / 32768         |
""",
        "21.0.4",
        chip("910A", 70.9, 42.0, 1, 32768),
    ),
    "a 310 on a card": (
        """
| npu-smi 21.0.3.1                     Version: 21.0.3.1                       |
| 1       310               | OK              | 12.8              49                   |
| 0       0                 | 0000:01:00.0    | 0                 2621 / 8192          |
""",
        "21.0.3.1",
        chip("310", 12.8, 49.0, 2621, 8192),
    ),
    "a 310B, which shares the system's memory": (
        (FIXTURES / "ascend-310b/npu-smi.txt").read_text(),
        "23.0.rc3",
        chip("310B4", 7.2, 37.0, 0, 0),
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_all_versions(name: str) -> None:
    text, version, first = TABLES[name]
    answer = parse_npu_smi(text)
    assert (answer.version, answer.chips[0]) == (version, first)


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


def test_a_table_that_was_cut_short_is_no_answer() -> None:
    half = TABLE[: TABLE.index("| 1 ")]
    assert len(parse_npu_smi(half).chips) == 1
    reader = NpuSmiReader(["/bin/sh", "-c", f"printf %s '{half}'; kill -9 $$"])
    assert reader.latest(patience_s=20) is None


def test_a_tool_that_prints_without_end_is_ended() -> None:
    reader = NpuSmiReader(command("while True: print('| 0 310 |' * 1000)"))
    assert reader.latest(patience_s=20) is None
    assert reader._running is not None
    assert not reader._running.is_alive()


def test_what_a_hanging_tool_started_is_ended_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(npusmi, "TIMEOUT_S", 0.05)
    # The child of the shell holds the pipe open.
    reader = NpuSmiReader(["/bin/sh", "-c", "sleep 60 & wait"])
    assert reader.latest(patience_s=20) is None
    assert reader._running is not None
    assert not reader._running.is_alive()


def test_a_tool_that_failed_is_asked_again(tmp_path: Path) -> None:
    script, now = tmp_path / "npu-smi", [0.0]
    reader = NpuSmiReader([sys.executable, str(script)], clock=lambda: now[0])
    assert reader.latest(patience_s=60) is None
    script.write_text(f"print({TABLE!r})")
    assert reader.latest(patience_s=60) is None  # It was asked just now.
    now[0] = npusmi.PERIOD_S
    answer = reader.latest(patience_s=60)
    assert answer is not None
    assert len(answer.chips) == 2
