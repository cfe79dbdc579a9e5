"""What stands behind a recommendation: for people who look, not for the path of a request.

N items of the reply  H items of the history  S interests  W item width
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hymirec.answers import Query, Recommendations
from hymirec.inference import NO_KEYS, HyMiRec
from hymirec.service.models import ExplainedInterest, ExplainedItem, ExplainReply, FoundItem, NearItem, PastItem

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
# Different items of the history, the newest, that are named and mapped.
PAST_ITEMS = 60
Spot = tuple[float, float]


def explain(model: HyMiRec, query: Query, nearest: int, finds: int) -> ExplainReply:
    """A reply, a map of interests, items and history, and of each interest so many `nearest` items and lone `finds`."""
    catalog, index = model.bundle.catalog, model.bundle.index
    found = model.recommend_batch([replace(query, coarse=None)])[0]
    interests_SW = model.interests_keys(query.keys, query.ts, query.now)
    strengths = np.linalg.norm(interests_SW, axis=1)
    past, past_ts = _newest(catalog.indices_of_keys(query.keys), query.ts)
    items = np.array([catalog.index_of(str(item.item_id)) for item in found.items], np.int64)
    past_HW, items_NW = index.vectors(past), index.vectors(items)
    spots, share = project(np.concatenate([_unit(interests_SW), items_NW, past_HW]))
    titles = [catalog.titles[int(i)].as_py() or "" for i in past]
    ids = [str(catalog.item_id(int(i))) for i in past]
    cosines_SH = _unit(interests_SW) @ past_HW.T
    alone = _found_alone(model, query, _unit(interests_SW), finds)
    split = len(interests_SW)
    return ExplainReply(
        items=_items(found, interests_SW, items_NW, spots[split:]),
        interests=[
            ExplainedInterest(
                number=number,
                strength=float(strengths[number]),
                nearest=[
                    NearItem(item_id=ids[i], title=titles[i], ts=int(past_ts[i]), cosine=float(cosines[i]))
                    for i in np.argsort(-cosines, kind="stable")[:nearest]
                ],
                finds=alone[number],
                x=spots[number][0],
                y=spots[number][1],
            )
            for number, cosines in enumerate(cosines_SH)
        ],
        history=[
            PastItem(item_id=own, title=title, ts=int(at), x=x, y=y)
            for own, title, at, (x, y) in zip(ids, titles, past_ts, spots[split + len(items) :], strict=True)
        ],
        map_share=share,
        bundle=found.bundle,
        degraded=found.degraded,
        reason="cold_start" if found.reason == "cold_start" else "full",
        unknown_items=found.unknown_items,
    )


def project(vectors_MW: Floats) -> tuple[list[Spot], float]:
    """Places (M, 2), each -1..1, along the two directions in which vectors differ most; and their share of variance."""
    centred = vectors_MW - vectors_MW.mean(axis=0) if len(vectors_MW) else vectors_MW
    variance = float((centred**2).sum())
    if variance == 0:
        return [(0.0, 0.0)] * len(vectors_MW), 1.0
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(centred), 2), np.float64)
    flat = centred @ directions[:2].T
    places[:, : flat.shape[1]] = flat
    share = float((places**2).sum()) / variance
    # Rounding may exceed the bounds that callers rely on.
    places = np.clip(places / np.abs(places).max(), -1, 1)
    return [(float(x), float(y)) for x, y in places], min(1.0, share)


def _newest(indices: Ints, ts: Ints) -> tuple[Ints, Ints]:
    """The newest different known items and when each was last there, oldest first."""
    order = np.argsort(ts, kind="stable")
    indices, times = indices[order], np.asarray(ts)[order]
    indices, times = indices[indices >= 0], times[indices >= 0]
    _, last = np.unique(indices[::-1], return_index=True)
    kept = np.sort(len(indices) - 1 - last)[-PAST_ITEMS:]
    return indices[kept], times[kept]


def _found_alone(model: HyMiRec, query: Query, unit_SW: Floats, finds: int) -> list[list[FoundItem]]:
    if not len(unit_SW) or not finds:
        return [[] for _ in unit_SW]
    catalog, index = model.bundle.catalog, model.bundle.index
    left_out = catalog.indices_of_keys(np.concatenate([query.exclude, query.keys if query.filter_seen else NO_KEYS]))
    hits = index.search(unit_SW[:, None], min(finds, catalog.size), [left_out[left_out >= 0]] * len(unit_SW))
    return [
        [
            FoundItem(
                item_id=str(catalog.item_id(int(i))), title=catalog.titles[int(i)].as_py() or "", cosine=float(score)
            )
            for i, score in zip(row.items, row.scores, strict=True)
        ]
        for row in hits
    ]


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _items(found: Recommendations, interests_SW: Floats, items_NW: Floats, spots: list[Spot]) -> list[ExplainedItem]:
    explained = []
    for row, item in enumerate(found.items):
        similarity = None if item.interest is None else float(items_NW[row] @ interests_SW[item.interest])
        explained.append(
            ExplainedItem(
                item_id=str(item.item_id),
                score=item.score,
                interest=item.interest,
                title=item.title or "",
                similarity=similarity,
                popular_now=None if similarity is None else max(0.0, item.score - similarity),
                x=spots[row][0],
                y=spots[row][1],
            )
        )
    return explained
