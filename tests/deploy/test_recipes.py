"""deploy/shippers, what is not run: its syntax, what is connected to what, and its expressions on real lines."""

import configparser
import importlib
import json
import re
from datetime import datetime, timezone

import pytest
from conftest import Collector
from duo import Simulator, make_events

from deploy.common import changed, missing
from deploy.shipper import HOUR_MS, LOG_TYPES, SHIPPERS

ALL_TYPES = (*LOG_TYPES, "activity", "offline_enrollment", "trust_monitor")
VECTOR = ("vector.yaml", "vector-secops.yaml", "vector-sentinel.yaml")
MISLEADING = json.dumps(
    {"eventtype": "activity", "host": "evil", "ts": "1999-01-01T00:00:00+00:00"},
    separators=(",", ":"),
)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """Each log type's lines; among them some whose content looks like what the collector adds, and one of 200 KB."""
    with Simulator() as duo:
        collector = Collector(tmp_path_factory.mktemp("lines"), duo)
        now_ms = duo.now_ms()
        for log_type in ALL_TYPES:
            duo.add(log_type, make_events(log_type, 100, now_ms - 5 * HOUR_MS, now_ms - HOUR_MS))
        for log_type in ("administrator", "offline_enrollment"):
            event = make_events(log_type, 1, now_ms - 5 * HOUR_MS, now_ms - HOUR_MS, seed=1)[0]
            duo.add(
                log_type,
                json.dumps(
                    {**event, "description": MISLEADING, "object": '"eventtype":"telephony"'}
                ),
            )
        event = make_events("activity", 1, now_ms - 5 * HOUR_MS, now_ms - HOUR_MS, seed=1)[0]
        event["target"] = {"host": "nested", "eventtype": "nested"}
        duo.add("activity", json.dumps(event, separators=(",", ":")))
        event = make_events("authentication", 1, now_ms - 5 * HOUR_MS, now_ms - HOUR_MS, seed=1)[0]
        user = {"name": MISLEADING, "key": "DUXXXXXXXXXXXXXXXXXX", "groups": ["group"] * 25_000}
        duo.add("authentication", json.dumps({**event, "user": user}))
        collector.seed(**dict.fromkeys(ALL_TYPES, now_ms - 7 * HOUR_MS))
        written = collector.once("--log-types", ",".join(ALL_TYPES), "-q").stdout.splitlines()
    assert len(written) == 604
    assert max(map(len, written)) > 200_000
    return {
        one: [line for line in written if json.loads(line)["eventtype"] == one] for one in ALL_TYPES
    }


def from_yaml(text):
    try:
        return importlib.import_module("yaml").safe_load(text)
    except ImportError:
        return missing("PyYAML")


def configuration(name):
    return from_yaml((SHIPPERS / name).read_text())


