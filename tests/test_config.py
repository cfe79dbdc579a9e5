from __future__ import annotations

import operator
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hymirec.config import PipelineConfig, ServiceConfig, dump, load, override, parse
from hymirec.config_docs import reference
from hymirec.errors import ConfigError

CONFIGS = Path(__file__).parent.parent / "ray_jobs" / "configs"


# Ablations and sweeps are read by their own jobs, and tested there.
RUNS = sorted(path for path in CONFIGS.glob("*.yaml") if not path.stem.startswith(("ablation-", "sweep-")))


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_every_shipped_config_is_valid(path: Path) -> None:
    assert load(PipelineConfig, path).name == path.stem


def test_an_unknown_key_is_refused_with_its_dotted_path() -> None:
    with pytest.raises(ConfigError, match=r"recommender\.dmil\.interest: unknown key"):
        parse(PipelineConfig, {"recommender": {"dmil": {"interest": 3}}})


def test_a_wrong_value_is_refused_with_what_came() -> None:
    with pytest.raises(ConfigError, match=r"codebook\.layers: .*greater than or equal to 1.*\(got 0\)"):
        parse(PipelineConfig, {"codebook": {"layers": 0}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"kind": "parquet"}}, r"needs data\.path"),
        ({"encoder": {"preset": "custom"}}, "encoder.model goes with"),
        ({"recommender": {"item": {"text": False, "ids": False, "cooccurrence": False}}}, "needs text or ids"),
        ({"recommender": {"item": {"ids": False}}}, "cooccurrence needs"),
        ({"recommender": {"llm": {"hidden_size": 66, "heads": 4}}}, "multiple of 2 x"),
    ],
)
def test_an_impossible_combination_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(PipelineConfig, values)


def test_two_writers_need_stores_that_can_be_shared() -> None:
    service = {
        "bundle": "b",
        "history": {"store": "rocksdb", "path": "h"},
        "stream": {"source": "file", "path": "l"},
        "writer_replicas": 2,
    }
    with pytest.raises(ConfigError, match="writer_replicas > 1 needs"):
        parse(ServiceConfig, service)


def test_a_missing_file_names_where_the_shipped_ones_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ray_jobs/configs"):
        load(PipelineConfig, tmp_path / "absent.yaml")


@pytest.mark.parametrize("text", ["a: [1", "- 1", "just words"])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load(PipelineConfig, path)


def test_set_changes_one_key_and_leaves_the_rest() -> None:
    before = {"recommender": {"optim": {"epochs": 3, "lr": 0.1}}}
    after = override(before, ["recommender.optim.epochs=7", "data.text_columns=[title, genres]"])
    assert after == {
        "recommender": {"optim": {"epochs": 7, "lr": 0.1}},
        "data": {"text_columns": ["title", "genres"]},
    }
    assert before["recommender"]["optim"]["epochs"] == 3


@pytest.mark.parametrize("assignment", ["epochs", "=3", "a..b", "a=[1", "name.first=x"])
def test_a_set_that_is_not_an_assignment_is_refused(assignment: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        override({"name": "demo"}, [assignment])


@given(st.integers(1, 10**6), st.integers(1, 64), st.sampled_from(["hungarian", "max"]))
def test_a_dumped_config_reads_back_as_itself(epochs: int, window: int, matching: str) -> None:
    values = {"recommender": {"optim": {"epochs": epochs}, "dmil": {"window": window, "matching": matching}}}
    config = parse(PipelineConfig, values)
    import yaml

    assert parse(PipelineConfig, yaml.safe_load(dump(config))) == config


def test_a_config_cannot_be_changed_after_it_is_built() -> None:
    config = PipelineConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def test_a_section_given_in_part_keeps_the_rest_of_its_parents_default() -> None:
    config = parse(PipelineConfig, {"recommender": {"optim": {"epochs": 4}}, "encoder": {"optim": {"epochs": 7}}})
    default = PipelineConfig()
    assert config.recommender.optim == default.recommender.optim.model_copy(update={"epochs": 4})
    assert config.encoder.optim == default.encoder.optim.model_copy(update={"epochs": 7})
    assert config.encoder.optim.lr != config.recommender.optim.lr


def test_the_reference_shows_what_a_run_without_the_key_gets() -> None:
    """A section's defaults may be those of the node above, not of its class."""
    config = parse(PipelineConfig, {"name": "x", "baseline": {}})
    run = reference().split("\n## A service")[0]
    shown = dict(re.findall(r"^\| `([a-z_.0-9]+)` \|.*?\| `([^`]*)` \|", run, re.M))
    assert len(shown) > 80
    assert (shown.pop("name"), shown.pop("baseline")) == ("run", "null")
    for key, default in shown.items():
        value = operator.attrgetter(key)(config)
        assert yaml.safe_load(default) == (list(value) if isinstance(value, tuple) else value), key
