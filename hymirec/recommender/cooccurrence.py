"""Where item vectors start from: items that stand near each other in histories lie near each other.

Positive pointwise mutual information of items within `window` steps (weight 1/distance, context distribution smoothed
with exponent 0.75), factorised by a truncated SVD. The strongest lever on accuracy that the project has measured
(docs/lab-log.md); it costs seconds. N catalogue  W width
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import svds

from hymirec.catalog.prepared import Sequences

CONTEXT_EXPONENT = 0.75


def cooccurrence_counts(sequences: Sequences, items: int, window: int) -> sp.csr_matrix:
    """Symmetric weighted counts (N, N): 1/distance for each pair of a user's training events within the window.

    An item does not co-occur with itself.
    """
    lengths = np.diff(sequences.offsets)
    row = np.repeat(np.arange(len(sequences)), lengths)
    position = np.arange(len(sequences.items)) - sequences.offsets[row]
    kept = position < sequences.n_train[row]
    event, user = sequences.items[kept], row[kept]
    counts = sp.csr_matrix((items, items), dtype=np.float64)
    for distance in range(1, window + 1):
        left, right = event[:-distance], event[distance:]
        pair = (user[:-distance] == user[distance:]) & (left != right)
        weight = np.full(int(pair.sum()), 1.0 / distance)
        counts = counts + sp.csr_matrix((weight, (left[pair], right[pair])), shape=(items, items))
    return (counts + counts.T).tocsr()


def positive_pmi(counts: sp.csr_matrix) -> sp.csr_matrix:
    """max(0, log p(i, j) / (p(i) q(j))) for each counted pair, q being the smoothed context distribution."""
    total = counts.sum(axis=1).A1 if hasattr(counts.sum(axis=1), "A1") else np.asarray(counts.sum(axis=1)).ravel()
    smoothed = total**CONTEXT_EXPONENT
    context = smoothed / max(smoothed.sum(), 1e-12)
    pairs = counts.tocoo()
    with np.errstate(divide="ignore"):
        value = np.log(pairs.data) - np.log(total[pairs.row]) - np.log(context[pairs.col])
    positive = value > 0
    matrix = (value[positive], (pairs.row[positive], pairs.col[positive]))
    return sp.csr_matrix(matrix, shape=counts.shape)


def cooccurrence_vectors(sequences: Sequences, items: int, width: int, window: int) -> NDArray[np.float32]:
    """Unit vectors (N, W) of the items; zeros for an item that co-occurs with nothing.

    Left singular vectors times the root of the singular values. Deterministic: a fixed start vector, and each
    component's sign makes its largest entry positive. A catalogue with fewer than W + 2 items fills the components that
    it has and leaves the others zero.
    """
    vectors = np.zeros((items, width), np.float32)
    pmi = positive_pmi(cooccurrence_counts(sequences, items, window))
    rank = min(width, items - 1)
    if rank < 1 or pmi.nnz == 0:
        return vectors
    start = np.random.default_rng(0).standard_normal(items)
    u, s, _ = svds(pmi, k=rank, v0=start) if rank < items - 1 else np.linalg.svd(pmi.toarray())
    order = np.argsort(-s[:rank], kind="stable")
    u, s = u[:, :rank][:, order], s[:rank][order]
    u = u * np.where(u[np.abs(u).argmax(axis=0), np.arange(rank)] < 0, -1.0, 1.0)
    scaled = u * np.sqrt(np.maximum(s, 0))
    norm = np.linalg.norm(scaled, axis=1, keepdims=True)
    # An item without a counted pair has a row of rounding errors, not of meaning.
    known = (np.asarray(pmi.getnnz(axis=1)) > 0) & (norm[:, 0] > 1e-9)
    vectors[known, :rank] = (scaled / np.maximum(norm, 1e-12))[known]
    return vectors


def text_projection(
    content_ND: NDArray[np.float32], vectors_NW: NDArray[np.float32], ridge: float = 1.0
) -> NDArray[np.float32]:
    """Ridge regression (W, D) from unit content embeddings to co-occurrence vectors, over the items that have one.

    Puts an item that nobody has seen where items with such a text are.
    """
    known = np.abs(vectors_NW).sum(axis=1) > 0
    x, y = content_ND[known].astype(np.float64), vectors_NW[known].astype(np.float64)
    gram = x.T @ x + ridge * np.eye(x.shape[1])
    return np.linalg.solve(gram, x.T @ y).T.astype(np.float32)
