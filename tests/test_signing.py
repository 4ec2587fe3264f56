"""Every request is signed as Duo's own client signs it, when it is sent and for nobody but Duo."""

import base64
import email.utils
import hashlib
from urllib.parse import parse_qs, urlsplit

import duo_client.client
import pytest
import requests
from conftest import ONLY, log_requests
from duo import Simulator, make_events
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duo_collector import Settings, canonical_query, sign

IKEY, SKEY, HOST = "DIXXXXXXXXXXXXXXXXXX", "deadbeef" * 5, "api-XXXXXXXX.duosecurity.com"


PATH, DATE = "/admin/v2/logs/authentication", "Mon, 02 Mar 2026 09:00:00 -0000"


RESERVED = ":/?#[]@!$&'()*+,;=%-._~ \"<>\\^`{|}\0\t\r\n"


SESSION = requests.Session()


def signature(base_url, date=DATE):
    """What signs a request of these keys, as requests calls it."""
    ours = Settings(base_url=base_url, integration_key=IKEY, secret_key=SKEY)
    return lambda request: sign(request, ours, date)


def prepared(parameters, host=HOST, method="GET", path=PATH, body=None):
    """The request as it would go out."""
    url, auth = f"https://{HOST}{path}?{canonical_query(parameters)}", signature(f"https://{host}")
    return SESSION.prepare_request(requests.Request(method, url, auth=auth, data=body))


# Not one alphabet of both: newer versions of Hypothesis draw few reserved characters from that,
# older ones are slow.
TEXT = st.builds(
    str.__add__,
    st.text(RESERVED, max_size=5),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(TEXT, TEXT, max_size=6))
def test_any_parameters_are_signed_as_duos_client_signs_them(parameters):
    request, lists = prepared(parameters), {name: [text] for name, text in parameters.items()}
    signed = duo_client.client.sign(
        IKEY,
        SKEY,
        "GET",
        HOST,
        PATH,
        DATE,
        5,
        lists,
        body="",
        digestmod=hashlib.sha512,
        additional_headers={},
    )
    assert (request.headers["Authorization"], request.headers["Date"]) == (signed, DATE)
    assert parse_qs(urlsplit(request.url).query, keep_blank_values=True) == lists


@pytest.mark.parametrize(
    "parameters", [{}, {"account_id": "DA0123456789ABCDEFGH"}], ids=["none", "one"]
)
@pytest.mark.parametrize("body", ["{}", '{"name": "\\u00e9"}', ""])
def test_a_body_is_signed_as_duos_client_signs_it(body, parameters):
    path = "/accounts/v1/account/list"
    request = prepared(parameters, method="POST", path=path, body=body.encode())
    lists = {name: [text] for name, text in parameters.items()}
    signed = duo_client.client.sign(
        IKEY,
        SKEY,
        "POST",
        HOST,
        path,
        DATE,
        5,
        lists,
        body=body,
        digestmod=hashlib.sha512,
        additional_headers={},
    )
    assert (request.headers["Authorization"], request.headers["Date"]) == (signed, DATE)
    assert (request.body or b"").decode() == body


@pytest.mark.parametrize("host", [HOST, HOST.lower(), HOST.upper()])
def test_the_vector_that_was_computed_by_hand(host):
    parameters = {
        "sort": "ts:asc",
        "next_offset": "1772438400123,340a23e3-23f3-23c1-87dc-1491a23dfdbb",
        "mintime": "1772438400000",
        "maxtime": "1772441880000",
        "limit": "1000",
    }
    scheme, encoded = prepared(parameters, host).headers["Authorization"].split()
    assert (scheme, base64.b64decode(encoded).decode()) == (
        "Basic",
        "DIXXXXXXXXXXXXXXXXXX:0284eb0513a99a2a10d554ec034d2981d4469154720a96f10282d24f327702a9"
        "41da39cb4719a3b0d9ae9980c65fc3c5ed8db13117b70c684dac53c096f9aa74",
    )


def test_what_is_signed_is_what_arrives(duo):
    now_ms = duo.now_ms()
    window = {"mintime": str(now_ms - 600_000), "maxtime": str(now_ms - 300_000)}
    parameters = {**window, RESERVED: RESERVED + "é山", "a": ""}
    auth = signature(duo.url, email.utils.formatdate())
    SESSION.get(f"{duo.url}{PATH}?{canonical_query(parameters)}", auth=auth, timeout=60)
    assert [(request.status, request.params) for request in duo.requests] == [(200, parameters)]


def test_each_page_and_each_retry_is_signed_with_its_own_date(duo, collector):
    duo.rules.latency_s = 1.1  # a date has whole seconds
    now_ms = duo.now_ms()
    collector.seed(telephony=now_ms - 900_000)
    duo.add("telephony", make_events("telephony", 1500, now_ms - 600_000, now_ms - 300_000))
    duo.inject("telephony", None, "error_503")
    result = collector.once(*ONLY)
    assert (result.status, len(result.events)) == (0, 1500), result.stderr
    signed = log_requests(duo)
    dates = [email.utils.mktime_tz(email.utils.parsedate_tz(request.date)) for request in signed]
    assert len(set(dates)) == len(dates) >= 4
    assert all(abs(date - request.wall) < 10 for date, request in zip(dates, signed))


def test_neither_a_netrc_nor_the_local_time_touches_the_signature(
    duo, collector, tmp_path, monkeypatch
):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert requests.utils.get_netrc_auth(duo.url) == (
        "somebody",
        "else",
    )  # which requests would send
    now_ms = duo.now_ms()
    collector.seed(telephony=now_ms - 900_000)
    duo.add("telephony", make_events("telephony", 3, now_ms - 600_000, now_ms - 300_000))
    environ = {
        "HOME": str(tmp_path),
        "TZ": "America/New_York",
        "LC_ALL": "de_DE.UTF-8",
        "LANGUAGE": "de",
    }
    result = collector.once(*ONLY, environ=environ)
    assert (result.status, len(result.events)) == (0, 3), result.stderr


@pytest.mark.parametrize("target", ["http://[", "/\xe9"])
def test_a_redirect_to_nowhere_is_an_answer_that_makes_no_sense(target, duo, collector):
    duo.inject("administrator", (302, {"Location": target}, b""))
    result = collector.run("--check")
    assert (result.status, " ERROR " in result.stderr) == (75, False)
    assert [line.split(": ")[0] for line in result.stdout.splitlines()] == [
        "authentication",
        "administrator",
        "telephony",
    ]


def test_no_redirect_is_followed(duo, collector):
    with Simulator() as other:
        for log_type, status, target in (
            ("authentication", 301, f"{other.url}/admin/v2/logs/authentication"),
            ("administrator", 302, f"{duo.url}/admin/v1/elsewhere"),
            ("telephony", 307, "/elsewhere"),
        ):
            duo.inject(log_type, (status, {"Location": target}, b""))
        result = collector.run("--check")
        assert (result.status, len(result.stdout.splitlines())) == (75, 3)
        asked = sorted(request.log_type for request in log_requests(duo))
        assert asked == ["administrator", "authentication", "telephony"]
        assert other.connections == 0
