"""--check behind a filter: neither the permission nor the keys are blamed for what is not Duo's."""

import pytest
from conftest import JSON, ONLY

PAGE = ({"Content-Type": "text/html"}, b"<html>Blocked by Example Filter</html>")


@pytest.mark.parametrize("status", [401, 403, 404, 200, 502])
def test_a_filters_page_is_75_and_names_proxy_and_host(duo, collector, status):
    duo.inject("telephony", (status, *PAGE))
    result = collector.run("--check", *ONLY)
    words = f"not an answer of Duo's API ({status} text/html, not Duo's JSON): "
    assert (result.status, words in result.stdout) == (75, True), result.stdout
    assert "a proxy or a filter answers in its place, DUO_API_HOST is not your" in result.stdout
    for wrong in ("Grant read log", "copy all three", "DUO_LOG_TYPES"):
        assert wrong not in result.stdout


@pytest.mark.parametrize(
    "body, words",
    [
        (b'{"stat":"OK","response":{}}', 'Duo\'s answer has no list "authlogs": report it'),
        (b'{"stat":"OK","response":{"logs":[]}}', 'Duo\'s answer has no list "authlogs": report'),
        (
            b'{"stat":"FAIL","code":1000,"message":"Nobody knows"}',
            "Duo answers with an error that it does not document (200 1000 Nobody knows): report",
        ),
    ],
    ids=["no list", "another list", "an unknown code"],
)
def test_json_of_duos_shape_is_duos(duo, collector, body, words):
    duo.inject("authentication", (200, JSON, body))
    result = collector.run("--check", "--log-types", "authentication")
    assert (result.status, words in result.stdout) == (75, True), result.stdout
    assert "proxy" not in result.stdout


def test_an_empty_401_may_be_duos(duo, collector):
    duo.inject("telephony", (401, {}, b""))
    result = collector.run("--check", *ONLY)
    assert (result.status, "refuses the credentials (401)" in result.stdout) == (77, True)
