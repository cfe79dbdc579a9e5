"""Models to compare with, one file each, all with the contract `Baseline`."""

from hymirec.recommender.baselines.contract import Baseline, History
from hymirec.recommender.baselines.ease import EASE
from hymirec.recommender.baselines.itemknn import ItemKNN
from hymirec.recommender.baselines.popularity import Popularity, RecentPopularity

__all__ = ["EASE", "Baseline", "History", "ItemKNN", "Popularity", "RecentPopularity"]
