"""Light and LLM recommender, disentangled interests, losses, and the baselines they are compared with."""

from hymirec.recommender.hybrid import HybridConfig, HybridModel
from hymirec.recommender.task import HybridTask

__all__ = ["HybridConfig", "HybridModel", "HybridTask"]
