"""Joint refit of codewords: never worse, the same bytes for any spread of the rows, and its sums against plain fp64."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from codebook_workers import clustered, run_threads
from torch import Tensor

from hymirec.codebook import IdentityReducer, Reducer, ResidualCodebook
from hymirec.codebook.refit import _code, _refit, refit_codebook
from hymirec.errors import ModelError, NonFiniteEmbeddingError

ALONE = IdentityReducer()


def chunks(x_ND: Tensor, size: int = 300) -> Callable[[], Iterable[Tensor]]:
    return lambda: x_ND.split(size)


def start(layers: int = 3, centroids: int = 20, width: int = 24, refit: bool = True) -> ResidualCodebook:
    rows = torch.from_numpy(clustered(layers * centroids, width, seed=5))
    return ResidualCodebook(rows.view(layers, centroids, width), {"refit": refit, "balance": "none"})


def unit(x_ND: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x_ND.double(), dim=1)


@pytest.mark.parametrize("beam", [1, 4])
def test_every_round_that_stays_is_better_and_the_best_is_returned(beam: int) -> None:
    x, codebook = torch.from_numpy(clustered(1500, 24)), start()
    seen: list[tuple[int, ResidualCodebook, float]] = []
    found = refit_codebook(codebook, chunks(x), ALONE, 4, beam, on_round=lambda *round: seen.append(round))
    cosines = [cosine for _, _, cosine in seen]
    assert [number for number, _, _ in seen] == list(range(len(seen)))
    assert seen[0][1] is codebook
    best = int(np.argmax(cosines))
    assert cosines[: best + 1] == sorted(cosines[: best + 1])
    assert torch.equal(found.centroids_LKD, seen[best][1].centroids_LKD)
    assert cosines[best] > cosines[0] + 0.02
    assert found.info == codebook.info
    decoded = found.decode(*found.encode(x, beam))
    assert cosines[best] == pytest.approx(float(torch.cosine_similarity(decoded, x).mean()), abs=1e-6)


@pytest.mark.parametrize("refit", [False, True])
def test_refitting_every_layer_never_raises_the_squared_error(refit: bool) -> None:
    x, codebook = torch.from_numpy(clustered(1500, 24)), start(refit=refit)
    for _ in range(3):
        coded = _code(codebook, chunks(x), ALONE, 1, None)
        codes = torch.from_numpy(np.concatenate(coded.codes).astype(np.int64))
        before = unit(x) - codebook.decode(codes, torch.from_numpy(np.concatenate(coded.magnitudes)))
        centroids = _refit(codebook, chunks(x), ALONE, coded)
        codebook = ResidualCodebook(centroids, codebook.info)
        after = unit(x) - codebook.decode(codes, torch.from_numpy(np.concatenate(coded.magnitudes)))
        assert float((after**2).sum()) <= float((before**2).sum()) * (1 + 1e-6)


def test_a_layer_alone_is_fitted_to_the_weighted_mean_of_its_rows() -> None:
    x, codebook = torch.from_numpy(clustered(400, 24)), start(1, 6)
    coded = _code(codebook, chunks(x), ALONE, 1, None)
    code, weight = coded.codes[0][:, 0], coded.magnitudes[0][:, 0].astype(np.float64)
    code = np.concatenate(coded.codes)[:, 0]
    weight = np.concatenate(coded.magnitudes)[:, 0].astype(np.float64)
    rows = unit(x).numpy()
    found = _refit(codebook, chunks(x), ALONE, coded)[0].numpy()
    for k in range(6):
        expected = (weight[code == k, None] * rows[code == k]).sum(0)
        if (code == k).sum() > 1:
            assert np.allclose(found[k], expected / np.linalg.norm(expected), atol=1e-5)


def test_a_centroid_with_too_few_rows_keeps_its_place() -> None:
    codebook = start(1, 4, 8)
    # The last centroid serves one row, the others none but the first.
    x = torch.cat([codebook.centroids_LKD[0, :1].repeat(9, 1), codebook.centroids_LKD[0, 3:]])
    x = x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    coded = _code(codebook, chunks(x), ALONE, 1, None)
    found = _refit(codebook, chunks(x), ALONE, coded)
    assert torch.equal(found[0, 1:], codebook.centroids_LKD[0, 1:])
    assert not torch.equal(found[0, 0], codebook.centroids_LKD[0, 0])


def test_any_number_of_workers_chunk_size_and_order_give_the_same_bytes() -> None:
    x, codebook = torch.from_numpy(clustered(1203, 24)), start()
    expected = refit_codebook(codebook, chunks(x), ALONE, 2, 2).centroids_LKD
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    for world in (1, 2, 4):
        shards = [x[order][rank::world] for rank in range(world)]

        def work(reducer: Reducer, shards: list[Tensor] = shards) -> ResidualCodebook:
            return refit_codebook(codebook, chunks(shards[reducer.rank], 97), reducer, 2, 2)

        for found in run_threads(world, work):
            assert torch.equal(found.centroids_LKD, expected)


def test_the_length_of_rows_and_zero_rows_count_for_nothing() -> None:
    x, codebook = torch.from_numpy(clustered(600, 24)), start()
    stretched = torch.cat([x * 2.0 ** torch.arange(-5, 5).repeat(60)[:, None], torch.zeros(7, 24)])
    cosines: list[float] = []
    found = [
        refit_codebook(codebook, chunks(rows), ALONE, 1, on_round=lambda n, c, cosine: cosines.append(cosine))
        for rows in (x, stretched)
    ]
    assert torch.equal(found[0].centroids_LKD, found[1].centroids_LKD)
    assert cosines[:2] == cosines[2:]


def test_no_round_and_no_rows() -> None:
    codebook = start()
    x = torch.from_numpy(clustered(50, 24))
    assert refit_codebook(codebook, chunks(x), ALONE, 0) is codebook
    with pytest.raises(ModelError, match="at least one row"):
        refit_codebook(codebook, chunks(0 * x), ALONE, 1)
    x[41, 2] = torch.nan
    with pytest.raises(NonFiniteEmbeddingError, match="row 41 "):
        refit_codebook(codebook, chunks(x, 10), ALONE, 1)


def test_an_empty_shard_takes_part() -> None:
    x, codebook = torch.from_numpy(clustered(200, 24)), start()
    expected = refit_codebook(codebook, chunks(x), ALONE, 1).centroids_LKD

    def work(reducer: Reducer) -> ResidualCodebook:
        return refit_codebook(codebook, chunks(x) if reducer.rank else list, reducer, 1)

    assert all(torch.equal(found.centroids_LKD, expected) for found in run_threads(2, work))
