"""From the event log into the history store, exactly once."""

from hymirec.config import StreamConfig
from hymirec.streaming.consumer import ConsumerStatus, HistoryConsumer
from hymirec.streaming.decode import decode, erase_message, event_message
from hymirec.streaming.source import EventLog, Message

__all__ = [
    "ConsumerStatus",
    "EventLog",
    "HistoryConsumer",
    "Message",
    "decode",
    "erase_message",
    "event_message",
    "open_log",
]


def open_log(config: StreamConfig) -> EventLog:
    """The log that a config names: a source, a producer and the dead letters of one client library."""
    # Each log brings its own client library; only the one that is used is loaded.
    if config.source == "file":
        from hymirec.streaming.filelog import FileLog

        return FileLog(config)
    if config.source == "kafka-python":
        from hymirec.streaming.kafka_python import KafkaPythonLog

        return KafkaPythonLog(config)
    from hymirec.streaming.confluent import ConfluentLog

    return ConfluentLog(config)
