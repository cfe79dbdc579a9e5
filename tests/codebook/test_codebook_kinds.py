"""Plain residual k-means and raw vectors: what they promise, and a whole run with each."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from codebook_workers import clustered
from sklearn.cluster import KMeans
from tiny_run import build_tiny_run

from hymirec.artifacts import verify
from hymirec.bundle import Bundle
from hymirec.catalog.parts import part_name
from hymirec.catalog.vectors import read_vectors, write_vectors
from hymirec.codebook import (
    EuclideanCodebook,
    IdentityReducer,
    ItemCodes,
    ItemQuantizer,
    RawVectors,
    ResidualCodebook,
    fit_variant,
    open_codebook,
    report_directory,
)
from hymirec.codebook.magnitudes import UnitMagnitudes
from hymirec.codebook.packed import unpack_rows
from hymirec.config import CodebookConfig
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError, ConfigError, ModelError, NonFiniteEmbeddingError

ROWS, WIDTH = 600, 12
CONFIG = CodebookConfig(kind="euclidean", layers=2, centroids=24, iterations=10)


class ThreadReducer:
    """Workers as threads of this process, which meet at every exchange."""

    def __init__(self, rank: int, world: int, board: list[torch.Tensor | None], barrier: threading.Barrier) -> None:
        self.rank, self.world, self._board, self._barrier = rank, world, board, barrier

    def _meet(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        self._board[self.rank] = tensor.clone()
        self._barrier.wait()
        everything = [value for value in self._board if value is not None]
        self._barrier.wait()
        return everything

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(torch.stack(self._meet(tensor)).sum(0))

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._meet(tensor))


def fit_alone(rows: np.ndarray, config: CodebookConfig = CONFIG) -> EuclideanCodebook:
    codebook = fit_variant(rows, np.arange(len(rows)), config, 3, IdentityReducer())
    assert isinstance(codebook, EuclideanCodebook)
    return codebook


def test_any_number_of_workers_fits_the_same_bytes(tmp_path: Path) -> None:
    rows = clustered(ROWS, WIDTH)
    fit_alone(rows).save_pretrained(tmp_path / "alone")
    order = np.random.default_rng(0).permutation(ROWS)
    shares = [order[:50], order[50:400], order[400:]]
    board: list[torch.Tensor | None] = [None] * 3
    barrier = threading.Barrier(3, timeout=60)

    def work(rank: int) -> None:
        reducer = ThreadReducer(rank, 3, board, barrier)
        fit_variant(rows[shares[rank]], shares[rank], CONFIG, 3, reducer).save_pretrained(tmp_path / str(rank))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(3):
        for name in ("config.json", "codebook.safetensors"):
            assert (tmp_path / str(rank) / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_it_is_as_good_as_lloyds_iteration_elsewhere() -> None:
    rows = clustered(ROWS, WIDTH)
    codebook = fit_alone(rows, CodebookConfig(kind="euclidean", layers=1, centroids=24, iterations=25))
    items = codebook.encode_items(rows)
    left = rows - codebook.centroids_LKD[0].numpy()[items.codes_NL[:, 0]]
    errors = [
        KMeans(24, init="random", n_init=1, max_iter=25, random_state=seed).fit(rows).inertia_ for seed in range(8)
    ]
    assert (left**2).sum() <= max(errors) * 1.02


def test_every_layer_takes_the_nearest_centroid_and_subtracts_it() -> None:
    rows, codebook = clustered(ROWS, WIDTH), fit_alone(clustered(ROWS, WIDTH))
    codes = codebook.encode(rows).numpy()
    residual = rows.astype(np.float64)
    for layer, table in enumerate(codebook.centroids_LKD.numpy().astype(np.float64)):
        distances = ((residual[:, None] - table[None]) ** 2).sum(2)
        chosen = distances[np.arange(ROWS), codes[:, layer]]
        assert (chosen <= distances.min(1) + 1e-4).all()
        residual -= table[codes[:, layer]]
    # Fewer than the layers before it leave.
    assert (residual**2).sum() < 0.5 * ((rows - rows.mean(0)) ** 2).sum()


def test_a_centroid_is_the_mean_of_its_rows() -> None:
    rows = np.array([[0, 0.1], [0.2, -0.1], [10, 0], [10.4, 0.2]], np.float32)
    codebook = fit_alone(rows, CodebookConfig(kind="euclidean", layers=1, centroids=2, iterations=5))
    means = sorted(codebook.centroids_LKD[0].tolist())
    assert np.allclose(means, [[0.1, 0.0], [10.2, 0.1]], atol=0.01)
    assert codebook.info["usage"][0]["gini"] == 0.0


def test_equal_and_few_rows_are_fitted_and_bad_ones_named() -> None:
    equal = fit_alone(np.ones((5, 3), np.float32))
    assert (equal.layers, equal.centroids) == (2, 5)
    assert torch.allclose(equal.lookup(equal.encode_items(np.ones((1, 3))))[0, 0], torch.ones(3), atol=1e-3)
    assert fit_alone(np.zeros((2, 3), np.float32)).centroids_LKD.abs().sum() == 0
    with pytest.raises(ModelError, match="at least one row"):
        fit_alone(np.empty((0, 3), np.float32))
    rows = np.ones((9, 3), np.float32)
    rows[7, 1] = np.inf
    with pytest.raises(NonFiniteEmbeddingError, match="index 7 "):
        fit_alone(rows)
    with pytest.raises(NonFiniteEmbeddingError, match="row 7 "):
        equal.encode(rows)
    with pytest.raises(ConfigError, match="fit_codebook"):
        fit_variant(rows, np.arange(9), CodebookConfig(), 3, IdentityReducer())


@pytest.mark.parametrize("kind", ["euclidean", "none"])
def test_items_come_back_from_their_parts(kind: str, tmp_path: Path) -> None:
    rows = clustered(ROWS, WIDTH)
    for number, start in enumerate(range(0, ROWS, 250)):
        index = np.arange(start, min(start + 250, ROWS), dtype=np.int32)
        write_vectors(tmp_path / "embeddings" / part_name(number), index, rows[index])
    vectors = read_vectors(tmp_path / "embeddings")
    config = CONFIG.model_copy(update={"kind": kind})
    fit_variant(vectors, np.arange(ROWS), config, 3, IdentityReducer()).save_pretrained(tmp_path / "codebook")
    codebook = open_codebook(tmp_path / "codebook")
    for part in sorted((tmp_path / "embeddings").iterdir()):
        codebook.code_part(part, tmp_path / "codes" / part.name)
    items, fresh = codebook.open_items(tmp_path / "codes"), codebook.encode_items(vectors)
    assert len(items) == ROWS
    assert np.array_equal(items.codes_NL, fresh.codes_NL)
    assert (items.magnitudes_NL == 1).all()
    lookup = codebook.lookup(items)
    decoded = sum(lookup[layer][items.codes_NL[:, layer].astype(np.int64)] for layer in range(codebook.layers))
    assert isinstance(decoded, torch.Tensor)
    # Two codes of 0..23 are 10 bits.
    assert items.bytes_per_item == (2 if kind == "euclidean" else 2 * WIDTH)
    picked = items.take(np.array([9, 2]))
    if kind == "none":
        assert np.array_equal(decoded.numpy(), vectors)
        assert np.array_equal(codebook.lookup(picked)[0].numpy(), vectors[[9, 2]])
    else:
        assert np.array_equal(picked.codes_NL, items.codes_NL[[9, 2]])
    report = report_directory(tmp_path)
    assert report["kind"] == kind
    assert all("magnitudes" not in row for row in report["per_layer"])
    assert ("usage_argmax" in report["per_layer"][0]) == (kind == "euclidean")
    assert (report["recall_at_100"] == 1.0) == (kind == "none")
    other: ItemQuantizer = RawVectors(WIDTH + 1) if kind == "none" else EuclideanCodebook(torch.zeros(2, 25, WIDTH))
    with pytest.raises(ArtifactDamagedError, match="run the codes step again"):
        other.open_items(tmp_path / "codes")


def test_magnitudes_that_are_not_stored_must_be_one() -> None:
    codes, ones = np.array([[3, 1], [0, 2]]), np.ones((2, 2), np.float32)
    items = ItemCodes.of(codes, ones, 4, UnitMagnitudes())
    assert (items.bytes_per_item, items.codes_NL.tolist()) == (1, codes.tolist())
    assert (items.magnitudes_NL == 1).all()
    assert torch.equal(unpack_rows(torch.from_numpy(items.packed_NR), items.layout)[1], torch.ones(2, 2))
    with pytest.raises(ModelError, match="row 1;"):
        ItemCodes.of(codes, ones * [[1], [2]], 4, UnitMagnitudes())


def test_the_class_is_picked_by_model_type_and_strangers_are_refused(tmp_path: Path) -> None:
    made: dict[str, ItemQuantizer] = {
        "a": ResidualCodebook(torch.ones(1, 2, 3)),
        "b": EuclideanCodebook(torch.zeros(1, 2, 3), {"iterations": 4}),
        "c": RawVectors(3),
    }
    for name, codebook in made.items():
        codebook.save_pretrained(tmp_path / name)
        again = open_codebook(tmp_path / name)
        assert type(again) is type(codebook)
        assert (again.kind, again.width, again.layers) == (codebook.kind, 3, 1)
        again.save_pretrained(tmp_path / "again")
        for file in (tmp_path / name).iterdir():
            assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    with pytest.raises(ArtifactMissingError):
        open_codebook(tmp_path / "nothing")
    (tmp_path / "c" / "config.json").write_text('{"model_type": "x"}')
    with pytest.raises(ArtifactDamagedError, match="'x'"):
        open_codebook(tmp_path / "c")
    (tmp_path / "c" / "config.json").write_text('{"model_type": "hymirec_raw_vectors", "format": 1, "width": 0}')
    with pytest.raises(ArtifactDamagedError, match="no raw vectors"):
        open_codebook(tmp_path / "c")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    (tmp_path / "b" / "config.json").write_text(json.dumps(config | {"centroids": 99}))
    with pytest.raises(ArtifactDamagedError, match="99"):
        open_codebook(tmp_path / "b")
    (tmp_path / "b" / "codebook.safetensors").unlink()
    with pytest.raises(ArtifactMissingError, match=r"codebook\.safetensors"):
        open_codebook(tmp_path / "b")


@pytest.mark.parametrize("kind", ["euclidean", "none"])
def test_a_run_with_this_kind_ends_in_an_evaluated_bundle_that_reads_its_items(kind: str, tmp_path: Path) -> None:
    run = build_tiny_run(tmp_path / kind, kind=kind)
    verify(run / "bundle")
    rows = json.loads((run / "bundle" / "metrics.json").read_text())["models"]
    assert rows[0]["model"] == "HyMiRec"
    model = Bundle.open(run / "bundle").model
    items = torch.arange(8).view(1, 8)
    ts, mask, now = 1_700_000_000 + 3600 * items, torch.ones(1, 8, dtype=torch.bool), torch.tensor([1_700_100_000])
    # A model this small and this little trained ranks alike whatever its light tower reads, so metrics cannot tell
    # whether codes arrive: its coarse interests can. They are those of the items as this kind keeps them.
    codebook = open_codebook(run / "bundle" / "codebook")
    stored = codebook.open_items(run / "bundle" / "codes")
    lookup = codebook.lookup(stored)
    events = sum(lookup[layer][stored.codes_NL[:8, layer].astype(np.int64)] for layer in range(codebook.layers))
    assert isinstance(events, torch.Tensor)
    assert model.light is not None
    with torch.no_grad():
        coarse = model.coarse(items, ts, mask, now)
        other = model.coarse(items + 8, ts, mask, now)
        served = model.codebook_LKX
        read = sum(served[layer][stored.codes_NL[:8, layer].astype(np.int64)] for layer in range(codebook.layers))
        assert torch.allclose(read, events @ model.light.input_HD.T, atol=1e-5)
    assert float((coarse - other).abs().max()) > 1e-3
