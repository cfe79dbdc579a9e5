"""The services that tests stand on are real and come back after a kill."""

from __future__ import annotations

import socket

import pytest
import redis
from services import RedisServer, free_port


def test_free_ports_differ_and_are_none_that_a_connection_may_take() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        ports = [free_port() for _ in range(300)]
        assert len(set(ports)) == 300
        assert taken.getsockname()[1] not in ports
    assert all(20_000 <= port < 32_768 for port in ports)


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
