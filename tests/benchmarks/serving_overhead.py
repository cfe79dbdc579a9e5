"""What the service costs beyond the model: CPU time of a recommendation, against the same passes in a plain loop.

Ours is everything from the bytes of a request to the bytes of its reply, without a socket: parsing, the history from
RocksDB, the cached coarse interests, the line before the model, the reply. The peer is the model's forward pass and the
search alone, on prepared tensors and in the very batches that the service made. A closed loop of clients, one thread
for the model. Beside the figures: what a request waits for, by stage. `HYMIREC_BUNDLE` names a bundle; without it, one
of the size of the demo's with fresh weights.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import faiss
import numpy as np
import torch
from bench_kit import Figure, compare_timed, main
from patience import until
from service_kit import BASE_TS, LocalService, Recorder, event, service_config
from serving_bundle import HISTORY, serving_bundle

from hymirec import HyMiRec
from hymirec.catalog.keys import item_keys
from hymirec.config import LimitsConfig
from hymirec.retrieval import Bonus
from hymirec.telemetry import BATCH_REQUESTS, STAGE_SECONDS

USERS, REQUESTS, K, NOW = 64, 320, 20, BASE_TS + 1_000_000
# The service may cost half as much again as the model and the search.
GOAL = 1 / 1.5
STAGES = ("history", "recommender", "wait", "coarse", "model", "index")


class Clients:
    """Some clients, each of which asks again as soon as it has its answer."""

    def __init__(self, service: LocalService, heard: Recorder, bodies: list[bytes]) -> None:
        self._service, self._heard, self._bodies = service, heard, bodies
        self.batches: list[int] = []
        self.seconds: list[float] = []

    def ask(self, clients: int) -> float:
        """CPU seconds of all requests."""
        self._heard.values.clear()
        self.seconds = []
        before = time.process_time()
        self._service.run(self._all(clients))
        spent = time.process_time() - before
        self.batches = [int(size) for size in self._heard.of(BATCH_REQUESTS)]
        assert sum(self.batches) == REQUESTS
        return spent

    async def _all(self, clients: int) -> None:
        left = iter(range(REQUESTS))

        async def client() -> None:
            for number in left:
                begun = time.perf_counter()
                reply = json.loads(await post(self._service.api, self._bodies[number % USERS]))
                assert (reply["reason"], len(reply["items"])) == ("full", K)
                self.seconds.append(time.perf_counter() - begun)

        await asyncio.gather(*(client() for _ in range(clients)))

    def told(self) -> str:
        """Latency of the last call, and of each stage, in milliseconds."""

        def quantiles(name: str, values: list[float]) -> str:
            found = np.quantile(values, (0.5, 0.95, 0.99)) * 1e3 if values else (0, 0, 0)
            return f"{name} " + "/".join(f"{value:.1f}" for value in found)

        parts = [quantiles(name, self._heard.of(STAGE_SECONDS, stage=name)) for name in STAGES]
        mean = sum(self.batches) / len(self.batches)
        return f"  ms p50/p95/p99: {quantiles('total', self.seconds)}; {'; '.join(parts)}; mean batch {mean:.1f}\n"


async def post(app: Any, body: bytes) -> bytes:
    """One recommendation, straight into the application."""
    headers = [(b"host", b"127.0.0.1"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/recommend", "raw_path": b"/v1/recommend", "scheme": "http"}
    scope |= {"http_version": "1.1", "query_string": b"", "headers": headers, "client": ("127.0.0.1", 1)}
    given = [{"type": "http.request", "body": body}]
    sent: list[Any] = []

    async def receive() -> Any:
        return given.pop() if given else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent
    return b"".join(message.get("body", b"") for message in sent[1:])


class Prepared(NamedTuple):
    """Tensors of one user's request."""

    known: Any
    coarse: torch.Tensor
    bonus: Bonus


