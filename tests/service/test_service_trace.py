"""Ids of requests, and lines of JSON that carry them."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service_kit import LocalService, service_config

from hymirec.service.logs import ROOT, JsonFormatter, request_id, start_logs

OURS = re.compile(r"[0-9a-f]{32}")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the JSON logs of this process write; afterwards they are as they were."""
    logger = logging.getLogger(ROOT)
    before = list(logger.handlers), logger.level, logger.propagate
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    start_logs("json")
    yield written
    logger.handlers, logger.level, logger.propagate = before[0], before[1], before[2]


def parsed(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


@pytest.fixture(scope="module")
def service(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    directory = tmp_path_factory.mktemp("trace")
    service = LocalService(service_config(bundle, directory), directory)
    yield service
    service.close()


@pytest.mark.parametrize("given", ["abc-1", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "x" * 128])
def test_a_request_keeps_the_id_that_it_came_with(service: LocalService, given: str) -> None:
    reply = service.call("POST", "/v1/recommend", json={"user_id": "ada"}, headers={"X-Request-Id": given})
    assert reply.headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize("given", [None, "", "x" * 129, "two words", 'a"}'])
def test_a_request_without_a_fit_id_gets_one(service: LocalService, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-Id": given}
    replies = [service.call("GET", "/v1/items/none", headers=headers) for _ in range(2)]
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert all(OURS.fullmatch(found) for found in ids)
    assert ids[0] != ids[1]


def test_lines_of_a_request_carry_its_id_its_bundle_and_its_position_and_no_user(
    service: LocalService, lines: io.StringIO
) -> None:
    reply = service.call("POST", "/v1/recommend", json={"user_id": "zoltan"}, headers={"X-Request-Id": "r-1"})
    service.call("GET", "/v1/users/zoltan/history", headers={"X-Request-Id": "r-2"})
    found = [line for line in parsed(lines) if line.get("request_id")]
    told = next(line for line in found if line["message"] == "recommended")
    body = reply.json()
    assert told["request_id"] == "r-1"
    assert (told["bundle"], told["position"], told["reason"]) == (
        body["bundle"],
        body["as_of"]["offsets"],
        "cold_start",
    )
    requests = {line["request_id"]: line for line in found if line["message"] == "request"}
    assert (requests["r-1"]["method"], requests["r-1"]["path"], requests["r-1"]["status"]) == (
        "POST",
        "/v1/recommend",
        200,
    )
    assert requests["r-2"]["path"] == "/v1/users"
    assert "zoltan" not in lines.getvalue()
    assert request_id.get() == ""


def test_a_line_is_json_whatever_is_in_it() -> None:
    record = logging.LogRecord("hymirec.x", logging.WARNING, "", 0, 'a "quoted"\nline of %s', ("two",), None)
    record.place = Path("somewhere")
    try:
        raise ValueError("oh")
    except ValueError as e:
        record.exc_info = (type(e), e, e.__traceback__)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert (found["level"], found["logger"], found["message"]) == ("WARNING", "hymirec.x", 'a "quoted"\nline of two')
    assert found["place"] == "somewhere"
    assert found["exception"].endswith("ValueError: oh")
    assert "request_id" not in found


def test_text_logs_are_left_as_they_are_and_json_ones_begin_once(lines: io.StringIO) -> None:
    handlers = list(logging.getLogger(ROOT).handlers)
    start_logs("json")
    start_logs("text")
    assert logging.getLogger(ROOT).handlers == handlers
