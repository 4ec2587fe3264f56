"""Answers that are not Duo's blame neither the keys nor the permission."""

import json

import pytest
from conftest import JSON, ONLY, before

HTML = {"Content-Type": "text/html"}


@pytest.fixture
def impatient(collector):
    before(collector, "duo_collector.Retryable.patience_s = 0.1")
    return collector


@pytest.mark.parametrize("status", [200, 401, 403, 404, 407, 502])
def test_a_page_of_a_proxy_is_not_an_answer_of_duo(duo, impatient, status):
    duo.inject("telephony", *[(status, HTML, b"<html>Access denied</html>")] * 9)
    result = impatient.once(*ONLY)
    assert result.status == 75
    assert f"not an answer of Duo's API ({status} text/html" in result.stderr
    assert "proxy" in result.stderr and "DUO_API_HOST" in result.stderr
    assert "Grant read log" not in result.stderr and "copy all three" not in result.stderr


@pytest.mark.parametrize("status", [401, 403])
def test_json_of_a_proxy_is_not_an_answer_of_duo(duo, impatient, status):
    duo.inject("telephony", *[(status, JSON, b'{"error":"blocked by policy"}')] * 9)
    result = impatient.once(*ONLY)
    assert (result.status, "not an answer of Duo's API" in result.stderr) == (75, True)


def test_an_empty_401_is_a_refusal_of_duo(duo, collector):
    duo.inject("telephony", (401, {}, b""))
    result = collector.once(*ONLY)
    assert (result.status, "Duo refuses the credentials (401)" in result.stderr) == (77, True)


@pytest.mark.parametrize("response", [{}, {"logs": []}, {"items": None}])
def test_an_answer_without_the_list_names_it(duo, impatient, response):
    body = json.dumps({"stat": "OK", "response": response}).encode()
    duo.inject("telephony", *[(200, JSON, body)] * 9)
    result = impatient.once(*ONLY)
    assert (result.status, 'has no list "items": report it' in result.stderr) == (75, True)
    assert "proxy" not in result.stderr


def test_an_error_that_duo_does_not_document_is_quoted(duo, impatient):
    body = b'{"stat":"FAIL","code":1000,"message":"Nobody knows"}'
    duo.inject("telephony", *[(200, JSON, body)] * 9)
    result = impatient.once(*ONLY)
    words = "an error that it does not document (200 1000 Nobody knows): report it"
    assert (result.status, words in result.stderr) == (75, True)