class PlainLoop:
    """The same forward passes and searches, in batches of given sizes."""

    def __init__(self, model: HyMiRec, histories: list[list[tuple[str, int]]], with_coarse: bool) -> None:
        self._model, self._with_coarse = model, with_coarse
        self._users: list[Prepared] = []
        for history in histories:
            keys, ts = item_keys(item for item, _ in history), np.array([at for _, at in history])
            coarse = torch.from_numpy(model.coarse_keys(keys, ts, NOW).vectors)
            known = model._known(keys, ts, NOW)
            given = [*(model._popular_now([NOW]) or ()), *(model._beside([known.recent]) or ())]
            bonus = sum(given, start=Bonus(known.items[:0], np.empty(0, np.float32)))
            self._users.append(Prepared(known, coarse, bonus))

    def run(self, sizes: list[int]) -> float:
        """CPU seconds of the passes."""
        spent, start = 0.0, 0
        for size in sizes:
            chosen = [self._users[(start + i) % USERS] for i in range(size)]
            start += size
            spent += self._pass(chosen)
        return spent

    def _pass(self, chosen: list[Prepared]) -> float:
        net, index = self._model.bundle.model, self._model.bundle.index
        recent = self._model._padded([(user.known.recent, user.known.recent_ts) for user in chosen])
        long = self._model._padded([(user.known.long, user.known.long_ts) for user in chosen])
        boundary = torch.tensor([user.known.boundary for user in chosen])
        cached, now = torch.stack([user.coarse for user in chosen]), torch.full((len(chosen),), NOW)
        seen = [user.known.items for user in chosen]
        before = time.process_time()
        with torch.inference_mode():
            coarse = net.coarse(*long, boundary) if self._with_coarse else cached
            interests = net.interests(coarse, *recent, now).numpy()
        index.search(interests, K, seen, [user.bonus for user in chosen])
        return time.process_time() - before


def one_thread() -> None:
    """As a recommender replica with `threads: 1` has it."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def histories_of(model: HyMiRec) -> list[list[tuple[str, int]]]:
    """Each user's (item id, time), oldest first."""
    rng, catalog = np.random.default_rng(0), model.bundle.catalog
    chosen = [rng.choice(catalog.size, min(HISTORY, catalog.size // 2), replace=False) for _ in range(USERS)]
    return [[(str(catalog.item_id(int(i))), BASE_TS + at * 3_600) for at, i in enumerate(items)] for items in chosen]


def figures() -> Iterator[Figure]:
    """One client and sixteen; users of the log and histories in the request; together and one by one."""
    one_thread()
    with tempfile.TemporaryDirectory() as directory:
        bundle, base, heard = serving_bundle(Path(directory)), Path(directory), Recorder()
        # On a busy machine a time-out would be what is measured.
        limits = LimitsConfig(max_ongoing_requests=64, stage_timeout_seconds=60, request_timeout_seconds=60)
        # What is popular now stays that of the bundle, as in the plain loop.
        service = LocalService(service_config(bundle, base, limits=limits, trend_backlog=0), base, observe=heard)
        model = service.ranker._model
        histories = histories_of(model)
        for user, history in enumerate(histories):
            service.post(*(event(i, f"u{user}", item, at) for i, (item, at) in enumerate(history)))
        until(lambda: len(service.writer._cache) == USERS, 300)
        of_the_log = [json.dumps({"user_id": f"u{user}", "k": K, "now": NOW}).encode() for user in range(USERS)]
        given = [json.dumps({"history": history, "k": K, "now": NOW}).encode() for history in histories]
        for name, bodies, with_coarse, clients in (
            ("a user of the log, 1 client", of_the_log, False, 1),
            ("a user of the log, 16 clients", of_the_log, False, 16),
            ("a history in the request, 16 clients", given, True, 16),
        ):
            asking, plain = Clients(service, heard, bodies), PlainLoop(model, histories, with_coarse)

            def passes(asking: Clients = asking, plain: PlainLoop = plain) -> float:
                return plain.run(asking.batches)

            figure = f"CPU of {REQUESTS} recommendations against forward and search alone, {name}"
            yield compare_timed(figure, partial(asking.ask, clients), passes, GOAL)
            sys.stdout.write(asking.told())
        asking, line = Clients(service, heard, of_the_log), service.ranker._line

        def bounded(most_events: int) -> float:
            line._most_events = most_events
            return asking.ask(16)

        together, alone = partial(bounded, limits.max_batch_events), partial(bounded, 1)
        yield compare_timed("the same recommendations together against one by one, 16 clients", together, alone, 1.2)
        sys.stdout.write(asking.told())
        service.close()


if __name__ == "__main__":
    main(figures)
