"""The served document is true: whatever it allows gets an answer that it describes."""

from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from residency.server.openapi import document
from support.servers import Running

PROMISES = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
GENERATIONS = "^/v1/.*completions$"
SETTINGS = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
schema = schemathesis.openapi.from_dict(document())


def check(case: schemathesis.Case[Any], server: Running) -> None:
    if isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = "small"  # else nearly every request ends there
    case.call_and_validate(base_url=server.url, checks=PROMISES)


@schema.exclude(path_regex=GENERATIONS).parametrize()
@SETTINGS
def test_an_answer_is_as_the_document_says(case: schemathesis.Case[Any], server: Running) -> None:
    check(case, server)


@schema.include(path_regex=GENERATIONS).parametrize()
@SETTINGS
def test_a_generation_is_as_the_document_says(case: schemathesis.Case[Any], server: Running) -> None:
    check(case, server)


def test_the_document_is_served(server: Running) -> None:
    assert httpx.get(f"{server.url}/openapi.json").json() == document()
