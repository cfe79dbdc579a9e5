"""Fitting: the same bits for any workers and any resume, balance, quality, and what degenerate rows give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from codebook_workers import clustered, run_threads
from numpy.typing import NDArray

from hymirec.codebook import FitState, IdentityReducer, Reducer, ResidualCodebook, fit_codebook
from hymirec.codebook.exact import norms
from hymirec.config import CodebookConfig
from hymirec.errors import ArtifactDamagedError, ModelError, NonFiniteEmbeddingError

CONFIG = CodebookConfig(layers=2, centroids=24, iterations=4, slices=20)


def fit(rows: NDArray[np.float32], config: CodebookConfig = CONFIG, seed: int = 3) -> ResidualCodebook:
    return fit_codebook(rows, np.arange(len(rows)), config, seed, IdentityReducer())


def fit_sharded(
    rows: NDArray[np.float32], shards: list[NDArray[np.int64]], config: CodebookConfig = CONFIG
) -> list[ResidualCodebook]:
    def work(reducer: Reducer) -> ResidualCodebook:
        mine = shards[reducer.rank]
        return fit_codebook(rows[mine], mine, config, 3, reducer)

    return run_threads(len(shards), work)


def same(a: ResidualCodebook, b: ResidualCodebook) -> bool:
    return torch.equal(a.centroids_LKD, b.centroids_LKD) and a.info == b.info


def mean_cosine(codebook: ResidualCodebook, rows: NDArray[np.float32]) -> float:
    decoded = codebook.decode(*codebook.encode(rows))
    return float(torch.cosine_similarity(decoded, torch.from_numpy(rows)).mean())


@pytest.mark.parametrize("balance", ["prices", "none"])
@pytest.mark.parametrize("world", [2, 4])
def test_any_number_of_workers_gives_the_same_bits(world: int, balance: str) -> None:
    rows = clustered(700, 20)
    config = CONFIG.model_copy(update={"balance": balance})
    shards = np.array_split(np.arange(len(rows)), world)
    for codebook in fit_sharded(rows, shards, config):
        assert same(codebook, fit(rows, config))


def test_workers_may_hold_any_rows_in_any_order_or_none() -> None:
    rows = clustered(300, 20)
    order = np.random.default_rng(0).permutation(len(rows))
    shards = [order[:250], order[:0], order[250:]]
    assert all(same(codebook, fit(rows)) for codebook in fit_sharded(rows, shards))


def test_kernel_threads_and_chunk_size_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = clustered(2000, 20)
    expected = fit(rows)
    assert same(fit(rows, CONFIG.model_copy(update={"kernel": "float32"})), expected)
    monkeypatch.setattr("hymirec.codebook.kernels.CHUNK_SCORES", 24 * 11)
    assert same(fit(rows, CONFIG.model_copy(update={"kernel": "float32"})), expected)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert same(fit(rows), expected)
    finally:
        torch.set_num_threads(threads)


def test_rows_on_disk_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hymirec.codebook.shard.MEBIBYTE", 256)
    monkeypatch.setattr("hymirec.codebook.shard.CHUNK_BYTES", 1000)
    rows = clustered(700, 20)
    large, small = (fit(rows, CONFIG.model_copy(update={"memory_mb": size})) for size in (4096, 16))
    assert (large.facts["rows_on_disk"], small.facts["rows_on_disk"]) == (False, True)
    assert same(large, small)


def test_magnitude_levels_do_not_depend_on_workers() -> None:
    rows = clustered(3000, 20)
    config = CONFIG.model_copy(update={"magnitudes": "lloyd4"})
    alone = fit(rows, config)
    assert alone.magnitudes.levels_LV is not None
    for codebook in fit_sharded(rows, [np.arange(0, 3000, 2), np.arange(1, 3000, 2)], config):
        assert codebook.magnitudes.levels_LV is not None
        assert np.array_equal(codebook.magnitudes.levels_LV, alone.magnitudes.levels_LV)


@pytest.mark.parametrize("balance", ["prices", "none", "strict"])
def test_resuming_from_any_state_gives_the_same_bits(balance: str, tmp_path: Path) -> None:
    rows, ids = clustered(400, 12), np.arange(400)
    config = CONFIG.model_copy(update={"balance": balance})
    states: list[FitState] = []
    whole = fit_codebook(rows, ids, config, 3, IdentityReducer(), None, states.append)
    assert [(state.layer, state.iteration) for state in states] == [(a, b) for a in range(2) for b in range(1, 5)]
    for number, state in enumerate(states):
        state.save(tmp_path / str(number))
        loaded = FitState.load(tmp_path / str(number))
        assert same(fit_codebook(rows, ids, config, 3, IdentityReducer(), loaded), whole)


def test_a_resume_may_have_another_number_of_workers() -> None:
    rows, ids = clustered(400, 12), np.arange(400)
    states: list[FitState] = []
    whole = fit_codebook(rows, ids, CONFIG, 3, IdentityReducer(), None, states.append)

    def work(reducer: Reducer) -> ResidualCodebook:
        mine = ids[reducer.rank :: 2]
        return fit_codebook(rows[mine], mine, CONFIG, 3, reducer, states[5])

    assert all(same(codebook, whole) for codebook in run_threads(2, work))


def test_a_state_of_another_fit_is_refused() -> None:
    rows, ids = clustered(100, 12), np.arange(100)
    states: list[FitState] = []
    fit_codebook(rows, ids, CONFIG, 3, IdentityReducer(), None, states.append)
    with pytest.raises(ArtifactDamagedError, match="another fit"):
        fit_codebook(rows, ids, CONFIG, 4, IdentityReducer(), states[0])
    with pytest.raises(ArtifactDamagedError, match="another fit"):
        fit_codebook(rows, ids, CONFIG, 3, IdentityReducer(), replace(states[0], owner="x"))


def test_seeds_matter_and_config_matters() -> None:
    rows = clustered(300, 12)
    assert not same(fit(rows, seed=3), fit(rows, seed=4))
    assert not same(fit(rows), fit(rows, CONFIG.model_copy(update={"balance": "none"})))


def test_prices_balance_clustered_data_at_a_small_price() -> None:
    rows = clustered(6000, 24)
    config = CodebookConfig(layers=2, centroids=64)
    balanced, plain = fit(rows, config), fit(rows, config.model_copy(update={"balance": "none"}))
    loads = [layer["max_over_mean"] for layer in balanced.info["usage"]]
    assert max(loads) <= 1.3
    assert max(layer["max_over_mean"] for layer in plain.info["usage"]) > 1.5
    assert mean_cosine(balanced, rows) > mean_cosine(plain, rows) - 0.01


def test_a_fitted_codebook_is_far_better_than_a_random_one() -> None:
    rows = clustered(2000, 24)
    config = CodebookConfig(layers=2, centroids=64)
    random = ResidualCodebook(torch.randn(2, 64, 24, generator=torch.Generator().manual_seed(0)))
    assert mean_cosine(fit(rows, config), rows) > mean_cosine(random, rows) + 0.1


def test_plain_fitting_is_as_good_as_spherical_k_means_of_faiss() -> None:
    rows = clustered(4000, 24)
    ours = mean_cosine(fit(rows, CodebookConfig(layers=1, centroids=64, balance="none", iterations=15)), rows)
    kmeans = faiss.Kmeans(24, 64, niter=15, spherical=True, seed=1, max_points_per_centroid=10_000)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    kmeans.train(unit)
    theirs = float((unit @ kmeans.centroids.T).max(1).mean())
    assert ours > theirs - 0.005


def test_centroids_are_unit_rows() -> None:
    centroids = fit(clustered(300, 12)).centroids_LKD
    assert float((norms(centroids.view(-1, 12)) - 1).abs().max()) < 1e-6


def test_fewer_rows_than_centroids_make_a_smaller_codebook() -> None:
    rows = clustered(7, 12)
    codebook = fit(rows)
    assert tuple(codebook.centroids_LKD.shape) == (2, 7, 12)
    assert mean_cosine(codebook, rows) > 0.999


def test_equal_rows_seed_one_centroid_and_the_others_keep_a_direction() -> None:
    rows = np.repeat(clustered(5, 12), 40, axis=0)
    codebook = fit(rows)
    assert mean_cosine(codebook, rows) > 0.999
    codes, magnitudes = codebook.encode(rows)
    assert len(torch.unique(codes[:, 0])) == 5
    assert torch.equal(codes[::40].repeat_interleave(40, 0), codes)
    # 8-bit rows are 0.6 degrees from the rows that they stand for.
    assert float(magnitudes[:, 1].abs().max()) < 0.02 * float(np.linalg.norm(rows, axis=1).max())


def test_zero_rows_take_no_part() -> None:
    rows = clustered(200, 12)
    padded = np.concatenate([rows, np.zeros((50, 12), np.float32)])
    assert torch.equal(fit(padded).centroids_LKD, fit(rows).centroids_LKD)
    zeros = fit(np.zeros((30, 12), np.float32))
    assert tuple(zeros.centroids_LKD.shape) == (2, 24, 12)
    assert torch.isfinite(zeros.centroids_LKD).all()


def test_one_row_and_one_dimension_are_enough() -> None:
    assert mean_cosine(fit(np.array([[3.0, 4.0]], np.float32)), np.array([[3.0, 4.0]], np.float32)) > 0.9999
    line = np.array([[1.0], [-2.0], [3.0]], np.float32)
    assert mean_cosine(fit(line), line) == pytest.approx(1.0)


def test_no_rows_at_all_are_an_error() -> None:
    with pytest.raises(ModelError, match="at least one row"):
        fit(np.empty((0, 12), np.float32))


def test_a_row_that_is_not_finite_is_named_on_every_worker() -> None:
    rows = clustered(100, 12)
    rows[77, 3] = np.inf
    seen: list[str] = []

    def work(reducer: Reducer) -> None:
        mine = np.arange(100)[reducer.rank :: 2]
        with pytest.raises(NonFiniteEmbeddingError) as error:
            fit_codebook(rows[mine], mine + 1000, CONFIG, 3, reducer)
        seen.append(str(error.value))

    run_threads(2, work)
    assert len(seen) == 2
    assert all("index 1077 " in message for message in seen)


def test_rows_and_numbers_must_match() -> None:
    with pytest.raises(ValueError, match="row_ids"):
        fit_codebook(clustered(5, 3), np.arange(4), CONFIG, 0, IdentityReducer())
