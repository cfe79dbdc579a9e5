from __future__ import annotations

from collections.abc import Callable

import pytest

from hymirec.config import HistoryConfig
from hymirec.history import Entry, PartitionBatch, open_store
from hymirec.service.erasures import ErasingStore


class World:
    """A log of one partition, by hand, and the store it is applied to."""

    def __init__(self) -> None:
        self.inner = open_store(HistoryConfig(store="memory"))
        self.heard: list[str] = []
        self.store = ErasingStore(self.inner, self.heard.append)
        self.offset = 0

    def apply(self, *entries: Callable[[int], Entry], through: ErasingStore | None = None) -> None:
        made = [entry(self.offset + i) for i, entry in enumerate(entries)]
        stop = self.offset + len(made)
        batch = PartitionBatch("events", "id", 0, self.offset or None, stop, made)
        (through or self.store).apply(batch)
        self.offset = stop

    def items(self, user: str, limit: int | None = None) -> list[int]:
        return [int(key) for key in self.store.read(user, limit).keys]


def seen(user: str, key: int) -> Callable[[int], Entry]:
    return lambda offset: Entry(offset, user, key, 1_700_000_000 + key, 1, 1_000 + offset)


def erased(user: str) -> Callable[[int], Entry]:
    return lambda offset: Entry(offset, user)


@pytest.fixture
def world() -> World:
    world = World()
    world.apply(seen("a", 1), seen("a", 2), seen("b", 3))
    return world


def test_a_user_is_shown_nothing_of_from_the_moment_of_the_erasure(world: World) -> None:
    world.store.hide("a", world.store.first("a"))
    assert (world.items("a"), world.items("a", 1), world.items("b")) == ([], [], [3])
    assert world.store.hidden("a")
    assert not world.store.hidden("b")
    assert world.heard == ["a"]


def test_events_that_the_log_took_before_the_erasure_stay_hidden_when_they_arrive(world: World) -> None:
    world.store.hide("a", world.store.first("a"))
    world.apply(seen("a", 4))
    assert world.items("a") == []


def test_what_the_user_does_after_the_erasure_is_shown(world: World) -> None:
    world.store.hide("a", world.store.first("a"))
    world.apply(erased("a"), seen("a", 5))
    assert world.items("a") == [5]
    assert world.items("a", 1) == [5]
    assert not world.store.hidden("a")


def test_an_erasure_that_was_applied_before_it_is_reported_hides_nothing_new(world: World) -> None:
    first = world.store.first("a")
    world.apply(erased("a"), seen("a", 5))
    world.store.hide("a", first)
    assert world.items("a") == [5]


def test_an_erasure_that_another_writer_applies_lifts_the_veil_here(world: World) -> None:
    other = ErasingStore(world.inner, world.heard.append)
    other.hide("a", other.first("a"))
    world.apply(erased("a"), seen("a", 6))
    assert [int(key) for key in other.read("a").keys] == [6]


def test_an_erasure_of_the_log_is_heard_of_without_being_asked_for(world: World) -> None:
    world.apply(erased("b"))
    assert world.heard == ["b"]
    assert world.items("b") == []


def test_a_user_without_history_can_be_erased(world: World) -> None:
    assert world.store.first("nobody") is None
    world.store.hide("nobody", None)
    world.apply(seen("nobody", 7))
    assert world.items("nobody") == [7]
