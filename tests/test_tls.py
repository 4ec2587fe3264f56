"""TLS inspection: what a certificate that is refused is refused for, and what to do."""

import datetime
import ipaddress
import os
import pathlib
import shutil
import ssl
import sys

import pytest
import requests
from conftest import ONLY, SCRIPT, Collector, tls_tenant, works
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from duo import Simulator

NOW = datetime.datetime.now(datetime.timezone.utc)


def certificate(name, key, issuer, issuer_key, extension, critical=True):
    """A certificate with a single extension: neither key identifiers nor key usage."""
    builder = x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=NOW - datetime.timedelta(days=1),
        not_valid_after=NOW + datetime.timedelta(days=1),
    )
    return builder.add_extension(extension, critical).sign(issuer_key, hashes.SHA256())


@pytest.fixture
def inspected(tmp_path):
    """A tenant behind a TLS proxy, whose CA is as old ones are: without key identifiers."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name, name = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in ("ca", "host")
    )
    ca = certificate(ca_name, ca_key, ca_name, ca_key, x509.BasicConstraints(True, None))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    leaf = certificate(name, key, ca_name, ca_key, names, critical=False)
    (tmp_path / "ca.pem").write_bytes(ca.public_bytes(Encoding.PEM))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "host.pem").write_bytes(leaf.public_bytes(Encoding.PEM) + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "host.pem")
    with Simulator(tls=context) as simulator:
        collector = Collector(tmp_path, simulator)
        collector.environ["REQUESTS_CA_BUNDLE"] = str(tmp_path / "ca.pem")
        yield collector


def strict_python():
    """A Python that keeps to RFC 5280: 3.13 or newer."""
    if sys.version_info >= (3, 13):
        return sys.executable
    found = pathlib.Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    candidates = [shutil.which("python3.13"), *found.glob("versions/3.13.*/bin/python")]
    usable = [str(path) for path in candidates if path and works(str(path), "-c", "import ssl")]
    return usable[0] if usable else pytest.skip("no Python 3.13")


def test_a_ca_that_python_3_13_refuses_is_to_be_reissued(inspected):
    """REQUESTS_CA_BUNDLE is set already: to name it would send its reader round in circles."""
    collector, python = inspected, strict_python()
    packages = pathlib.Path(requests.__file__).parent.parent
    collector.environ["PYTHONPATH"] = str(packages)
    head = [python, str(SCRIPT), "--env-file", "/dev/null"]
    collector.command = lambda *options: [*head, *map(str, options)]
    result = collector.run("--check", *ONLY)
    assert result.status == 75, result.stderr
    assert "Missing Authority Key Identifier" in result.stdout
    assert "Python from 3.13 on refuses the CA of a TLS proxy" in result.stdout
    assert "have the CA certificate reissued, or use Python 3.12" in result.stdout
    assert "REQUESTS_CA_BUNDLE" not in result.stdout


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python 3.13 refuses it")
def test_an_older_python_takes_that_ca(inspected):
    result = inspected.run("--check", *ONLY)
    assert (result.status, result.stdout) == (0, "telephony: ok\n"), result.stderr


def test_a_certificate_for_another_name_names_the_host_setting(tmp_path):
    with tls_tenant(tmp_path, certified="api-12345678.duosecurity.com") as (_, collector):
        result = collector.run("--check", *ONLY)
    assert result.status == 75
    assert f"127.0.0.1:{collector.environ['DUO_API_HOST'].split(':')[-1]}: " in result.stdout
    assert "its certificate is for another name (" in result.stdout
    assert "check DUO_API_HOST and HTTPS_PROXY" in result.stdout
    assert "REQUESTS_CA_BUNDLE" not in result.stdout
