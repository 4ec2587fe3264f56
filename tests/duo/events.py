"""Made-up events that look like Duo's."""

import json
import random
from datetime import datetime, timedelta
from typing import Any, Dict, Iterable, List, Optional, Tuple

from .rules import EPOCH

# What made-up events are made of: texts that occur in Duo's documentation and in captured events,
# with the nulls, the "unknown" strings and the non-ASCII names that have broken other collectors.
NAMES = (
    "amelia.brown",
    "björn.andersson",
    "chloé.lefèvre",
    "grace.o'neill",
    "jürgen.müller",
    "мария.иванова",
    "noor şahin",
    "山田太郎",
    "svc_backup",
    "CORP\\dmitri",
)
PLACES: Tuple[Any, ...] = (
    {"city": "Ann Arbor", "country": "United States", "state": "Michigan"},
    {"city": "São Paulo", "country": "Brazil", "state": "São Paulo"},
    {"city": None, "country": "Japan", "state": None},
    {"city": None, "country": None, "state": None},
    {},
)
APPLICATIONS = ("Acme VPN", "Microsoft 365", "Café Intranet – Mail", 'Jenkins "build" farm')
FACTORS = (
    "duo_push",
    "duo_push",
    "verified_duo_push",
    "phone_call",
    "duo_mobile_passcode",
    "hardware_token",
    "WebAuthn Chrome Touch ID",
    "remembered_device",
    "not_available",
    None,
)
REASONS = {
    "success": ("user_approved", "valid_passcode", "remembered_device", "bypass_user", None),
    "denied": ("no_response", "user_mistake", "invalid_passcode", "location_restricted"),
    "fraud": ("user_marked_fraud",),
}
BROWSERS = (("Chrome", "130.0.6723.92"), ("Edge Chromium", "130.0.2849.68"), (None, None))
SYSTEMS = (("Windows", "10"), ("Mac OS X", "14.7.1"), ("Linux", None), ("iOS", "18.1"))
AGENTS: Tuple[Any, ...] = (
    None,
    "unknown",
    [],
    [{"security_agent": "Cisco Secure Endpoint", "version": "8.2.1"}],
)
# What fixtures of other collectors show beside Duo's documentation: assessments of risk-based
# authentication in full, empty and absent; the other two members were only seen by name.
ASSESSMENTS: Tuple[Any, ...] = (
    {},
    {
        "more_secure_auth": {
            "detected_attack_detectors": None,
            "features_version": "3.0",
            "model_version": "2022.07.19.001",
            "policy_enabled": False,
            "preview_mode_enabled": True,
            "reason": "Normal level of trust; no detection of known attack pattern",
            "trust_level": "NORMAL",
        },
        "remember_me": {
            "features_version": "3.0",
            "model_version": "2022.07.19.001",
            "policy_enabled": False,
            "reason": "Novel Access IP",
            "trust_level": "LOW",
        },
    },
    {
        "more_secure_auth": {
            "detected_attack_detectors": ["NOVEL_ASN"],
            "features_version": "3.0",
            "model_version": "2022.07.19.001",
            "policy_enabled": True,
            "reason": "Low level of trust",
            "trust_level": "LOW",
        }
    },
)
RISK_MEMBERS: Tuple[Any, ...] = (
    {},
    {"adaptive_trust_assessments": ASSESSMENTS[0]},
    {"adaptive_trust_assessments": ASSESSMENTS[1], "trusted_session_info": None},
    {
        "adaptive_trust_assessments": ASSESSMENTS[2],
        "passport_assessment": None,
        "trusted_session_info": {},
    },
)
SYNC = "AD Sync: corp.example.com"
ADMIN_ACTIONS = (  # action, object, and a description if Duo sends one
    (
        "admin_login",
        None,
        '{"ip_address": "198.51.100.7", "device": "+1 734-555-0100", "factor": '
        '"push", "saml_idp": null, "primary_auth_method": "Password"}',
    ),
    (
        "admin_login_error",
        None,
        '{"ip_address": "203.0.113.4", "error": "SAML login is disabled '
        'for the administrator or the account", "email": "nobody@example.com"}',
    ),
    (
        "user_update",
        "björn.müller",
        '{"notes": "", "uname": "björn.müller", "realname": "Björn '
        'Müller", "status": "Active", "lastdirectorysync": "2026-03-02"}',
    ),
    ("user_create", "山田", '{"uname": "山田", "status": "Active", "phones": {}, "groups": []}'),
    ("integration_update", "Acme VPN", '{"sso": {"groups": ["büro"]}, "notes": "one\\ntwo"}'),
    ("customer_update", "Acme Corp", "Changed the account's lockout threshold to 10."),
    ("group_create", "eng", None),
    ("phone_delete", None, None),
    ("activation_begin", "new admin"),
    ("customer_update", "Acme Corp", "{'name': 'Acme Corp', 'notes': \"cut sho"),  # not valid JSON
)
# Those who are no administrators, with what they do.
MACHINE_ACTIONS = (
    ("System", "admin_lockout", "Zoë Owner", '{"reason": "inactivity"}'),
    ("API (Admin API)", "bypass_create", "björn.müller", '{"bypass": "", "count": 1}'),
    ("API (Admin API)", "integration_skey_view", "Acme VPN", None),
    ("API (Admin API)", "policy_create", "Contractors", '{"sections": {}}'),
    (SYNC, "ad_sync_by_user_begin", "noor şahin", None),
    (SYNC, "ad_sync_by_user_finish", "noor şahin", '{"status": "Success"}'),
)
EXPLANATIONS = [
    {"type": "NEW_COUNTRY_CODE", "summary": "Authentication from a country new to this user."},
    {"type": "NEW_NETBLOCK", "summary": "Authentication from a netblock new to this user."},
    {"type": "NEW_IKEY", "summary": "Access to an application new to this user."},
]
DETAILS = json.dumps(
    {
        "created": "2024-03-01T09:00:00",
        "email": "admin@example.com",
        "role": "Owner",
        "status": "Active",
        "last_login": "an hour ago",
    }
)


