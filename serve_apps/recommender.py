"""The recommender deployment: a bundle in memory, swapped by one reference."""

from __future__ import annotations

import asyncio
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from ray import serve

from hymirec.catalog.events import action_name
from hymirec.catalog.keys import item_keys
from hymirec.config import ServiceConfig
from hymirec.errors import BundleError, HyMiRecError, UnknownItemError
from hymirec.inference import Coarse, HyMiRec, Recommendations
from hymirec.service.models import HistoryEvent, ItemReply, ItemsReply
from hymirec.service.release import open_active

FOUND_ITEMS = 20


@serve.deployment
class Recommender:
    """Stateless but for the bundle. Every method uses the bundle it finds when it begins, to its end."""

    def __init__(self, config: ServiceConfig) -> None:
        torch.set_num_threads(config.threads)
        faiss.omp_set_num_threads(config.threads)
        self._model = open_active(config.bundle)
        self._staged: HyMiRec | None = None

    async def recommend(
        self,
        keys: NDArray[np.uint64],
        ts: NDArray[np.int64],
        k: int,
        now: int,
        exclude: list[str | int],
        filter_seen: bool,
        coarse: Coarse | None,
        stale_ok: bool,
    ) -> Recommendations:
        """See `HyMiRec.recommend_keys`. Coarse interests of another bundle are not used."""
        model = self._model
        if coarse is not None and coarse.bundle != model.bundle_id:
            coarse = None
        return await asyncio.to_thread(
            model.recommend_keys,
            keys,
            ts,
            k,
            now=now,
            exclude=item_keys(exclude),
            filter_seen=filter_seen,
            coarse=coarse,
            stale_ok=stale_ok,
        )

    async def coarse(self, keys: NDArray[np.uint64], ts: NDArray[np.int64], now: int) -> Coarse:
        """See `HyMiRec.coarse_keys`."""
        return await asyncio.to_thread(self._model.coarse_keys, keys, ts, now)

    async def popular(self, k: int) -> Recommendations:
        """What is answered when nothing better can be had in time."""
        return self._model.popular(k, np.empty(0, np.int64), "popular", degraded=True)

    async def describe(
        self, keys: NDArray[np.uint64], ts: NDArray[np.int64], actions: NDArray[np.uint8]
    ) -> list[HistoryEvent]:
        """Records of a history with ids and titles, where the bundle knows them."""
        catalog = self._model.bundle.catalog
        events = []
        for index, at, action in zip(catalog.indices_of_keys(keys), ts, actions, strict=True):
            known = int(index) >= 0
            events.append(
                HistoryEvent(
                    item_id=str(catalog.item_id(int(index))) if known else None,
                    title=catalog.titles[int(index)].as_py() if known else None,
                    ts=int(at),
                    action=action_name(int(action)),
                )
            )
        return events

    async def item(self, item_id: str) -> ItemReply:
        """One item. Raises UnknownItemError."""
        index = self._model.bundle.catalog.index_of(item_id)
        if index is None:
            raise UnknownItemError(f"item {item_id!r} is not in the bundle; it appears with the next one")
        return self._item(index)

    async def find(self, query: str) -> ItemsReply:
        """Items whose title holds every word, most popular first."""
        return await asyncio.to_thread(self._find, query)

    def _find(self, query: str) -> ItemsReply:
        model = self._model
        words = query.lower().split()
        titles = model.bundle.catalog.titles
        found = []
        for index in model.bundle.popular:
            title = titles[int(index)].as_py().lower()
            if all(word in title for word in words):
                found.append(self._item(int(index)))
                if len(found) == FOUND_ITEMS:
                    break
        return ItemsReply(items=found, bundle=model.bundle_id)

    def _item(self, index: int) -> ItemReply:
        catalog = self._model.bundle.catalog
        return ItemReply(
            item_id=str(catalog.item_id(index)),
            title=catalog.titles[index].as_py(),
            popularity=int(catalog.popularity[index]),
        )

    async def bundle_id(self) -> str:
        """Id of the bundle that serves."""
        return self._model.bundle_id

    async def stage(self, path: str) -> str:
        """Load a bundle beside the one that serves, verify it, and ask it something; returns its id.

        Errors come back as text, so that the caller hears of each replica.
        """
        try:
            self._staged = await asyncio.to_thread(self._smoked, path)
        except HyMiRecError as e:
            return f"error: {e}"
        return self._staged.bundle_id

    @staticmethod
    def _smoked(path: str) -> HyMiRec:
        model = HyMiRec.from_pretrained(path)
        catalog = model.bundle.catalog
        history = [catalog.item_id(int(index)) for index in model.bundle.popular[:3]]
        if catalog.size > len(history) and not model.recommend(history, k=1).items:
            raise BundleError(f"{path} is whole but recommends nothing for {history}; it does not serve")
        return model

    async def activate(self, bundle_id: str) -> str:
        """Serve the staged bundle; returns the id of what serves now."""
        if self._staged is not None and self._staged.bundle_id == bundle_id:
            self._model, self._staged = self._staged, None
        return self._model.bundle_id

    def check_health(self) -> Any:
        """Alive as long as there is a bundle."""
        if self._model is None:
            raise BundleError("no bundle")
