"""A rival as a job: trained on Ray, evaluated like HyMiRec, and put into a file of results."""

from __future__ import annotations

from pathlib import Path

import pytest
from variant_runs import tiny

from hymirec.artifacts import read_json
from hymirec.config import PipelineConfig, load
from hymirec.evaluation.results import PLAIN
from hymirec.recommender.baselines.registry import CLOSED_FORMS, TRAINED
from ray_jobs.compare import add_rows
from ray_jobs.console import Screen
from ray_jobs.pipeline import run_pipeline, steps_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]
ROOT = Path(__file__).resolve().parents[2]
EVALUATED = ("evaluation.ks=[10, 200]", "evaluation.bootstrap=50")
# Text models read the encoder's settings, the others must not depend on them.
KINDS = {"hstu": "HSTU", "morec": "MoRec", "itemknn": "ItemKNN"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("ray_cluster")
def test_a_rival_is_trained_evaluated_and_put_into_the_table(kind: str, tmp_path: Path) -> None:
    small = f"{{kind: {kind}, width: 16, layers: 1, length: 8, optim: {{epochs: 1, batch_size: 16}}}}"
    config = tiny(tmp_path / "run", f"baseline={small}", *EVALUATED)
    last = run_pipeline(config, Screen(), last="evaluation")
    before = (last / "metrics.json").stat().st_mtime_ns
    run_pipeline(config, Screen(), last="evaluation")
    assert (last / "metrics.json").stat().st_mtime_ns == before
    assert {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()} >= {s.name for s in steps_of(config)}

    results = tmp_path / "results.json"
    source = Path("rivals") / f"{kind}.yaml"
    for _ in range(2):
        add_rows(results, source, config)
    rows = {row["model"]: row for row in read_json(results)}
    assert set(rows) == {KINDS[kind], "popularity", "popularity, last 30 days"}
    own = rows[KINDS[kind]]
    assert (own["config"], own["seed"]) == (source.as_posix(), config.seed)
    assert own["seconds"] > 0
    assert own["peak_rss_mb"] > 50
    assert 0 <= own["R@10"] <= own["R@200"] <= 1
    assert rows["popularity"]["config"] == PLAIN
    assert KINDS[kind] in results.with_suffix(".md").read_text()


def test_settings_of_the_encoder_retrain_text_models_alone(tmp_path: Path) -> None:
    def part(kind: str, width: int) -> object:
        config = tiny(tmp_path, f"baseline={{kind: {kind}}}", f"encoder.hidden_size={width}")
        return next(spec for spec in steps_of(config) if spec.name == "baseline").part(config)

    assert part("sasrec", 16) == part("sasrec", 32)
    assert part("hllm", 16) != part("hllm", 32)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("movielens-1m", "movielens-1m.yaml"),
        ("movielens-1m", "movielens-1m-gpu.yaml"),
        ("online-retail", "demo.yaml"),
    ],
)
def test_the_shipped_rivals_share_the_data_of_the_shipped_hymirec(name: str, ours: str) -> None:
    configs = ROOT / "ray_jobs" / "configs"
    rivals = sorted((configs / name).glob("*.yaml"))
    assert {path.stem for path in rivals} == {*CLOSED_FORMS, *TRAINED} - {"recent-popularity"}
    for path in rivals:
        rival = load(PipelineConfig, path)
        assert rival.baseline is not None
        assert rival.baseline.kind == path.stem
        assert rival.data == load(PipelineConfig, configs / ours).data


@pytest.mark.parametrize("kind", sorted(TRAINED))
def test_the_rivals_for_ratings_differ_from_those_of_the_shop_in_data_and_settings_alone(kind: str) -> None:
    configs = ROOT / "ray_jobs" / "configs"
    shop = load(PipelineConfig, configs / "online-retail" / f"{kind}.yaml")
    ratings = load(PipelineConfig, configs / "sparse" / f"{kind}.yaml")
    assert ratings.baseline is not None
    assert ratings.baseline.kind == kind
    # As docs/evaluation.md has it for the closed forms of these sets.
    told = ["data.kind=parquet", "data.path=data/ratings", "data.unseen_items=drop", "data.text_columns=[title,genres]"]
    assert ratings.data == load(PipelineConfig, configs / "demo.yaml", told).data
    assert shop.model_dump(exclude={"name", "data", "baseline"}) == ratings.model_dump(
        exclude={"name", "data", "baseline"}
    )