class Draw(random.Random):
    """Chance, and the small parts that events have in common."""

    def key(self, prefix: str) -> str:
        return f"{prefix}{self.randrange(128):03d}Q7WZKX2M4VNB8RTY"[:20]

    def address(self) -> str:
        return f"198.51.100.{self.randrange(256)}"

    def uuid(self) -> str:
        digits = f"{self.getrandbits(128):032x}"
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))

    def party(self, prefix: str, **more: Any) -> Dict[str, Any]:
        return {"key": self.key(prefix), "name": self.choice(NAMES), **more}

    def access_device(self) -> Dict[str, Any]:
        browser, system = self.choice(BROWSERS), self.choice(SYSTEMS)
        secured = self.choice((True, True, False, "unknown"))
        return {
            "browser": browser[0],
            "browser_version": browser[1],
            "device_info_source": self.choice((None, "Duo Desktop", "User Agent")),
            "epkey": self.key("EP"),
            "flash_version": "uninstalled",
            "hostname": self.choice((None, "null", "LT-0042")),
            "ip": self.choice((self.address(), "2001:db8::7", "203.0.113.9:51432", None)),
            "is_encryption_enabled": secured,
            "is_firewall_enabled": secured,
            "is_password_set": self.choice((secured, None)),
            "java_version": self.choice((None, "uninstalled")),
            "location": self.choice(PLACES),
            "os": system[0],
            "os_version": system[1],
            "security_agents": self.choice(AGENTS),
        }


def _iso(time_us: int) -> str:
    return (EPOCH + timedelta(microseconds=time_us)).isoformat()


