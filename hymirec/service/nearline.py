"""Near-line coarse interests: refreshed when events arrive, bounded in number, newest wins."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from hymirec.answers import Coarse


class CoarseCache:
    """Coarse interests of the users that were active last; safe to call from several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._values: OrderedDict[str, Coarse] = OrderedDict()
        self._drops = 0

    def get(self, user_id: str) -> Coarse | None:
        """The newest that was put, whether or not it is still what would be computed."""
        with self._lock:
            value = self._values.get(user_id)
            if value is not None:
                self._values.move_to_end(user_id)
            return value

    def ticket(self) -> int:
        """To be taken before a history is read, and given to `put`."""
        with self._lock:
            return self._drops

    def put(self, user_id: str, coarse: Coarse, ticket: int) -> None:
        """Keep, and forget the one that was not used for longest.

        Nothing is kept when any user was dropped since the ticket was taken: it may be this one, whose erased history
        must not live on here. A value that is not kept costs its user nothing but time.
        """
        with self._lock:
            if ticket != self._drops:
                return
            self._values[user_id] = coarse
            self._values.move_to_end(user_id)
            while len(self._values) > self._most:
                self._values.popitem(last=False)

    def drop(self, user_id: str) -> None:
        """Forget a user."""
        with self._lock:
            self._drops += 1
            self._values.pop(user_id, None)

    def users(self) -> list[str]:
        """Everyone in the cache, the least recently used first."""
        with self._lock:
            return list(self._values)

    def __len__(self) -> int:
        with self._lock:
            return len(self._values)


class Pending:
    """Users whose coarse interests are to be refreshed: each once, bounded; when full, the oldest are forgotten.

    A forgotten user loses nothing: their coarse interests are computed in the request. Safe to call from several
    threads.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._users: OrderedDict[str, None] = OrderedDict()
        self.forgotten = 0

    def add(self, users: Iterable[str]) -> None:
        """Put users at the end of the line."""
        with self._lock:
            for user in users:
                self._users[user] = None
                self._users.move_to_end(user)
            while len(self._users) > self._most:
                self._users.popitem(last=False)
                self.forgotten += 1

    def take(self) -> str | None:
        """The user who came last, or None."""
        with self._lock:
            return self._users.popitem(last=True)[0] if self._users else None

    def __len__(self) -> int:
        with self._lock:
            return len(self._users)
