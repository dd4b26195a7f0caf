from __future__ import annotations

from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI
from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.api import problem
from shoal_controlplane.api.paging import Page, Paging, page
from shoal_controlplane.errors import InvalidError


def listed(keys: list[str], paging: Paging) -> list[str]:
    """What a service does: up to limit + 1 keys after the cursor, in order."""
    after = paging.after
    rest = [key for key in sorted(keys) if after is None or key > after]
    return rest[: paging.limit + 1]


KEYS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(st.lists(KEYS, unique=True, max_size=30), st.integers(1, 7))
def test_pages_show_everything_once_and_in_order(keys: list[str], limit: int) -> None:
    seen: list[str] = []
    cursor = None
    while True:
        paging = Paging(limit, cursor)
        shown = page(listed(keys, paging), str, paging)
        assert len(shown.items) <= limit
        seen += shown.items
        cursor = shown.next_cursor
        if cursor is None:
            break
    assert seen == sorted(keys)


@pytest.mark.parametrize("cursor", ["", "=", "a", "äöü", "!!!!", "YQ==", "AA", "_w", "YR"])
def test_a_broken_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidError, match="start again"):
        Paging(10, cursor)


@given(st.text(max_size=50))
def test_any_cursor_is_read_or_refused(cursor: str) -> None:
    try:
        assert Paging(10, cursor).after
    except InvalidError:
        pass


async def test_it_works_as_a_dependency() -> None:
    app = FastAPI()
    problem.install(app)

    @app.get("/letters")
    async def letters(paging: Annotated[Paging, Depends()]) -> Page[str]:
        return page(listed(list("abcde"), paging), str, paging)

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        first = (await client.get("/letters", params={"limit": 3})).json()
        assert first["items"] == ["a", "b", "c"]
        query = {"limit": 3, "cursor": first["next_cursor"]}
        assert (await client.get("/letters", params=query)).json() == {
            "items": ["d", "e"],
            "next_cursor": None,
        }
        for bad in ({"limit": 0}, {"limit": 501}, {"limit": "x"}, {"cursor": "?"}):
            answer = await client.get("/letters", params=bad)
            assert answer.status_code == 422
            assert answer.headers["content-type"] == "application/problem+json"
