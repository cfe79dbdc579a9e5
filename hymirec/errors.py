"""Every error the project raises on purpose.

HyMiRecError
├── ConfigError                     a wrong key, value or combination in a YAML or --set
├── DataError                       tables that cannot be used
│   └── ValidationError             `hymirec validate` found problems (each with row and column)
├── ArtifactError
│   ├── ArtifactMissingError        a file or directory that should be there is not
│   └── ArtifactDamagedError        a file's SHA-256 is not the one in its manifest
├── ModelError
│   ├── NonFiniteEmbeddingError     an embedding holds NaN or infinity; names the item
│   ├── ZeroCentroidError           a projection on a centroid of length zero
│   └── ModelMissingError           weights that are not on this machine
├── BundleError
│   └── BundleMismatchError         two stages of one request hold different bundles
├── HistoryError
│   ├── StoreUnavailableError       the store cannot be reached or opened
│   ├── StoreDamagedError           the store holds something that cannot be a record
│   ├── PositionConflictError       compare-and-set failed: another writer was here first
│   └── UnsupportedFormatError      written by a newer version; left untouched
├── StreamError
│   ├── EventError                  one message cannot be used; goes to the dead letters
│   ├── SourceUnavailableError      the log cannot be reached
│   ├── TopicRecreatedError         the topic's id is not the one the positions belong to
│   ├── PositionOutOfRangeError     the stored position is no longer (or not yet) in the log
│   ├── LogDamagedError             a message of the log does not pass its checksum
│   └── CodecMissingError           a message needs a compression codec that is not installed
├── ServiceError
│   ├── OverloadedError             the queue of a stage is full; shed, to be tried again later
│   └── StageUnavailableError       a stage died with the call, or cannot be reached
│       └── StageLateError          a stage gave no answer in time
└── RequestError                    a request that can never succeed as it is (HTTP 4xx)
    └── UnknownItemError            an item id that no bundle knows

Every message says what was expected, what came, and what to do next.
"""

from __future__ import annotations


class HyMiRecError(Exception):
    """Base of all errors raised on purpose by this project."""


class ConfigError(HyMiRecError):
    """A configuration that cannot work; raised before any worker starts."""


class DataError(HyMiRecError):
    """Tables that cannot be used as they are."""


class ValidationError(DataError):
    """`problems` holds one line a problem, each naming table, row and column."""

    def __init__(self, message: str, problems: list[str]) -> None:
        super().__init__(message)
        self.problems = problems


class ArtifactError(HyMiRecError):
    """Something on disk that a step or a bundle consists of."""


class ArtifactMissingError(ArtifactError):
    """A file or directory that should be there is not."""


class ArtifactDamagedError(ArtifactError):
    """A file is not the one its manifest describes."""


class ModelError(HyMiRecError):
    """The model or its numbers cannot be used."""


class NonFiniteEmbeddingError(ModelError):
    """An embedding holds NaN or infinity; the message names the item."""


class ZeroCentroidError(ModelError):
    """A projection on a centroid of length zero is not defined."""


class ModelMissingError(ModelError):
    """Weights that are not on this machine."""


class BundleError(HyMiRecError):
    """A bundle that cannot serve."""


class BundleMismatchError(BundleError):
    """Two stages of one request hold different bundles."""


class HistoryError(HyMiRecError):
    """The history store."""


class StoreUnavailableError(HistoryError):
    """The store cannot be reached or opened."""


class StoreDamagedError(HistoryError):
    """The store holds something that cannot be a record."""


class PositionConflictError(HistoryError):
    """Compare-and-set failed: the stored position is not the expected one."""


class UnsupportedFormatError(HistoryError):
    """Written by a newer version of this project; left untouched."""


class StreamError(HyMiRecError):
    """The event log."""


class EventError(StreamError):
    """One message that cannot be used. `reason` is a short machine-readable word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class SourceUnavailableError(StreamError):
    """The log cannot be reached."""


class TopicRecreatedError(StreamError):
    """The topic's id is not the one the stored positions belong to."""


class PositionOutOfRangeError(StreamError):
    """The stored position of `partition` is no longer, or not yet, in the log."""

    def __init__(self, message: str, partition: int) -> None:
        super().__init__(message)
        self.partition = partition


class LogDamagedError(StreamError):
    """A message of `partition` that was stored does not pass its checksum."""

    def __init__(self, message: str, partition: int) -> None:
        super().__init__(message)
        self.partition = partition


class PoisonedError(StreamError):
    """Of a partition's last messages so many cannot be used that its sender, or this program, must be wrong.

    `position` is the stored one, where the partition stands still; None: nothing was ever applied.
    """

    def __init__(self, message: str, position: int | None) -> None:
        super().__init__(message)
        self.position = position


class CodecMissingError(StreamError):
    """A message needs a compression codec that is not installed."""


class ServiceError(HyMiRecError):
    """The HTTP service."""


class OverloadedError(ServiceError):
    """The queue of a stage is full; never retried by the service itself."""


class StageUnavailableError(ServiceError):
    """A stage died with the call, or cannot be reached."""


class StageLateError(StageUnavailableError):
    """A stage gave no answer in time; never retried by the service itself, since it would take as long again."""


class RequestError(HyMiRecError):
    """A request that can never succeed as it is."""


class UnknownItemError(RequestError):
    """An item id that the bundle does not know."""
