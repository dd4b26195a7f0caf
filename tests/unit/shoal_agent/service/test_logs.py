from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.service.logs import LineFormatter, RateLimit, fields, quoted


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines() -> Iterator[tuple[logging.Logger, io.StringIO, Clock]]:
    clock, out = Clock(), io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(LineFormatter())
    handler.addFilter(RateLimit(clock))
    logger = logging.getLogger("test-lines")
    logger.propagate = False
    logger.addHandler(handler)
    yield logger, out, clock
    logger.removeHandler(handler)


def test_a_record_is_one_line_of_pairs(lines: tuple[logging.Logger, io.StringIO, Clock]) -> None:
    logger, out, _ = lines
    logger.warning("lost %s", "it", extra=fields(reason="a b", count=3, text='x"y\n'))
    (line,) = out.getvalue().splitlines()
    assert 'level=warning logger=test-lines msg="lost it" reason="a b" count=3' in line
    assert line.endswith('text="x\\"y\\n"')


def test_an_exception_stays_on_the_line(lines: tuple[logging.Logger, io.StringIO, Clock]) -> None:
    logger, out, _ = lines
    try:
        raise RuntimeError("boom\nboom")
    except RuntimeError:
        logger.exception("failed")
    (line,) = out.getvalue().splitlines()
    assert "RuntimeError: boom\\nboom" in line


def test_a_flood_is_cut_and_counted(lines: tuple[logging.Logger, io.StringIO, Clock]) -> None:
    logger, out, clock = lines

    def complain() -> None:
        logger.warning("again")

    for _ in range(1000):
        complain()
    assert len(out.getvalue().splitlines()) == 10
    clock.now = 11.0
    complain()
    last = out.getvalue().splitlines()[-1]
    assert last.endswith("msg=again left_out=990")
    logger.warning("another place is not affected")
    assert len(out.getvalue().splitlines()) == 12


@given(st.text(max_size=700))
def test_no_value_breaks_the_line_or_grows_without_bound(text: str) -> None:
    value = quoted(text)
    assert value.isprintable()
    assert len(value) <= 6 * 502 + 2
    if not value.startswith('"'):
        assert " " not in value
        assert "=" not in value