def uncommented(name):
    """A configuration's lines that do something."""
    return "".join(re.findall(r"^\s*[^#\s].*\n", (SHIPPERS / name).read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    "name", [*VECTOR, "fluent-bit.yaml", "filebeat.yml", "otel-collector.yaml"]
)
def test_a_configuration_that_is_not_run_is_yaml(name):
    """And says in its head that it is not run."""
    assert "NOT RUN" in (SHIPPERS / name).read_text().split("\n\n")[0]
    assert isinstance(configuration(name), dict)


def connected(config):
    """The sources of a Vector configuration: each of its parts must be there, and be read by another."""
    sources, transforms = set(config["sources"]), config.get("transforms", {})
    routes = {
        f"{name}.{route}" for name, one in transforms.items() for route in one.get("route", ())
    }
    whole = {name for name, one in transforms.items() if "route" not in one}
    read = {
        name for one in [*transforms.values(), *config["sinks"].values()] for name in one["inputs"]
    }
    assert read == sources | whole | routes
    return sources


@pytest.mark.parametrize("name", VECTOR)
def test_vector_has_one_source(name):
    """One that nothing reads would run all the same: the collector, whose events would be gone."""
    assert connected(configuration(name)) == {"duo_file"}


@pytest.mark.parametrize(
    "variant, options", [("streaming", ["-q"]), ("scheduled", ["--once", "-q"])]
)
def test_vector_may_run_the_collector(variant, options):
    text = (SHIPPERS / "vector.yaml").read_text()
    text, count = re.subn(r"^  duo_file:.*?\n\n", "", text, flags=re.MULTILINE | re.DOTALL)
    assert count == 1
    config = from_yaml(changed(text, {f"#{variant} ": "", "[duo_file]": "[duo]"}))
    assert connected(config) == {"duo"}
    assert config["sources"]["duo"]["mode"] == variant
    assert variant in config["sources"]["duo"]
    assert config["sources"]["duo"]["include_stderr"] is False
    assert config["sources"]["duo"]["command"] == ["/usr/local/bin/duo-collector", "acme", *options]


def test_other_shippers_have_one_source_too():
    fluent_bit, filebeat = (
        configuration("fluent-bit.yaml")["pipeline"],
        configuration("filebeat.yml"),
    )
    assert [(one["name"], one["tag"]) for one in fluent_bit["inputs"]] == [("tail", "duo")]
    assert [one["match"] for one in fluent_bit["outputs"]] == ["duo"]
    assert [one["type"] for one in filebeat["filebeat.inputs"]] == ["filestream"]
    assert [name for name in filebeat if name.startswith("output.")] == ["output.elasticsearch"]
    otel = configuration("otel-collector.yaml")
    service = otel["service"]
    assert service["extensions"] == list(otel["extensions"])
    assert service["pipelines"] == {
        "logs": {"receivers": list(otel["receivers"]), "exporters": list(otel["exporters"])}
    }
    assert len(otel["receivers"]) == len(otel["exporters"]) == 1
    storage = [
        otel["receivers"]["filelog/duo"]["storage"],
        otel["exporters"]["otlp/siem"]["sending_queue"]["storage"],
    ]
    assert storage == 2 * service["extensions"]
    assert re.findall(r"\b(?:input|action)\(type=\"(\w+)\"", uncommented("rsyslog.conf")) == [
        "omfwd",
        "imfile",
    ]
    syslog_ng = re.findall(
        r"^(?:source|destination|log)\b|(?<![\w-])(?:wildcard-file|program|network)\(",
        uncommented("syslog-ng.conf"),
        re.M,
    )
    assert syslog_ng == ["source", "wildcard-file(", "destination", "network(", "log"]
    assert splunk("inputs.conf").sections() == ["monitor:///var/log/duo/*.jsonl"]


def test_tls_is_the_default_where_it_is_not_run():
    """With the receiver's certificate checked, and its name."""
    vector = configuration("vector.yaml")["sinks"]["siem"]
    assert vector["address"].endswith(":6514")
    assert vector["tls"] == {"enabled": True, "verify_certificate": True, "verify_hostname": True}
    fluent_bit = configuration("fluent-bit.yaml")["pipeline"]["outputs"][0]
    assert fluent_bit["port"] == 6514
    assert all(fluent_bit[name] is True for name in ("tls", "tls.verify", "tls.verify_hostname"))
    otel = configuration("otel-collector.yaml")["exporters"]["otlp/siem"]["tls"]
    assert not {"insecure", "insecure_skip_verify"} & set(otel)


def test_filebeat_fills_the_data_streams_of_elastics_integration(lines):
    """And each line has the field from which the ingest pipeline of its data stream takes the time."""
    streams = {
        "authentication": ("cisco_duo.auth", "timestamp"),
        "administrator": ("cisco_duo.admin", "timestamp"),
        "telephony": ("cisco_duo.telephony_v2", "ts"),
        "activity": ("cisco_duo.activity", "ts"),
        "offline_enrollment": ("cisco_duo.offline_enrollment", "timestamp"),
        "trust_monitor": ("cisco_duo.trust_monitor", "surfaced_timestamp"),
    }
    config = configuration("filebeat.yml")

    def data_stream(line):
        fields = {}
        for processor in config["processors"]:
            if "if" not in processor or processor["if"]["contains"]["message"] in line:
                for one in processor.get("then", [processor]):
                    assert one["add_fields"]["target"] == "data_stream"
                    fields.update(one["add_fields"]["fields"])
        return re.sub(
            r"%\{\[data_stream\.(\w+)\]\}",
            lambda found: fields[found[1]],
            config["output.elasticsearch"]["index"],
        )

    for log_type, (dataset, time_field) in streams.items():
        for line in lines[log_type]:
            assert data_stream(line) == f"logs-{dataset}-default"
            assert json.loads(line)[time_field]
            assert data_stream(line[: len(line) // 3]) == "logs-generic-default"


def test_vector_labels_log_types_for_google_secops(lines):
    source = configuration("vector-secops.yaml")["transforms"]["duo_labeled"]["source"]
    labels = re.findall(
        r"""if contains\(line, s'(.+?)'\) \{\s+\.log_type = "(\w+)"$""", source, re.MULTILINE
    )
    found = {
        one: {next((label for text, label in labels if text in line), None) for line in lines[one]}
        for one in lines
    }
    assert found == {
        "authentication": {"DUO_AUTH"},
        "administrator": {"DUO_ADMIN"},
        "activity": {"DUO_ACTIVITY"},
        "telephony": {"DUO_TELEPHONY"},
        "offline_enrollment": {None},
        "trust_monitor": {"DUO_TRUST_MONITOR"},
    }


def test_vector_routes_log_types_to_sentinels_tables(lines):
    config = configuration("vector-sentinel.yaml")
    streams = {
        sink["inputs"][0].split(".")[1]: sink["stream_name"] for sink in config["sinks"].values()
    }
    found = {one: set() for one in lines}
    for log_type in lines:
        for line in lines[log_type]:
            for route, condition in config["transforms"]["duo_table"]["route"].items():
                field, value = re.fullmatch(r'\.(\w+) == "(\w+)"', condition).groups()
                if json.loads(line)[field] == value:
                    found[log_type].add(streams[route])
    assert {one: names for one, names in found.items() if names} == {
        "authentication": {"Custom-DuoAuthentication_CL"},
        "activity": {"Custom-DuoActivity_CL"},
        "telephony": {"Custom-DuoTelephony_CL"},
    }


def given_time(event):
    """When an event happened, by Duo."""
    if "surfaced_timestamp" in event:
        return datetime.fromtimestamp(event["surfaced_timestamp"] / 1000, timezone.utc)
    return datetime.fromisoformat(event.get("isotimestamp") or event["ts"])


@pytest.mark.parametrize("log_type", ALL_TYPES)
def test_the_opentelemetry_collector_finds_the_time(log_type, lines):
    parser, *times = configuration("otel-collector.yaml")["receivers"]["filelog/duo"]["operators"]
    assert (parser["type"], parser["parse_to"]) == ("json_parser", "attributes.duo")
    for line in lines[log_type]:
        attributes = {"duo": json.loads(line)}
        found = []
        for one in times:
            field = re.fullmatch(r"attributes\.duo\?\.(\w+) != nil", one["if"])[1]
            assert one["parse_from"] == f"attributes.duo.{field}"
            value = attributes["duo"].get(field)
            if value is not None:
                epoch = (one["layout_type"], one["layout"]) == ("epoch", "ms")
                assert epoch or (one["layout_type"], one["layout"]) == (
                    "gotime",
                    "2006-01-02T15:04:05Z07:00",
                )
                found.append(
                    datetime.fromtimestamp(value / 1000, timezone.utc)
                    if epoch
                    else datetime.fromisoformat(value)
                )
        assert found == [given_time(attributes["duo"])]


def splunk(name):
    """A .conf file of Splunk's; a setting given twice in a stanza is an error."""
    parser = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str
    parser.read_string((SHIPPERS / "splunk" / name).read_text())
    return parser


def test_splunk_knows_the_sourcetype():
    monitor = splunk("inputs.conf")["monitor:///var/log/duo/*.jsonl"]
    assert monitor["sourcetype"] in splunk("props.conf")


@pytest.mark.parametrize("log_type", ALL_TYPES)
def test_splunk_finds_event_and_time(log_type, lines):
    """The expressions: each line is an event, at the time that Duo gave it."""
    props = splunk("props.conf")["duo:trust_monitor" if log_type == "trust_monitor" else "duo"]
    stdout = "".join(f"{line}\n" for line in lines[log_type])
    events = re.split(props["LINE_BREAKER"], stdout)[::2][
        :-1
    ]  # it captures, so every other piece is a line break
    assert events == lines[log_type]
    for text in events:
        assert len(text) < int(props["TRUNCATE"])
        start = re.search(props["TIME_PREFIX"], text).end()
        found = text[start : start + int(props["MAX_TIMESTAMP_LOOKAHEAD"])]
        event = json.loads(text)
        if props["TIME_FORMAT"] == "%s%3N":
            assert int(found) == event["surfaced_timestamp"]
        else:
            at = datetime.strptime(found, props["TIME_FORMAT"]).replace(tzinfo=timezone.utc)
            assert (at, props["TZ"]) == (given_time(event).replace(microsecond=0), "UTC")


@pytest.mark.parametrize("log_type", ALL_TYPES)
def test_splunk_gives_the_sourcetype_that_its_detections_search(log_type, lines):
    """Whichever comes first, SEDCMD or TRANSFORMS; and Duo's own fields stay as they are."""
    props, transforms = splunk("props.conf"), splunk("transforms.conf")
    stanza = props["duo:trust_monitor" if log_type == "trust_monitor" else "duo"]
    commands = [stanza[name].split("/") for name in stanza if name.startswith("SEDCMD-")]
    transform = transforms[stanza["TRANSFORMS-duo_sourcetype"]]
    sourcetype = f"cisco:duo:{log_type}"
    assert props[sourcetype]["KV_MODE"] == "json"
    of_a_child = lines[log_type][0][:-1] + ',"child_account_id":"DAXXXXXXXXXXXXXXXXXX"}'
    for line in [*lines[log_type], of_a_child]:
        renamed = line
        for s, pattern, replacement, flags in commands:
            assert (s, flags) == ("s", "")
            renamed = re.sub(pattern, replacement, renamed, count=1)
        event = json.loads(line)
        event["extracted_eventtype"], event["extracted_host"] = (
            event.pop("eventtype"),
            event.pop("host"),
        )
        assert json.loads(renamed) == event
        for text in (line, renamed):
            found = re.search(transform["REGEX"], text[: int(transform["LOOKAHEAD"])])
            assert (
                found.expand(transform["FORMAT"].replace("$1", r"\1"))
                == f"sourcetype::{sourcetype}"
            )
        torn = re.search(transform["REGEX"], line[: len(line) // 3])
        assert torn is None
    if log_type == "administrator":
        assert props[sourcetype]["EVAL-actionlabel"] == "coalesce(actionlabel, action)"
        assert all("action" in json.loads(line) for line in lines[log_type])
