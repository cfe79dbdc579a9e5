"""Generated data with planted interests, of any size, in shards that know nothing of each other.

Items lie in latent topics; inside a topic popularity falls as rank^-zipf, and which item has which rank is hidden
behind a permutation, so an id says nothing about popularity. Titles are made of the words of the topic: text carries
the signal. A user likes a few topics and acts in sessions of one topic. The first interest is shown in the first 40 %
of a history, then not at all, and is half of the last 20 %: only the long history tells that it exists.

Shard s of S holds the s-th range of items and of users, and depends on (config, seed, s) alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hymirec.catalog.normalise import Tables
from hymirec.catalog.schemas import ITEM, TITLE, TS, USER
from hymirec.config import SyntheticConfig

TOPIC_WORDS = 12
COMMON_WORDS = 64
SYLLABLES = ("ba", "co", "di", "fu", "ga", "he", "jo", "ku", "la", "me", "ni", "po", "ra", "so", "ta", "vi")
FIRST_TS = 1_700_000_000
YEAR = 365 * 86_400
SESSION_EVENTS = 5
NOISE = 0.05
REDRAWS = 6

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """What all shards share. Item i sits at place (a i + b) mod N; its topic is place mod T, its rank place // T."""

    config: SyntheticConfig
    a: int
    b: int
    topics: int
    topic_share: NDArray[np.float64]
    rank_cdf: NDArray[np.float64]

    @classmethod
    def of(cls, config: SyntheticConfig, seed: int) -> World:
        """The world of a config and seed."""
        rng = np.random.default_rng([seed, 0])
        n = config.items
        a = int(rng.integers(1, n))
        while math.gcd(a, n) != 1:
            a += 1
        topics = min(config.topics, n)
        share = rng.permutation(1.0 / np.arange(1, topics + 1) ** 0.5)
        weight = np.arange(1, n // topics + 1, dtype=np.float64) ** -config.zipf
        cdf = np.cumsum(weight)
        return cls(config, a, int(rng.integers(n)), topics, share / share.sum(), cdf / cdf[-1])

    def topic_of(self, items: Ints) -> Ints:
        """Topics of items, same shape."""
        topics: Ints = (items * self.a + self.b) % self.config.items % self.topics
        return topics

    def draw_items(self, topics: Ints, rng: np.random.Generator) -> Ints:
        """One item of each topic by its popularity, same shape.

        The last rank, which only some topics have, is never drawn: those items stay cold.
        """
        rank = np.searchsorted(self.rank_cdf, rng.random(topics.shape)).astype(np.int64)
        place = rank.clip(max=len(self.rank_cdf) - 1) * self.topics + topics
        inverse = pow(self.a, -1, self.config.items)
        items: Ints = (place - self.b) % self.config.items * inverse % self.config.items
        return items

    def draw_topics(self, shape: tuple[int, ...], rng: np.random.Generator) -> Ints:
        """Topics by their share."""
        cdf = np.cumsum(self.topic_share)
        topics: Ints = np.searchsorted(cdf, rng.random(shape) * cdf[-1]).astype(np.int64).clip(max=self.topics - 1)
        return topics


def generate_shard(config: SyntheticConfig, seed: int, shard: int) -> Tables:
    """Items and interactions of one shard. Equal arguments give equal tables, whatever else was generated."""
    if not 0 <= shard < config.shards:
        raise ValueError(f"shard {shard} of {config.shards}: expected 0..{config.shards - 1}")
    world = World.of(config, seed)
    return Tables(
        _items(world, _range(config.items, shard, config.shards), np.random.default_rng([seed, 1, shard])),
        _interactions(world, _range(config.users, shard, config.shards), np.random.default_rng([seed, 2, shard])),
    )


def generate(config: SyntheticConfig, seed: int) -> Tables:
    """All shards one after the other, in this process."""
    shards = [generate_shard(config, seed, shard) for shard in range(config.shards)]
    return Tables(
        pa.concat_tables([shard.items for shard in shards]),
        pa.concat_tables([shard.interactions for shard in shards]),
    )


def _range(total: int, shard: int, shards: int) -> Ints:
    return np.arange(total * shard // shards, total * (shard + 1) // shards, dtype=np.int64)


def _ids(numbers: Ints, prefix: str, strings: bool) -> pa.Array:
    if not strings:
        return pa.array(numbers, pa.int64())
    digits = pc.utf8_lpad(pc.cast(pa.array(numbers), pa.string()), width=9, padding="0")
    return pc.binary_join_element_wise(prefix, digits, "-")


def word(number: int) -> str:
    """The pronounceable word of a number; different numbers, different words."""
    digits = []
    number += len(SYLLABLES)  # at least two syllables
    while number:
        number, digit = divmod(number, len(SYLLABLES))
        digits.append(SYLLABLES[digit])
    return "".join(digits)


def _items(world: World, items: Ints, rng: np.random.Generator) -> pa.Table:
    topics = world.topic_of(items)
    used, local = np.unique(topics, return_inverse=True)
    common = [word(i) for i in range(COMMON_WORDS)]
    own = [word(COMMON_WORDS + int(topic) * TOPIC_WORDS + i) for topic in used for i in range(TOPIC_WORDS)]
    first = rng.integers(TOPIC_WORDS, size=len(items))
    second = (first + rng.integers(1, TOPIC_WORDS, size=len(items))) % TOPIC_WORDS
    topic_words, common_words = pa.array(own, pa.string()), pa.array(common, pa.string())
    title = pc.binary_join_element_wise(
        common_words.take(pa.array(rng.integers(COMMON_WORDS, size=len(items)))),
        topic_words.take(pa.array(local * TOPIC_WORDS + first)),
        topic_words.take(pa.array(local * TOPIC_WORDS + second)),
        " ",
    )
    return pa.table({ITEM: _ids(items, "item", world.config.string_ids), TITLE: title})


def _interests(world: World, users: int, rng: np.random.Generator) -> Ints:
    """Distinct topics of each user, shape (users, interests)."""
    count = min(world.config.interests, world.topics)
    chosen = world.draw_topics((users, count), rng)
    for k in range(1, count):
        for _ in range(k):  # a step to the next topic can meet another earlier one: k steps pass them all
            taken = (chosen[:, :k] == chosen[:, k : k + 1]).any(axis=1)
            chosen[:, k] = (chosen[:, k] + taken) % world.topics
    return chosen


def _event_topics(
    world: World,
    owner: Ints,
    phase: NDArray[np.float64],
    starts: NDArray[np.bool_],
    rng: np.random.Generator,
) -> Ints:
    """Topic of each event: that of its session, or any topic for a few."""
    interests = _interests(world, int(owner[-1]) + 1 if len(owner) else 0, rng)
    events, count = len(owner), interests.shape[1]
    any_interest = rng.integers(count, size=events)
    later = rng.integers(1, count, size=events) if count > 1 else np.zeros(events, np.int64)
    first_again = np.where(rng.random(events) < 0.5, 0, later)
    slot = np.select([phase < 0.4, phase < 0.8], [any_interest, later], first_again)
    session_start = np.maximum.accumulate(np.where(starts, np.arange(events), 0))
    topics = interests[owner, slot[session_start]]
    return np.where(rng.random(events) < NOISE, world.draw_topics((events,), rng), topics)


def _interactions(world: World, users: Ints, rng: np.random.Generator) -> pa.Table:
    mean = world.config.events_per_user
    lengths = 3 + rng.poisson(rng.gamma(2.0, (mean - 3) / 2, size=len(users))).astype(np.int64)
    owner = np.repeat(np.arange(len(users)), lengths)
    first = np.cumsum(lengths) - lengths
    step = np.arange(len(owner)) - np.repeat(first, lengths)
    starts = (step == 0) | (rng.random(len(owner)) < 1 / SESSION_EVENTS)
    topics = _event_topics(world, owner, step / np.repeat(lengths, lengths), starts, rng)
    items = world.draw_items(topics, rng)
    for _ in range(REDRAWS):  # people rarely take the same item again; what is left after this are repeats
        _, kept = np.unique(owner * world.config.items + items, return_index=True)
        again = np.ones(len(items), bool)
        again[kept] = False
        if not again.any():
            break
        items[again] = world.draw_items(topics[again], rng)
    gap = np.where(starts, rng.exponential(2 * 86_400, len(owner)), rng.exponential(90, len(owner))).astype(np.int64)
    elapsed = np.cumsum(gap)
    begin = rng.integers(FIRST_TS, FIRST_TS + YEAR, size=len(users))
    ts = elapsed - np.repeat(elapsed[first], lengths) + np.repeat(begin, lengths)
    return pa.table(
        {
            USER: _ids(users, "user", world.config.string_ids).take(pa.array(owner)),
            ITEM: _ids(items, "item", world.config.string_ids),
            TS: pa.array(ts, pa.int64()),
        }
    )
