"""The configuration: one frozen tree, read from one YAML file, changed with `--set a.b=c`, saved with every artifact.

Unknown keys and impossible combinations are refused before anything runs. `PipelineConfig` describes a run of
`ray_jobs/train.py`; `ServiceConfig` describes a Ray Serve application (`serve_apps/configs/*.yaml`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hymirec.errors import ConfigError

T = TypeVar("T", bound="Config")


class Config(BaseModel):
    """Base of every node: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, values: Any) -> Any:
        """A section that is given in part keeps the rest of this node's default for it, not of the section's class."""
        if not isinstance(values, Mapping):
            return values
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return {
            name: _merged(defaults[name].model_dump(), value)
            if isinstance(value, Mapping) and isinstance(defaults.get(name), Config)
            else value
            for name, value in values.items()
        }


def _merged(default: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` over `default`, section by section."""
    both = {
        name: _merged(default[name], value)
        if isinstance(value, Mapping) and isinstance(default.get(name), Mapping)
        else value
        for name, value in given.items()
    }
    return {**default, **both}


class SyntheticConfig(Config):
    """Generated data with planted interests, for scale tests."""

    items: int = Field(20_000, ge=10, description="items in the catalogue")
    users: int = Field(2_000, ge=1, description="users")
    events_per_user: int = Field(60, ge=3, description="mean interactions of a user")
    topics: int = Field(64, ge=2, description="latent topics that items belong to")
    interests: int = Field(3, ge=1, description="topics a user likes")
    zipf: float = Field(1.1, gt=0, description="exponent of the popularity of items inside a topic")
    string_ids: bool = Field(False, description="string ids instead of int64")
    shards: int = Field(8, ge=1, description="shards that are generated independently")


class DataConfig(Config):
    """Where items and interactions come from, and how they are split."""

    kind: Literal["online-retail", "movielens-1m", "pixelrec", "parquet", "synthetic"] = Field(
        "online-retail", description="named data set, or `parquet` for any directory of the two tables"
    )
    path: str | None = Field(None, description="directory, glob or fsspec URL; not needed for online-retail, synthetic")
    min_user_interactions: int = Field(5, ge=3, description="users with fewer interactions are left out")
    repeats: Literal["keep", "first"] = Field(
        "first", description="repeated (user, item) pairs: `first` keeps the first of each, `keep` keeps all"
    )
    unseen_items: Literal["keep", "drop"] = Field(
        "keep", description="items that no remaining user interacted with: `keep` (cold items can be shown) or `drop`"
    )
    text_columns: tuple[str, ...] | None = Field(
        None, description="item columns that make the text; none given: `title`, then all other string columns"
    )
    split: Literal["leave-one-out", "global-time"] = Field(
        "leave-one-out", description="last item test and the one before it validation, or cut by time for all users"
    )
    validation_share: float = Field(0.05, gt=0, lt=0.5, description="global-time only: share of events in validation")
    test_share: float = Field(0.05, gt=0, lt=0.5, description="global-time only: share of events in test")
    part_rows: int = Field(65_536, ge=1, description="items in one part file; the unit of resuming")
    synthetic: SyntheticConfig = SyntheticConfig()

    @model_validator(mode="after")
    def _path_given(self) -> DataConfig:
        if self.kind in ("movielens-1m", "pixelrec", "parquet") and not self.path:
            raise ValueError(f"data.kind={self.kind} needs data.path; add `--set data.path=DIR`")
        return self


class OptimConfig(Config):
    """AdamW with linear warm-up and cosine decay."""

    epochs: int = Field(5, ge=0, description="passes over the training sequences; 0 trains nothing")
    batch_size: int = Field(64, ge=1, description="sequences a step, over all workers")
    accumulation: int = Field(1, ge=1, description="micro-batches whose gradients are added up before a step")
    lr: float = Field(2e-3, gt=0, description="peak learning rate")
    min_lr_ratio: float = Field(0.02, ge=0, le=1, description="end of the cosine, as a share of lr")
    warmup_ratio: float = Field(0.05, ge=0, le=1, description="share of all steps with rising learning rate")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    clip_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    patience: int = Field(3, ge=1, description="epochs without a better validation NDCG@10 before training stops")
    ema: float = Field(
        0, ge=0, lt=1, description="decay a step of the average of weights that is kept; 0: the last ones"
    )


class EncoderConfig(Config):
    """Item text -> vector, and how it is fine-tuned end to end (stage 1)."""

    preset: Literal["tiny", "minilm", "smollm2", "tinyllama", "custom"] = Field(
        "tiny", description="`tiny` is built from config with a tokenizer trained on the catalogue; no download"
    )
    model: str | None = Field(None, description="custom only: Hugging Face name or local directory")
    hidden_size: int = Field(96, ge=8, description="tiny only")
    layers: int = Field(2, ge=1, description="tiny only")
    heads: int = Field(4, ge=1, description="tiny only")
    vocab_size: int = Field(4096, ge=300, description="tiny only: size of the trained tokenizer")
    max_tokens: int = Field(32, ge=4, description="texts are cut to this many tokens, the special token included")
    special_token: str = Field("<|item|>", min_length=1, description="appended; its last hidden state is the embedding")
    encode_batch: int = Field(256, ge=1, description="texts a forward pass when encoding")
    center: bool = Field(True, description="subtract the catalogue's mean embedding, measured once after training")
    sequence_length: int = Field(20, ge=2, description="stage 1: most recent items of a user")
    negatives: int = Field(256, ge=1, description="stage 1: sampled negatives a step, shared by the batch")
    user_layers: int = Field(1, ge=1, description="stage 1: causal Transformer blocks over item embeddings")
    scale: float = Field(14.2857, gt=0, le=100, description="stage 1: start of the learnable scale (1/temperature)")
    gradient_checkpointing: bool = Field(False, description="stage 1: recompute activations; for big encoders")
    optim: OptimConfig = OptimConfig(epochs=2, batch_size=64, lr=1e-3)

    @model_validator(mode="after")
    def _model_given(self) -> EncoderConfig:
        if (self.preset == "custom") != (self.model is not None):
            raise ValueError("encoder.model goes with encoder.preset=custom, and only with it")
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"encoder.hidden_size={self.hidden_size} must be a multiple of 2 x heads={self.heads}")
        return self


class CodebookConfig(Config):
    """Cosine residual codebook."""

    kind: Literal["cosine", "euclidean", "none"] = Field(
        "cosine", description="`euclidean` (plain residual k-means) and `none` (raw fp16 vectors) are for comparison"
    )
    layers: int = Field(3, ge=1, le=16, description="residual layers")
    centroids: int = Field(256, ge=2, le=65_536, description="centroids a layer; capped at the number of items")
    iterations: int = Field(12, ge=1, description="k-means passes a layer")
    balance: Literal["prices", "strict", "none"] = Field(
        "prices",
        description="streamed prices while fitting; equal loads to the row (small sets, one worker); plain k-means",
    )
    slices: int = Field(32, ge=20, description="global slices of a pass; prices move after each")
    beam: int = Field(1, ge=1, le=16, description="code sequences kept while an item is coded; 1 is greedy")
    refit: bool = Field(True, description="least-squares magnitudes on the chosen centroids; never worse")
    joint_refits: int = Field(0, ge=0, description="rounds that code all rows and refit all centroids together")
    magnitudes: Literal["lloyd4", "lloyd8", "float16", "float32"] = Field(
        "lloyd4", description="how magnitudes are stored: 4 or 8 bits (levels fitted a layer), 16 or 32"
    )
    kernel: Literal["auto", "int8", "float32"] = Field(
        "auto", description="nearest-centroid kernel; all give the same bits, `auto` takes the fastest that runs here"
    )
    memory_mb: int = Field(4096, ge=16, description="memory of a worker's rows while fitting; beyond it, a local file")


class ItemConfig(Config):
    """What an item's vector in the recommender is made of; the sum is normalised."""

    text: bool = Field(True, description="projected content embedding")
    ids: bool = Field(True, description="a learned residual an item; for warm catalogues")
    cooccurrence: bool = Field(True, description="start the residual from truncated SVD of positive PMI; needs ids")
    width: int = Field(128, ge=8, description="dimension of item vectors and interests")
    window: int = Field(5, ge=1, description="co-occurrence: steps between two items of a history")
    lags: int = Field(50, ge=0, description="last items whose vectors are added to the interests; 0 switches it off")

    @model_validator(mode="after")
    def _some_input(self) -> ItemConfig:
        if not (self.text or self.ids):
            raise ValueError("recommender.item needs text or ids")
        if self.cooccurrence and not self.ids:
            raise ValueError("recommender.item.cooccurrence needs recommender.item.ids")
        return self


class LightConfig(Config):
    """Light recommender: long decoded history -> coarse interests."""

    enabled: bool = Field(True, description="off: the LLM sees the last items only (ablation)")
    hidden_size: int = Field(64, ge=8, description="width")
    layers: int = Field(1, ge=1, description="blocks in which coarse queries cross-attend to the history")
    heads: int = Field(2, ge=1, description="attention heads")
    queries: int = Field(4, ge=1, description="coarse interests")
    max_history: int = Field(1000, ge=1, description="events before the recent ones that are read")
    dropout: float = Field(0.1, ge=0, lt=1, description="on events and inside the blocks")

    @model_validator(mode="after")
    def _heads(self) -> LightConfig:
        if self.hidden_size % self.heads:
            raise ValueError("recommender.light.hidden_size must be a multiple of recommender.light.heads")
        return self


class LLMConfig(Config):
    """LLM recommender: any Hugging Face causal LM through `inputs_embeds`."""

    preset: Literal["tiny", "smollm2", "tinyllama", "custom"] = Field("tiny", description="`tiny` is a Llama by config")
    model: str | None = Field(None, description="custom only: Hugging Face name or local directory")
    hidden_size: int = Field(96, ge=8, description="tiny only")
    layers: int = Field(3, ge=1, description="tiny only")
    heads: int = Field(2, ge=1, description="tiny only")
    expansion: int = Field(2, ge=1, description="tiny only: width of the gated feed-forward, in hidden sizes")
    dropout: float = Field(
        0.2, ge=0, lt=1, description="on the inputs of the LLM; tiny: on each block's output as well"
    )
    recent: int = Field(200, ge=1, description="last-n items")
    indicator: bool = Field(True, description="indicator embedding added to coarse interests")
    time: bool = Field(True, description="relative time bias in the attention mask, request time included")
    freeze: bool = Field(False, description="train only what surrounds the LLM")
    gradient_checkpointing: bool = Field(False, description="recompute activations; for big LLMs")

    @model_validator(mode="after")
    def _model_given(self) -> LLMConfig:
        if (self.preset == "custom") != (self.model is not None):
            raise ValueError("recommender.llm.model goes with recommender.llm.preset=custom, and only with it")
        if self.hidden_size % (2 * self.heads):
            raise ValueError("recommender.llm.hidden_size must be a multiple of 2 x recommender.llm.heads")
        return self


class DMILConfig(Config):
    """Disentangled multi-interest learning."""

    interests: int = Field(2, ge=1, le=8, description="refined interests (s)")
    window: int = Field(4, ge=1, le=64, description="future items (w)")
    decay: float = Field(0.5, gt=0, le=1, description="weight of the i-th target is decay^i; 1 is uniform (paper)")
    weight: float = Field(0.1, ge=0, description="weight of DMIL beside the next-item loss")
    next_item_weight: float = Field(1.0, ge=0, description="weight of the next-item loss; 0 is DMIL alone (paper)")
    max_weight: float = Field(0.1, ge=0, description="weight of the next item by the best interest, at the anchors")
    matching: Literal["hungarian", "max"] = Field("hungarian", description="`max` is the paper's ablation")
    lloyd_steps: int = Field(5, ge=1, description="k-means steps over the window's targets")
    anchors: int = Field(16, ge=1, description="positions a sequence at which queries are asked, in one pass")
    diversity: float = Field(0.02, ge=0, description="weight of the mean squared cosine between two interests")
    shield_trunk: bool = Field(
        True, description="the first interest learns the next item alone, what the others learn does not move it"
    )

    @model_validator(mode="after")
    def _trunk_learns(self) -> DMILConfig:
        if self.shield_trunk and self.next_item_weight == 0:
            raise ValueError(
                "recommender.dmil.next_item_weight=0 leaves nothing that teaches the first interest; set "
                "recommender.dmil.shield_trunk=false"
            )
        return self


class TrendConfig(Config):
    """What is popular now, as a bonus on scores. One of these is chosen on validation, after training."""

    weights: tuple[float, ...] = Field(
        (0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16),
        description="weights that are tried beside 0, in units of cosine; none: no trend",
    )
    half_lives: tuple[float, ...] = Field(
        (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0), min_length=1, description="days after which an event counts half"
    )

    @model_validator(mode="after")
    def _positive(self) -> TrendConfig:
        if any(value <= 0 for value in (*self.weights, *self.half_lives)):
            raise ValueError("trend.weights and trend.half_lives must be above 0; weights=[] is no trend")
        return self


class NeighboursConfig(Config):
    """What stood beside a history's last items in training: a bonus on scores, chosen on validation after the trend."""

    weights: tuple[float, ...] = Field(
        (0.01, 0.02, 0.04, 0.08, 0.12, 0.16, 0.24),
        description="weights that are tried beside 0, in units of cosine; none: no bonus, no table in the bundle",
    )
    keep: tuple[float, ...] = Field(
        (0.5, 0.8, 0.95), min_length=1, description="share of its weight that an event keeps with each later one"
    )
    most: int = Field(50, ge=1, description="neighbours kept an item, 6 bytes each")

    @model_validator(mode="after")
    def _in_range(self) -> NeighboursConfig:
        if any(weight <= 0 for weight in self.weights) or any(not 0 < keep <= 1 for keep in self.keep):
            raise ValueError("neighbours.weights must be above 0 (weights=[] is no bonus), neighbours.keep in (0, 1]")
        return self


# A softmax over more items than this costs more than all the rest of a training step on a CPU (docs/lab-log.md).
FULL_SOFTMAX_ITEMS, SAMPLED_NEGATIVES = 16_384, 4_096
NEGATIVES = (
    "sampled negatives a step, shared by the batch; 0 is the full softmax; "
    f"none given: full up to {FULL_SOFTMAX_ITEMS:,} items, {SAMPLED_NEGATIVES:,} sampled ones above"
)


class RecommenderConfig(Config):
    """Stage 2: the hybrid recommender."""

    item: ItemConfig = ItemConfig()
    light: LightConfig = LightConfig()
    llm: LLMConfig = LLMConfig()
    dmil: DMILConfig = DMILConfig()
    trend: TrendConfig = TrendConfig()
    neighbours: NeighboursConfig = NeighboursConfig()
    negatives: int | None = Field(None, ge=0, description=NEGATIVES)
    mask_false_negatives: float = Field(
        0.99,
        gt=0,
        le=1,
        description="items whose content embedding is nearer to the target's are no negatives; 1: all are",
    )
    scale: float = Field(14.2857, gt=0, le=100, description="start of the learnable scale (1/temperature), cap 100")
    optim: OptimConfig = OptimConfig(epochs=12, batch_size=16, lr=2e-3, ema=0.995)


class PatchConfig(Config):
    """PatchRec only: how a history is shortened before the LLM reads it."""

    session: int = Field(5, ge=1, description="items that make one session patch in the oldest part of a history")
    items: int = Field(50, ge=1, description="items read as one patch each, between the oldest part and the texts")
    texts: int = Field(5, ge=1, description="last items, read token by token")


# Kinds of baseline that are fitted by a formula, in the evaluation, and those that read the items' texts.
CLOSED_FORM_KINDS = ("popularity", "recent-popularity", "itemknn", "ease")
TEXT_KINDS = ("morec", "hllm", "patchrec")


class BaselineConfig(Config):
    """A system to compare with, under the same training loop, loss, negatives, early stopping and evaluation."""

    kind: Literal[
        "gru4rec",
        "sasrec",
        "hstu",
        "morec",
        "hllm",
        "patchrec",
        "popularity",
        "recent-popularity",
        "itemknn",
        "ease",
    ] = Field("sasrec", description="the closed forms (last four) tune themselves on validation and read nothing below")
    width: int = Field(64, ge=8, description="dimension of item vectors, states and blocks")
    layers: int = Field(2, ge=1, description="blocks, or GRU layers")
    heads: int = Field(2, ge=1, description="attention heads")
    dropout: float = Field(0.2, ge=0, lt=1, description="on inputs and inside the blocks")
    length: int = Field(200, ge=1, description="last items that are read")
    time: bool = Field(True, description="hstu only: relative time bias, the request's own time included")
    cooccurrence: bool = Field(False, description="models with ids: start the embeddings as HyMiRec does")
    window: int = Field(10, ge=1, description="co-occurrence: steps between two items of a history")
    patch: PatchConfig = PatchConfig()
    trend: TrendConfig = TrendConfig(weights=())
    negatives: int | None = Field(None, ge=0, description=NEGATIVES)
    mask_same_text: bool = Field(True, description="models of texts: items of the target's own text are no negatives")
    scale: float = Field(14.2857, gt=0, le=100, description="start of the learnable scale (1/temperature), cap 100")
    optim: OptimConfig = OptimConfig(epochs=12, batch_size=64, lr=2e-3, ema=0.995)

    @model_validator(mode="after")
    def _heads(self) -> BaselineConfig:
        if self.width % (2 * self.heads):
            raise ValueError(f"baseline.width={self.width} must be a multiple of 2 x baseline.heads={self.heads}")
        return self


class EvaluationConfig(Config):
    """Full ranking over the catalogue."""

    ks: tuple[int, ...] = Field((10, 50, 100, 200), min_length=1, description="cut-offs; total K over all interests")
    batch_users: int = Field(256, ge=1, description="users ranked at once; does not change a metric")
    mask_history: bool = Field(True, description="items of the user's own history are not ranked")
    bootstrap: int = Field(1000, ge=0, description="resamples of the interval; 0 prints none")
    list_k: int = Field(10, ge=1, description="length of the lists that coverage, Gini and novelty are taken of")
    history_bins: tuple[int, ...] = Field(
        (20, 50, 100, 200, 500), min_length=1, description="users by events before the target: up to each, and beyond"
    )

    @model_validator(mode="after")
    def _ordered(self) -> EvaluationConfig:
        if min(self.ks) < 1 or len(set(self.ks)) < len(self.ks):
            raise ValueError(f"evaluation.ks={list(self.ks)} must be different numbers from 1 on")
        if list(self.history_bins) != sorted(set(self.history_bins)):
            raise ValueError(f"evaluation.history_bins={list(self.history_bins)} must ascend")
        return self


class RetrievalConfig(Config):
    """Index over item vectors. An item's score is its largest cosine over the interests, and what is popular now."""

    index: Literal["auto", "flat", "hnsw", "ivf_sq8"] = Field(
        "auto",
        description="`flat` is exact; `ivf_sq8` and `hnsw` find `target_recall` of it, or the next one is taken, in "
        "the order ivf_sq8, hnsw, flat; `auto` is flat, or ivf_sq8 for more than `flat_items` items",
    )
    target_recall: float = Field(
        0.98, gt=0, lt=1, description="not flat: recall@100 against all products that a search's effort is raised to"
    )
    flat_items: int = Field(50_000, ge=0, description="auto only: up to so many items the index is flat")
    hnsw_links: int = Field(32, ge=4, description="hnsw only: links of a node (M)")
    hnsw_search: int = Field(
        256, ge=16, description="hnsw only: candidates of an insertion, and the fewest of a search (ef)"
    )


class ComputeConfig(Config):
    """What Ray is asked for."""

    workers: int = Field(1, ge=1, description="Ray Train workers (codebook and both training stages)")
    cpus_per_worker: float = Field(1, gt=0, description="logical CPUs that Ray reserves for a worker")
    threads_per_worker: int = Field(1, ge=1, description="torch threads in one worker or encode actor")
    use_gpu: bool = Field(False, description="one GPU a worker and an actor")
    engine: Literal["deepspeed", "torch"] = Field("deepspeed", description="`torch` is plain DDP, for comparison")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        2, description="DeepSpeed ZeRO stage; one fp32 worker runs 1 and 2 as 0: equal but for rounding, and cheaper"
    )
    bf16: bool = Field(False, description="train and encode in bfloat16; gains on GPUs only")
    encode_actors: int = Field(1, ge=1, description="actors of the encode and code steps")
    cpus_per_actor: float = Field(
        0.5, gt=0, description="logical CPUs that Ray reserves for an actor; leave some for its readers"
    )
    max_failures: int = Field(3, ge=0, description="restarts of a worker group after a crash")
    checkpoint_steps: int = Field(
        1000, ge=1, description="updates between two checkpoints within an epoch of training; each epoch ends with one"
    )


class PipelineConfig(Config):
    """One run of the whole pipeline."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]+$", description="name of the run, and of its bundle")
    run_dir: str | None = Field(None, description="where everything is written; none given: runs/NAME")
    seed: int = Field(17, ge=0, description="all random numbers come from it; equal seeds give equal bytes")
    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    codebook: CodebookConfig = CodebookConfig()
    recommender: RecommenderConfig = RecommenderConfig()
    baseline: BaselineConfig | None = Field(
        None, description="given: this system is trained and evaluated in place of HyMiRec"
    )
    evaluation: EvaluationConfig = EvaluationConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    compute: ComputeConfig = ComputeConfig()

    @property
    def directory(self) -> Path:
        """The run directory; absolute once the job has placed it."""
        return Path(self.run_dir or f"runs/{self.name}").expanduser()


class HistoryConfig(Config):
    """Where compressed histories live."""

    store: Literal["memory", "rocksdb", "redis"] = Field(
        "rocksdb", description="`rocksdb` in one writer's directory, `redis` for several writers, `memory` for tests"
    )
    path: str | None = Field(None, description="rocksdb only: directory")
    url: str | None = Field(None, description="redis only: redis://host:port/db")
    cluster: bool = Field(
        False, description="redis only: `url` names one node of a Redis or Valkey Cluster, whose other nodes it tells"
    )
    shards: int = Field(64, ge=1, le=65_536, description="redis only: fixed number of user shards")
    max_events: int = Field(10_000, ge=1, description="a history keeps this many newest events")
    max_age_days: int | None = Field(None, ge=1, description="a history keeps no event older than this; null: any age")
    dedup_horizon: int = Field(1_024, ge=1, description="newest event ids of a user that are remembered")
    cached_events: int = Field(
        10_000_000,
        ge=0,
        description="not redis: event ids that the writer holds in memory, 8 bytes each; a user adds 800",
    )
    sync: bool = Field(True, description="rocksdb only: fsync every write")
    erased_hours: float | None = Field(
        24.0,
        gt=0,
        description="rocksdb only: what was erased has left the files after this: all are written anew half that time "
        "after the first erasure; null: when RocksDB comes to it",
    )
    flush_events: int = Field(
        0, ge=0, description="not redis: so many events wait in memory and are written at once; 0: each batch is"
    )
    flush_seconds: float = Field(1.0, gt=0, description="not redis: no event waits longer in memory than this")

    @model_validator(mode="after")
    def _place_given(self) -> HistoryConfig:
        if self.store == "rocksdb" and not self.path:
            raise ValueError("history.store=rocksdb needs history.path")
        if self.store == "redis" and not self.url:
            raise ValueError("history.store=redis needs history.url")
        if self.cluster and self.store != "redis":
            raise ValueError(f"history.cluster is for history.store=redis, not {self.store}")
        if self.store == "redis" and self.flush_events:
            raise ValueError("history.flush_events needs one writer; with history.store=redis leave it at 0")
        return self


class StreamConfig(Config):
    """The event log."""

    source: Literal["file", "kafka-python", "confluent"] = Field(
        "file",
        description="`file` is embedded; the others are two clients of one Kafka (confluent: extra `kafka-fast`)",
    )
    path: str | None = Field(None, description="file only: directory of the log")
    brokers: str | None = Field(None, description="Kafka only: host:port,host:port")
    topic: str = Field("events", description="topic of the events")
    dead_letter_topic: str = Field("events.dead-letters", description="topic of what cannot be used")
    group: str = Field("hymirec", description="Kafka only: consumer group of the history writers")
    partitions: int = Field(4, ge=1, description="file only: partitions of a new log")
    batch_events: int = Field(2_000, ge=1, description="events applied at once, at most")
    poll_seconds: float = Field(0.2, gt=0, description="a poll without events waits this long")
    max_rejected_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="a partition of whose last 1,000 messages more than this cannot be used stands still; 1: never",
    )
    session_timeout_seconds: float = Field(
        10.0, gt=0, description="Kafka only: a dead writer's partitions move after this"
    )
    group_protocol: Literal["classic", "consumer"] = Field(
        "classic",
        description="confluent only: `consumer` (KIP-848, brokers from Kafka 4.0 on) moves single partitions while the "
        "others go on; the session timeout is then the broker's",
    )
    member: str | None = Field(
        None,
        min_length=1,
        description="Kafka groups only: static membership under this name, `{rank}` being the replica's number; who is "
        "back within the session timeout has the same partitions at once, who stops for good keeps them so long",
    )

    @model_validator(mode="after")
    def _group_known(self) -> StreamConfig:
        if self.group_protocol == "consumer" and self.source != "confluent":
            raise ValueError(f"stream.group_protocol=consumer needs stream.source=confluent, not {self.source}")
        return self

    @model_validator(mode="after")
    def _place_given(self) -> StreamConfig:
        if self.source == "file" and not self.path:
            raise ValueError("stream.source=file needs stream.path")
        if self.source != "file" and not self.brokers:
            raise ValueError(f"stream.source={self.source} needs stream.brokers")
        return self


class LimitsConfig(Config):
    """What a request may ask for, and when it is turned away."""

    max_k: int = Field(500, ge=1, description="items of an answer")
    max_history: int = Field(10_000, ge=1, description="items of a `history` in a request")
    max_body_bytes: int = Field(1 << 20, ge=1024, description="bytes of a request; more is 413")
    request_timeout_seconds: float = Field(5.0, gt=0, description="deadline of a request")
    stage_timeout_seconds: float = Field(2.0, gt=0, description="after this a stage is late, and the answer degrades")
    max_ongoing_requests: int = Field(16, ge=1, description="a replica works on this many")
    max_queued_requests: int = Field(64, ge=0, description="a caller queues this many, then 503 with Retry-After")
    requests_per_second: float | None = Field(
        None, gt=0, description="of one token, in each ingress; more is 429 with Retry-After; null: any number"
    )
    burst: int | None = Field(
        None, ge=1, description="requests of one token that may come at once after a pause; null: those of a second"
    )
    max_batch_events: int = Field(
        16_384,
        ge=1,
        description="requests answered in one pass of the model, times their longest history; 1 answers each alone",
    )

    @model_validator(mode="after")
    def _burst_of_a_rate(self) -> LimitsConfig:
        if self.burst is not None and self.requests_per_second is None:
            raise ValueError("limits.burst goes with limits.requests_per_second, and only with it")
        return self


class ScalingConfig(Config):
    """When replicas come and go, between their least and most."""

    catch_up_seconds: float = Field(
        60.0, gt=0, description="more history writers start when the lag would take longer than this to be worked off"
    )
    calm_seconds: float = Field(
        300.0, gt=0, description="a replica goes when fewer had been enough for so long; one at a time"
    )


class ServiceConfig(Config):
    """One Ray Serve application."""

    bundle: str = Field(description="directory of the bundle")
    history: HistoryConfig
    stream: StreamConfig
    limits: LimitsConfig = LimitsConfig()
    scaling: ScalingConfig = ScalingConfig()
    recommender_replicas: int = Field(1, ge=1, description="least replicas of the recommender")
    max_recommender_replicas: int = Field(1, ge=1, description="most replicas of the recommender (autoscaling)")
    writer_replicas: int = Field(1, ge=1, description="least history writers; more than one needs redis and Kafka")
    max_writer_replicas: int | None = Field(
        None, ge=1, description="most history writers (autoscaling by lag); null: as many as writer_replicas"
    )
    threads: int = Field(1, ge=1, description="torch and faiss threads in one recommender replica")
    trend_backlog: int = Field(
        1_000_000, ge=0, description="what is popular now: messages a partition read back at a start; 0 reads no events"
    )
    host: str = Field("127.0.0.1", description="where HTTP listens; must be what http_options.host of the YAML says")
    token_file: str | None = Field(None, description="file with `scope token` lines; required beyond loopback")
    log_format: Literal["text", "json"] = Field(
        "text", description="`json`: a line of JSON on stderr for each request, recommendation and warning"
    )
    tracing: bool = Field(
        False,
        description="spans of each request by OpenTelemetry (extra `tracing`); its `OTEL_*` variables say whereto",
    )

    def placed(self, base: Path | None = None) -> ServiceConfig:
        """The same with absolute paths: relative ones lie under `base`, else $HYMIREC_HOME, else the current directory.

        Replicas and tools run in other directories than the one that a service was deployed from.
        """
        root = (base or Path(os.environ.get("HYMIREC_HOME", Path.cwd()))).expanduser().absolute()

        def absolute(path: str | None) -> str | None:
            return None if path is None else str(root / Path(path).expanduser())

        history = self.history.model_copy(update={"path": absolute(self.history.path)})
        stream = self.stream.model_copy(update={"path": absolute(self.stream.path)})
        moved = {"bundle": absolute(self.bundle), "token_file": absolute(self.token_file)}
        return self.model_copy(update={"history": history, "stream": stream, **moved})

    @model_validator(mode="after")
    def _guarded(self) -> ServiceConfig:
        if self.host not in ("127.0.0.1", "localhost", "::1") and not self.token_file:
            raise ValueError(
                f"host={self.host} is beyond loopback and needs token_file (scopes read, write, erase, admin)"
            )
        return self

    def for_writer(self, rank: int) -> ServiceConfig:
        """The same for the history writer of this number: its own name in the group."""
        member = self.stream.member
        if member is None:
            return self
        named = self.stream.model_copy(update={"member": member.replace("{rank}", str(rank))})
        return self.model_copy(update={"stream": named})

    @property
    def most_writers(self) -> int:
        """History writers that may run at a time; beyond one they share the partitions as a group."""
        return self.max_writer_replicas or self.writer_replicas

    @model_validator(mode="after")
    def _writers(self) -> ServiceConfig:
        for name, number in (("writer_replicas", self.writer_replicas), ("max_writer_replicas", self.most_writers)):
            if number > 1 and (self.history.store != "redis" or self.stream.source == "file"):
                raise ValueError(f"{name} > 1 needs history.store=redis and a Kafka stream")
        if self.most_writers < self.writer_replicas:
            raise ValueError("max_writer_replicas must be at least writer_replicas")
        if self.most_writers > 1 and self.stream.member is not None and "{rank}" not in self.stream.member:
            raise ValueError("stream.member must contain {rank}: writers of one name shut each other out")
        if self.max_recommender_replicas < self.recommender_replicas:
            raise ValueError("max_recommender_replicas must be at least recommender_replicas")
        return self


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "(whole config)"
        what = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"]
        got = "" if problem["type"] in ("extra_forbidden", "missing") else f" (got {problem['input']!r})"
        lines.append(f"{where}: {what}{got if len(got) < 120 else ''}")
    return "; ".join(lines)


def parse(kind: type[T], values: Mapping[str, Any], source: str = "config") -> T:
    """Build a config from plain values.

    Raises ConfigError that names every wrong key by its dotted path.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as e:
        raise ConfigError(f"{source}: {_explain(e)}. See docs/configuration.md for every key.") from e


def override(values: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply `a.b=c` assignments (the value is YAML) to nested plain values; returns a new dict.

    Raises ConfigError for an assignment that is not of that form.
    """
    result: dict[str, Any] = yaml.safe_load(yaml.safe_dump(values)) or {}
    for assignment in assignments:
        match = re.fullmatch(r"([A-Za-z_][\w.]*)=(.*)", assignment, flags=re.DOTALL)
        if not match:
            raise ConfigError(
                f"--set {assignment!r}: expected a dotted key and a value, as in --set recommender.optim.epochs=5"
            )
        *parents, last = match[1].split(".")
        node = result
        for key in parents:
            child = node.setdefault(key, {})
            if not isinstance(child, dict):
                raise ConfigError(f"--set {assignment!r}: {key} is a value, not a section")
            node = child
        try:
            node[last] = yaml.safe_load(match[2])
        except yaml.YAMLError as e:
            raise ConfigError(f"--set {assignment!r}: the value is not YAML ({e})") from e
    return result


def load(kind: type[T], path: str | Path, assignments: Iterable[str] = ()) -> T:
    """Read a YAML file, apply `--set` assignments, and validate.

    Raises ConfigError for a missing file, broken YAML, an unknown key or an impossible value.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except FileNotFoundError as e:
        raise ConfigError(
            f"{path}: no such file; the shipped ones are in ray_jobs/configs and serve_apps/configs"
        ) from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: not valid YAML: {e}") from e
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys at the top, got {type(values).__name__}")
    return parse(kind, override(values, assignments), str(path))


def dump(config: Config) -> str:
    """The resolved config as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