def _authentication(draw: Draw, time_us: int) -> Dict[str, Any]:
    result = draw.choice(("success",) * 7 + ("denied", "denied", "fraud"))
    device = {
        "ip": draw.address(),
        "key": draw.key("DP"),
        "location": draw.choice(PLACES),
        "name": "+1 734-555-0142",
        "serial": draw.choice((None, None, "CCCCCC012345")),
        "type": draw.choice((None, "Mobile", "Hardware token")),
    }
    event = {
        "access_device": draw.access_device(),
        "alias": draw.choice(("", "unknown")),
        "application": {"key": draw.key("DI"), "name": draw.choice(APPLICATIONS)},
        "auth_device": device,
        "email": draw.choice(("", None, "someone@example.com")),
        "event_type": draw.choice(("authentication", "authentication", "enrollment", None)),
        "factor": draw.choice(FACTORS),
        "isotimestamp": _iso(time_us),
        "ood_software": draw.choice((None, "")),
        "reason": draw.choice(REASONS[result]),
        "result": result,
        "timestamp": time_us // 1_000_000,
        "trusted_endpoint_status": draw.choice(("not trusted", "unknown", None)),
        "txid": draw.uuid(),
        "user": draw.party("DU", groups=['All (AD "corp")', "VPN"]),
        **draw.choice(RISK_MEMBERS),
    }
    if draw.random() < 0.05:  # somebody whom Duo does not know
        event.update(
            result="denied",
            reason="deny_unenrolled_user",
            auth_device=dict.fromkeys(device),
            user={"groups": [], "key": None, "name": draw.choice(NAMES)},
        )
    return event


def _activity(draw: Draw, time_us: int) -> Dict[str, Any]:
    event = {
        "access_device": {**draw.access_device(), "ip": {"address": draw.address()}},
        "action": {
            "details": draw.choice((None, DETAILS)),
            "name": draw.choice(("admin_update", "phone_create", "webauthncredential_create")),
            "result": None,
        },
        "activity_id": draw.uuid(),
        "actor": draw.party("DE", details=DETAILS, type="admin"),
        "akey": "DAXXXXXXXXXXXXXXXXXX",
        "application": draw.choice(
            (None, {"key": draw.key("DI"), "name": "Admin Panel", "type": "adminapi"})
        ),
        "old_target": None,
        "outcome": {"result": draw.choice(("SUCCESS", "FAILURE"))},
        "target": draw.party("DU", details=DETAILS, type="user_phone"),
        "ts": _iso(time_us),
    }
    if draw.random() < 0.2:
        del event["access_device"], event["old_target"]  # often absent rather than null
    return event


def _telephony(draw: Draw, time_us: int) -> Dict[str, Any]:
    context = draw.choice(("authentication", "enrollment", "administrator login", "verify"))
    return {
        "context": context,
        "credits": draw.randrange(6),
        "phone": f"+1734555{draw.randrange(10000):04d}",
        "telephony_id": draw.uuid(),
        "ts": _iso(time_us),
        "txid": draw.choice((None, draw.uuid())),
        "type": draw.choice(("sms", "phone")),
    }


def _v1_event(
    time_us: int, name: str, action: str, subject: Optional[str], *description: Optional[str]
) -> Dict[str, Any]:
    at_s = time_us // 1_000_000
    event = {
        "action": action,
        "isotimestamp": _iso(at_s * 1_000_000),
        "object": subject,
        "timestamp": at_s,
        "username": name,
    }
    return {**event, "description": description[0]} if description else event


def _administrator(draw: Draw, time_us: int) -> Dict[str, Any]:
    if draw.random() < 0.3:
        return _v1_event(time_us, *draw.choice(MACHINE_ACTIONS))
    name = draw.choice(("", "API", "Zoë Owner", "AD Sync", "[Björn's key]"))
    return _v1_event(time_us, name, *draw.choice(ADMIN_ACTIONS))


def _offline_enrollment(draw: Draw, time_us: int) -> Dict[str, Any]:
    description = {
        "user_agent": "DuoCredProv/4.3.0.1000 (Windows NT 10.0.19045; x64; Server)",
        "hostname": f"LT-{draw.randrange(100):04d}",
        "factor": draw.choice(("duo_otp", "security_key")),
    }
    action = draw.choice(("provisioned", "deprovisioned", "reenrolled"))
    return _v1_event(
        time_us,
        draw.choice(NAMES),
        "o2fa_user_" + action,
        "Microsoft RDP – laptops",
        json.dumps(description),
    )


