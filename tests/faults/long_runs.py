"""The long form of the crash tests; `run_faults.py` starts it."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fault_part import Part
from fault_run import Report
from fault_wal import trials
from service_kit import tiny_bundle
from services import SHORT_SESSIONS, KafkaBroker, RedisServer
from serving_kills import recommender_kills, writer_kills
from serving_kit import small_ray
from serving_overload import OverloadRun, heavy_bundle
from serving_scaling import LETTERS, PARTITIONS, TOPIC, backlog
from serving_soak import soak
from serving_swaps import SwapRun
from test_faults_crash import crash_run
from test_faults_growth import growing_run
from test_faults_zombies import zombie_run

ROCKSDB_KILLS, WAITING_KILLS, REDIS_KILLS, KAFKA_KILLS, RUN_KILLS = 1_000, 500, 200, 50, 50
TRUNCATIONS, FLIPS = 500, 300
STOPS, REBALANCES = 50, 100
SWAPS, CORRUPT_BUNDLES, SWAP_REQUESTS = 100, 30, 20_000
RECOMMENDER_KILLS, WRITER_KILLS = 50, 10
OVERLOAD_SECONDS, OVERLOAD_ROUNDS = 20, 3
BACKLOG_EVENTS = 60_000
SOAK_SECONDS, SOAK_RATE = 1_800, 5.0
GROWTHS, GROWTH_KILLS, ADDITIONS = 5, 10, 4


def of(number: int, scale: float) -> int:
    """So much of a number of trials, one at least."""
    return max(1, round(number * scale))


def crashes(what: str, kills: int, seed: int, run: Callable[[Path, int, int], Report]) -> Part:
    """Runs of 50 kills, each with a seed, a log and a store of its own."""
    begun, total = time.monotonic(), Report()
    while (left := kills - total.kills.total()) > 0:
        with tempfile.TemporaryDirectory() as directory:
            total.add(run(Path(directory), seed, min(left, RUN_KILLS)))
        sys.stderr.write(f"{what}: seed {seed}, {total.kills.total()} kills, {dict(total.faults)}\n")
        seed += 1
    details = {"messages": total.messages, "comparisons": total.looks, **total.kills}
    return Part(f"SIGKILL, {what}", total.kills.total(), total.faults, time.monotonic() - begun, details, total.notes)


def files(seed: int, scale: float) -> Iterator[Part]:
    """RocksDB's files cut short, and with a flipped bit."""
    for name, cuts, flips in (
        ("cut write-ahead log", of(TRUNCATIONS, scale), 0),
        ("flipped bit", 0, of(FLIPS, scale)),
    ):
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            found = trials(Path(directory), seed, cuts, flips)
        outcomes = Counter({f"{kind}: {what}": n for kind, counts in found.items() for what, n in counts.items()})
        faults = Counter({name: n for name, n in outcomes.items() if ": wrong" in name})
        yield Part(name, outcomes.total(), faults, time.monotonic() - begun, dict(outcomes))


def redis_crashes(seed: int, scale: float) -> Iterator[Part]:
    """Writers killed; once a run Redis itself loses its last writes."""
    with tempfile.TemporaryDirectory() as directory:
        server = RedisServer(Path(directory) / "redis").start()

        def run(place: Path, seed: int, kills: int) -> Report:
            server.flush()
            return crash_run(place, seed, kills, "redis", redis_server=server)

        try:
            yield crashes("file log to Redis", of(REDIS_KILLS, scale), seed, run)
        finally:
            server.kill()


def kafka_crashes(seed: int, scale: float) -> Iterator[Part]:
    """Writers killed that read Kafka."""
    with tempfile.TemporaryDirectory() as directory:
        broker = KafkaBroker(Path(directory) / "kafka")

        def run(place: Path, seed: int, kills: int) -> Report:
            return crash_run(place, seed, kills, kind="kafka-python", broker=broker)

        try:
            broker.start()
            yield crashes("Kafka to RocksDB", of(KAFKA_KILLS, scale), seed, run)
        finally:
            broker.kill()


def growth(seed: int, scale: float) -> Iterator[Part]:
    """Partitions added while writers are killed."""
    with tempfile.TemporaryDirectory() as directory:
        broker = KafkaBroker(Path(directory) / "kafka")
        begun, total = time.monotonic(), Report()
        try:
            broker.start()
            for run in range(seed, seed + of(GROWTHS, scale)):
                total.add(growing_run(Path(directory) / str(run), broker, run, GROWTH_KILLS, ADDITIONS))
        finally:
            broker.kill()
        details = {
            "messages": total.messages,
            "comparisons": total.looks,
            "added": of(GROWTHS, scale) * ADDITIONS,
            **total.kills,
        }
        seconds = time.monotonic() - begun
        yield Part("SIGKILL, partitions added", total.kills.total(), total.faults, seconds, details, total.notes)


