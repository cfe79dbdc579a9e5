"""HyMiRec: hybrid multi-interest recommendation with an LLM.

    from hymirec import HyMiRec
    HyMiRec.from_pretrained("runs/demo/bundle").recommend(history=["22423", "85123A"], k=20)

The library imports no Ray: mathematics, state and inference are usable from a notebook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hymirec.inference import HyMiRec

__version__ = "0.1.0"
__all__ = ["HyMiRec", "__version__"]


def __getattr__(name: str) -> Any:
    # Importing torch, faiss and transformers takes seconds; `import hymirec` alone should not.
    if name == "HyMiRec":
        from hymirec.inference import HyMiRec

        return HyMiRec
    raise AttributeError(f"module 'hymirec' has no attribute {name!r}")