def _trust_monitor(draw: Draw, time_us: int) -> Dict[str, Any]:
    at_ms, kind, sekey = time_us // 1000, draw.randrange(4), f"SE{draw.uuid().upper()[:18]}"
    event = {
        "priority_event": draw.random() < 0.1,
        "priority_reasons": [],
        "sekey": sekey,
        "state": "new",
        "state_updated_timestamp": None,
        "surfaced_timestamp": at_ms,
        "triage_event_uri": f"https://admin-xxxxxxxx.duosecurity.com/trust-monitor?{sekey}",
        "triaged_as_interesting": False,
    }
    if kind == 0:
        return {
            **event,
            "type": "bypass_status_enabled",
            "bypass_status_enabled": at_ms - 60_000,
            "enabled_by": draw.party("DE"),
            "enabled_for": draw.party("DU"),
        }
    if kind == 1:
        outdated = {"type": "REGISTER_OS_OUTDATED", "summary": "An outdated system registered."}
        return {**event, "type": "device_registration", "explanations": [outdated]}
    surfaced = {**_authentication(draw, at_ms * 1000), "event_type": None}
    return {
        **event,
        "type": "auth",
        "surfaced_auth": surfaced,
        "explanations": EXPLANATIONS,
        "from_common_netblock": True,
        "from_new_user": False,
        "low_risk_ip": False,
    }


MAKERS = {
    "authentication": _authentication,
    "activity": _activity,
    "telephony": _telephony,
    "administrator": _administrator,
    "offline_enrollment": _offline_enrollment,
    "trust_monitor": _trust_monitor,
}


def _times_us(draw: Draw, count: int, start_ms: int, end_ms: int) -> List[int]:
    """Ascending times from start_ms to before end_ms, with ties as real logs have them."""
    span_us = (end_ms - start_ms) * 1000
    times = sorted(start_ms * 1000 + int(draw.random() * span_us) for _ in range(count))
    for index in range(1, count):
        if index % 20 == 0:  # the same µs
            times[index] = times[index - 1]
        elif index % 20 == 10:  # the same ms, another µs
            times[index] = times[index - 1] // 1000 * 1000 + draw.randrange(1000)
        elif 240 < index % 500 < 260:  # a burst within a second, as by a directory sync
            times[index] = times[index - 1] // 1_000_000 * 1_000_000 + times[index] % 1_000_000
    return sorted(min(max(time_us, start_ms * 1000), end_ms * 1000 - 1) for time_us in times)


def iter_events(
    log_type: str, count: int, start_ms: int, end_ms: int, seed: int = 0
) -> Iterable[Dict[str, Any]]:
    """make_events, one at a time: a million events as dicts would fill the memory."""
    draw, make = Draw(f"{log_type} {seed}"), MAKERS[log_type]
    for time_us in _times_us(draw, count, start_ms, end_ms):
        yield make(draw, time_us)


def make_events(
    log_type: str, count: int, start_ms: int, end_ms: int, seed: int = 0
) -> List[Dict[str, Any]]:
    """Realistic events from start_ms to end_ms, ascending, and always the same for a seed.

    They share some of their nested values: change one only at its top level. Administrator and
    offline enrolment events have whole seconds, so the first may seem to precede start_ms.
    """
    return list(iter_events(log_type, count, start_ms, end_ms, seed))


def with_shared_ids(events: Iterable[Any]) -> Iterable[Any]:
    """The events of a v2 log, and after every tenth another one with its id, a minute later."""
    for number, event in enumerate(events):
        yield event
        if number % 10 == 0 and isinstance(event, dict):
            yield _a_minute_later(event)


def _a_minute_later(event: Dict[str, Any]) -> Dict[str, Any]:
    later = dict(event)
    for name in ("isotimestamp", "ts"):
        if isinstance(event.get(name), str):
            moment = datetime.fromisoformat(event[name].replace("Z", "+00:00"))
            later[name] = (moment + timedelta(minutes=1)).isoformat()
    if isinstance(event.get("timestamp"), int):
        later["timestamp"] = event["timestamp"] + 60
    if "result" in event:
        later.update(result="fraud", reason="user_marked_fraud")
    return later