def zombies(seed: int, scale: float) -> Iterator[Part]:
    """Members put to sleep beyond the session timeout, and forced rebalances: half with each client of Kafka, and again
    half with Kafka's newer group protocol.
    """
    with tempfile.TemporaryDirectory() as directory:
        broker = KafkaBroker(Path(directory) / "kafka", settings=SHORT_SESSIONS)
        server = RedisServer(Path(directory) / "redis")
        try:
            broker.start()
            server.start()
            for kind, protocol in (("kafka-python", "classic"), ("confluent", "classic"), ("confluent", "consumer")):
                begun = time.monotonic()
                place = Path(directory) / f"{kind}-{protocol}"
                run = zombie_run(place, kind, broker, server, seed, protocol=protocol).run_zombies(
                    of(STOPS // 2, scale), of(REBALANCES // 2, scale)
                )
                # Kafka cannot take a letter back that a writer taken for dead had still in hand.
                letters = run.faults.pop("letters doubled", 0)
                details = {"messages": run.messages, "letters doubled": letters, **run.kills}
                name = f"asleep or rebalanced, {kind} ({protocol} protocol) to Redis"
                yield Part(name, run.kills.total(), run.faults, time.monotonic() - begun, details, run.notes)
        finally:
            broker.kill()
            server.kill()


def rocksdb_crashes(seed: int, scale: float) -> Iterator[Part]:
    """Writers killed."""
    yield crashes("file log to RocksDB", of(ROCKSDB_KILLS, scale), seed, crash_run)


def waiting_crashes(seed: int, scale: float) -> Iterator[Part]:
    """Writers killed with batches in memory: half of them fill it, of the others the time runs out."""

    def run(place: Path, seed: int, kills: int) -> Report:
        return crash_run(place, seed, kills, waiting=60 if seed % 2 else 100_000)

    yield crashes("file log to RocksDB, waiting", of(WAITING_KILLS, scale), seed, run)


def swaps(seed: int, scale: float) -> Iterator[Part]:
    """Bundles swapped under load, damaged ones among them."""
    with serving() as (bundle, place):
        yield SwapRun(bundle, place, of(CORRUPT_BUNDLES, scale)).run(of(SWAPS, scale), of(SWAP_REQUESTS, scale))


def serving_kills(seed: int, scale: float) -> Iterator[Part]:
    """Recommenders and the history writer killed under load."""
    with serving() as (bundle, place):
        yield recommender_kills(bundle, place / "recommenders", of(RECOMMENDER_KILLS, scale), seed)
        yield writer_kills(bundle, place / "writers", of(WRITER_KILLS, scale), seed)


def overload(seed: int, scale: float) -> Iterator[Part]:
    """1, 2, 5 and 10 times what the service can do."""
    with serving() as (_, place):
        yield OverloadRun(heavy_bundle(place), place).run(OVERLOAD_SECONDS, of(OVERLOAD_ROUNDS, scale))


def backlogs(seed: int, scale: float) -> Iterator[Part]:
    """A backlog in Kafka before history writers that follow their lag."""
    with serving() as (bundle, place):
        broker, server = KafkaBroker(place / "kafka"), RedisServer(place / "redis")
        broker.start()
        server.start()
        try:
            broker.create_topic(TOPIC, PARTITIONS)
            broker.create_topic(LETTERS)
            yield backlog(bundle, place, broker.bootstrap, server.url, of(BACKLOG_EVENTS, scale))
        finally:
            broker.kill()
            server.kill()


def soaking(seed: int, scale: float) -> Iterator[Part]:
    """A long time at a load that the service can bear."""
    with serving() as (bundle, place):
        yield soak(bundle, place, of(SOAK_SECONDS, scale), SOAK_RATE)


@contextmanager
def serving() -> Iterator[tuple[Path, Path]]:
    """Ray, a small bundle, and a place for what a service keeps."""
    with tempfile.TemporaryDirectory() as directory, small_ray():
        place = Path(directory) / "service"
        place.mkdir()
        yield tiny_bundle(Path(directory)), place


PARTS: dict[str, Callable[[int, float], Iterator[Part]]] = {
    "rocksdb": rocksdb_crashes,
    "waiting": waiting_crashes,
    "redis": redis_crashes,
    "kafka": kafka_crashes,
    "growth": growth,
    "files": files,
    "zombies": zombies,
    "swaps": swaps,
    "serving-kills": serving_kills,
    "overload": overload,
    "backlog": backlogs,
    "soak": soaking,
}


def main(description: str) -> int:
    """Run the parts, print the table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of trials; .1 for a tenth of them")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    done = [part for name in options.part for part in PARTS[name](options.seed, options.scale)]
    say = sys.stdout.write
    say(f"{'what':40} {'n':>6} {'diverged':>9} {'95 % bound':>11} {'seconds':>8}\n")
    for part in done:
        say(f"{part.name:40} {part.trials:>6} {part.faults.total():>9} {part.bound:>11.2%} {part.seconds:>8.0f}\n")
        for name, count in sorted(part.details.items()):
            say(f"    {name:42} {count:>10,}\n")
        for name, count in sorted(part.faults.items()):
            say(f"    ! {name:40} {count:>10,}\n")
        for note in part.notes:
            say(f"    ! {note}\n")
    if options.json:
        options.json.write_text(json.dumps([vars(part) for part in done], indent=1))
    return 1 if any(part.faults for part in done) else 0
