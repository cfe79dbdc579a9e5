"""The services that tests stand on are real and come back after a kill."""

from __future__ import annotations

import pytest
import redis
from services import RedisServer


@pytest.mark.redis
def test_redis_keeps_synced_writes_over_a_kill(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="always").start()
    try:
        with redis.Redis.from_url(server.url) as client:
            client.set("a", "1")
        server.kill()
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("a") == b"1"
    finally:
        server.stop()
