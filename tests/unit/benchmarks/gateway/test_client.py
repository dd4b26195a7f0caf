from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal_bench.gateway.client import measure, read_answer

PLAIN = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 1\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe\r\nl\r\n2\r\n0\r\r\n0\r\n\r\n"
)


def test_an_answer_with_a_length() -> None:
    assert read_answer(bytearray(PLAIN)) == PLAIN


def test_chunks_are_joined() -> None:
    answer = read_answer(bytearray(CHUNKED))
    assert answer is not None
    assert answer.partition(b"\r\n\r\n")[2] == b"he\r\nl0\r"


@given(st.sampled_from([PLAIN, CHUNKED]), st.data())
def test_no_answer_before_it_is_whole(answer: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(answer) - 1))
    assert read_answer(bytearray(answer[:cut])) is None


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "not answered with 200"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "neither a length nor chunks"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "invalid literal"),
    ],
)
def test_anything_else_is_an_error(answer: bytes, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        read_answer(bytearray(answer))


@asynccontextmanager
async def server(answers: list[bytes]) -> AsyncIterator[int]:
    """Answers the n-th request of a connection with the n-th answer, the last one for ever."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        turn = 0
        while await reader.read(1000):
            writer.write(answers[min(turn, len(answers) - 1)])
            turn += 1
        writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield running.sockets[0].getsockname()[1]
    finally:
        running.close()


def spec(port: int, folder: Path) -> dict[str, Any]:
    requests = []
    for number in range(2):
        path = folder / f"request-{number}"
        path.write_bytes(b"POST / HTTP/1.1\r\n\r\n%d" % number)
        requests.append(str(path))
    (folder / "answers").mkdir()
    return {
        "host": "127.0.0.1",
        "port": port,
        "requests": requests,
        "answers": str(folder / "answers"),
        "connections": 3,
        "warm_up_s": 0.0,
        "seconds": 0.05,
    }


async def test_a_load_is_measured_and_its_answers_are_kept(tmp_path: Path) -> None:
    async with server([PLAIN]) as port:
        found = await measure(spec(port, tmp_path))
    assert found["error"] == ""
    assert found["requests"] > 3
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert (tmp_path / "answers" / "0").read_bytes() == PLAIN
    assert (tmp_path / "answers" / "1").read_bytes() == PLAIN


async def test_an_error_ends_the_load(tmp_path: Path) -> None:
    async with server([PLAIN, b"HTTP/1.1 429 Full\r\nContent-Length: 0\r\n\r\n"]) as port:
        found = await measure(spec(port, tmp_path))
    assert "429" in found["error"]
