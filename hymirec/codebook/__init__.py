"""Cosine residual codebook: vector -> a few codes and magnitudes -> vector."""

from hymirec.codebook.encode import code_part
from hymirec.codebook.fit import FitState, fit_codebook
from hymirec.codebook.reduce import IdentityReducer, Reducer, TorchDistributedReducer
from hymirec.codebook.report import quality_report, to_markdown
from hymirec.codebook.residual import ResidualCodebook, project_out
from hymirec.codebook.table import ItemCodes

__all__ = [
    "FitState",
    "IdentityReducer",
    "ItemCodes",
    "Reducer",
    "ResidualCodebook",
    "TorchDistributedReducer",
    "code_part",
    "fit_codebook",
    "project_out",
    "quality_report",
    "to_markdown",
]
