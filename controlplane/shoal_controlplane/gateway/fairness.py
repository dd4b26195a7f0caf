"""Fair shares of what a model's devices can do, among the clients that ask for it.

Pure: work and clock readings in, a verdict out. While everything that is asked for is admitted, a
single client may have it all. Once something was turned away, max-min fairness holds: a client
that asks for less than its share gets all of it, and what is left is shared equally by those who
ask for more. Who has had more than that is beyond its fair share.

Clients are whoever they say they are, so the memory is bounded: the first `MAX_CLIENTS` that are
active have an account each, and all others one together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

MAX_CLIENTS = 256
MAX_CLIENT = 64
"""Characters in the name of a client; see `shoal_shared.names`."""

MEMORY_S = 2.0
"""Work counts less by a factor e after so long."""
REFRESH_S = 0.05
"""Shares are computed anew so often."""

_PRESSURE = 1.02
"""Beside what was admitted, so much must have been asked for before anyone is held back."""
_TOLERANCE = 1.01
_LEAST = 1e-3
"""Accounts with less work than this are closed."""

_OTHERS = ""


class _Account:
    """Decayed work of a client: what it asked for, and what of it was admitted."""

    __slots__ = ("admitted", "asked")

    def __init__(self) -> None:
        self.admitted = self.asked = 0.0


class FairShares:
    """Accounts of the clients of one model. Work is in any unit, such as batch items."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._share = math.inf
        self._over: frozenset[str] = frozenset()
        self._at = -math.inf

    def __len__(self) -> int:
        return len(self._accounts)

    @property
    def share(self) -> float:
        """Decayed work that each client may have had; infinite where nobody is held back."""
        return self._share

    def is_over(self, client: str, now: float) -> bool:
        """Whether a client has had more than its fair share, as of at most `REFRESH_S` ago."""
        if now - self._at >= REFRESH_S:
            self._refresh(now)
        return (client if client in self._accounts else _OTHERS) in self._over

    def count(self, client: str, work: float, now: float, *, admitted: bool) -> None:
        """A client asked for `work`."""
        if now - self._at >= REFRESH_S:
            self._refresh(now)
        account = self._accounts.get(client)
        if account is None:
            # The account of all others takes one more place.
            key = client if len(self._accounts) < MAX_CLIENTS else _OTHERS
            account = self._accounts.setdefault(key, _Account())
        account.asked += work
        if admitted:
            account.admitted += work

    def _refresh(self, now: float) -> None:
        fade = math.exp(-(now - self._at) / MEMORY_S) if self._at > -math.inf else 0.0
        self._at = now
        for client, account in list(self._accounts.items()):
            account.admitted *= fade
            account.asked *= fade
            if account.asked < _LEAST:
                del self._accounts[client]
        admitted = sum(account.admitted for account in self._accounts.values())
        asked = [account.asked for account in self._accounts.values()]
        pressed = sum(asked) > _PRESSURE * admitted
        self._share = share = fair_share(asked, admitted) if pressed else math.inf
        self._over = frozenset(
            client
            for client, account in self._accounts.items()
            if account.admitted > _TOLERANCE * share
        )


def fair_share(asked: Iterable[float], capacity: float) -> float:
    """The level f with sum(min(a, f) for a in asked) = capacity: the most that anyone gets under
    max-min fairness. Infinite where there is enough for all."""
    left = sorted(asked)
    rest = capacity
    for position, wanted in enumerate(left):
        equal = rest / (len(left) - position)
        if wanted > equal:
            return equal
        rest -= wanted
    return math.inf
