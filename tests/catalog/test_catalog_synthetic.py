"""Generated data: shards that depend on nothing but their number, and interests that are really there."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from hymirec.catalog.loaders.synthetic import World, generate, generate_shard, word
from hymirec.catalog.validation import find_problems
from hymirec.config import SyntheticConfig

CONFIG = SyntheticConfig(items=2_000, users=300, events_per_user=80, topics=20, interests=3, shards=3)


def test_a_shard_depends_on_config_seed_and_number_alone() -> None:
    whole = generate(CONFIG, seed=5)
    shards = [generate_shard(CONFIG, 5, shard) for shard in (2, 0, 1)]
    again = [shards[1], shards[2], shards[0]]
    assert whole.items.equals(pa.concat_tables([s.items for s in again]))
    assert whole.interactions.equals(pa.concat_tables([s.interactions for s in again]))
    assert not whole.interactions.equals(generate(CONFIG, seed=6).interactions)


@pytest.mark.parametrize("string_ids", [False, True])
@pytest.mark.parametrize("sizes", [(2000, 300, 20, 3), (10, 1, 64, 8), (11, 5, 3, 1)])
def test_the_tables_are_valid(string_ids: bool, sizes: tuple[int, int, int, int]) -> None:
    items, users, topics, shards = sizes
    config = SyntheticConfig(
        items=items, users=users, topics=topics, shards=shards, events_per_user=6, string_ids=string_ids
    )
    tables = generate(config, seed=1)
    assert find_problems(tables.items, tables.interactions) == []
    assert tables.items.num_rows == items
    assert len(tables.interactions["user"].unique()) == users
    expected = pa.string() if string_ids else pa.int64()
    assert tables.interactions.schema.field("item").type == expected


def test_a_shard_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 0\.\.2"):
        generate_shard(CONFIG, 1, 3)


def test_words_are_different() -> None:
    assert len({word(i) for i in range(20_000)}) == 20_000


def test_titles_tell_the_topic() -> None:
    tables = generate(CONFIG, seed=5)
    topics = World.of(CONFIG, 5).topic_of(np.arange(CONFIG.items))
    owners: dict[str, set[int]] = {}
    for title, topic in zip(tables.items["title"].to_pylist(), topics, strict=True):
        for own in title.split()[1:]:
            owners.setdefault(own, set()).add(int(topic))
    assert all(len(found) == 1 for found in owners.values())


def test_histories_are_long_popular_and_about_few_topics() -> None:
    tables = generate(CONFIG, seed=5)
    user, item = (tables.interactions[name].to_numpy() for name in ("user", "item"))
    world = World.of(CONFIG, 5)
    topics = world.topic_of(item)
    assert 70 < len(user) / CONFIG.users < 90
    counts = np.sort(np.bincount(item, minlength=CONFIG.items))[::-1]
    assert counts[: CONFIG.items // 10].sum() > 0.3 * counts.sum()
    share_of_top_three = [
        np.sort(np.bincount(topics[user == u], minlength=20))[-3:].sum() / (user == u).sum() for u in range(50)
    ]
    assert np.mean(share_of_top_three) > 0.9


def test_the_first_interest_goes_and_comes_back() -> None:
    tables = generate(CONFIG, seed=5)
    user, item = (tables.interactions[name].to_numpy() for name in ("user", "item"))
    topics = World.of(CONFIG, 5).topic_of(item)
    shares = []
    for u in range(CONFIG.users):
        own = topics[user == u]
        n = len(own)
        if n < 60:
            continue
        early, middle, late = own[: int(0.38 * n)], own[int(0.5 * n) : int(0.78 * n)], own[int(0.85 * n) :]
        gone = max(set(early), key=lambda t: (early == t).mean() - (middle == t).mean())
        shares.append([(part == gone).mean() for part in (early, middle, late)])
    early_share, middle_share, late_share = np.mean(shares, axis=0)
    assert middle_share < 0.1 < 0.25 < early_share
    assert late_share > 0.3


def test_times_of_a_user_never_go_back() -> None:
    tables = generate(CONFIG, seed=5)
    user, ts = (tables.interactions[name].to_numpy() for name in ("user", "ts"))
    same = user[1:] == user[:-1]
    assert (np.diff(ts)[same] >= 0).all()
