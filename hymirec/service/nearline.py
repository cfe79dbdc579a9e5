"""Near-line coarse interests: refreshed when events arrive, bounded in number, newest wins."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from hymirec.inference import Coarse


class CoarseCache:
    """Coarse interests of the users that were active last; safe to call from several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._values: OrderedDict[str, Coarse] = OrderedDict()

    def get(self, user_id: str) -> Coarse | None:
        """The newest that was put, whether or not it is still what would be computed."""
        with self._lock:
            value = self._values.get(user_id)
            if value is not None:
                self._values.move_to_end(user_id)
            return value

    def put(self, user_id: str, coarse: Coarse) -> None:
        """Keep, and forget the one that was not used for longest."""
        with self._lock:
            self._values[user_id] = coarse
            self._values.move_to_end(user_id)
            while len(self._values) > self._most:
                self._values.popitem(last=False)

    def drop(self, user_id: str) -> None:
        """Forget a user."""
        with self._lock:
            self._values.pop(user_id, None)

    def __len__(self) -> int:
        return len(self._values)


class Pending:
    """Users whose coarse interests are to be refreshed: each once, bounded; when full, the oldest are forgotten.

    A forgotten user loses nothing: their coarse interests are computed in the request.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._condition = threading.Condition()
        self._users: OrderedDict[str, None] = OrderedDict()
        self.forgotten = 0

    def add(self, users: Iterable[str]) -> None:
        """Put users at the end of the queue."""
        with self._condition:
            for user in users:
                self._users[user] = None
                self._users.move_to_end(user)
            while len(self._users) > self._most:
                self._users.popitem(last=False)
                self.forgotten += 1
            self._condition.notify()

    def take(self, timeout: float) -> str | None:
        """The newest user, or None after `timeout` seconds."""
        with self._condition:
            if not self._users:
                self._condition.wait(timeout)
            return self._users.popitem(last=True)[0] if self._users else None

    def __len__(self) -> int:
        return len(self._users)
