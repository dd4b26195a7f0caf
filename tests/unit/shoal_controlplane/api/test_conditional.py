from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.api.conditional import check_if_match, etag
from shoal_controlplane.errors import PreconditionError


@pytest.mark.parametrize("sent", [None, "*", '"7"', ' "7" ', '"6", "7"', '"x,y" , "7"'])
def test_these_pass(sent: str | None) -> None:
    check_if_match(sent, 7)


@pytest.mark.parametrize("sent", ["", "7", 'W/"7"', '"8"', '"7', '"*"', "*, *", "\x00", "'7'"])
def test_these_do_not(sent: str) -> None:
    with pytest.raises(PreconditionError, match='ETag is now "7"'):
        check_if_match(sent, 7)


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_only_the_same_revision_matches(sent: int, current: int) -> None:
    try:
        check_if_match(etag(sent), current)
        matched = True
    except PreconditionError:
        matched = False
    assert matched == (sent == current)
