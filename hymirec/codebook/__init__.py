"""Cosine residual codebook: vector -> a few codes and magnitudes -> vector."""

from hymirec.codebook.encode import code_part, item_codes
from hymirec.codebook.fit import fit_codebook
from hymirec.codebook.reduce import IdentityReducer, Reducer, TorchDistributedReducer
from hymirec.codebook.report import quality_report, report_directory, sample_report, to_markdown
from hymirec.codebook.residual import ResidualCodebook, project_out
from hymirec.codebook.state import FitState, Usage
from hymirec.codebook.table import ItemCodes

__all__ = [
    "FitState",
    "IdentityReducer",
    "ItemCodes",
    "Reducer",
    "ResidualCodebook",
    "TorchDistributedReducer",
    "Usage",
    "code_part",
    "fit_codebook",
    "item_codes",
    "project_out",
    "quality_report",
    "report_directory",
    "sample_report",
    "to_markdown",
]
