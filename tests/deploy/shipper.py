"""rsyslog and syslog-ng with the configurations as shipped, and a receiver.

A daemon runs in the foreground with a folder of its own and sends to a receiver on loopback. Changed in a
configuration is only what a user would set: the folder, the receiver, seconds of patience. Debian's packages rsyslog
and syslog-ng-core exclude each other: one of them may be unpacked (dpkg-deb -x) to the folder that SHIPPER_ROOT
names.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading

import pytest
import trustme
from conftest import wait_for as wait

from deploy.common import DEPLOY, changed, missing

SHIPPERS = DEPLOY / "shippers"
HOUR_MS = 3_600_000
LOG_TYPES = ("authentication", "administrator", "telephony")
BOTH = pytest.mark.parametrize("shipper", ["rsyslog", "syslog-ng"], indirect=True)
# What a commented variant takes the place of.
RSYSLOG_TLS = r'^    action\(type="omfwd".*?"60"\)\n'
SYSLOG_NG_TLS = r"^    network\(.*?^        time-reopen\(.\)\);.*?\n"


def wait_for(condition, what):
    """rsyslog's TLS driver looks for large primes when it starts, which can take long on a busy machine."""
    return wait(condition, what, timeout_s=60)


def daemon(name, package):
    """The path of a daemon, and the folder that its package is unpacked in."""
    root = pathlib.Path(os.environ.get("SHIPPER_ROOT", "/"))
    path = shutil.which(name, path=f"{root}/usr/sbin") or shutil.which(name, path="/usr/sbin")
    if not path:
        missing(f"{name} (Debian: {package})")
    return path, pathlib.Path(path).parent.parent.parent


def numbered(start, end, size=500):
    return [b'{"n":%d,"padding":"%s"}' % (number, b"x" * size) for number in range(start, end)]


def certificate(authority, name, **more):
    """A receiver's TLS context, with a certificate for this name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name, **more).configure_cert(context)
    return context


class Receiver:
    """A TCP or TLS server that keeps what each connection brought; while `reading` is clear it reads nothing."""

    def __init__(self, port=0, context=None):
        self.context, self.attempts = context, 0
        self.server = socket.socket()
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.server.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, 65536
        )  # small, or a pause would hold nobody up
        self.server.bind(("127.0.0.1", port))
        self.server.listen()
        self.port = self.server.getsockname()[1]
        self.connections, self.received = [], []
        self.reading = threading.Event()
        self.reading.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.server.accept()
                threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection):
        try:
            if self.context:
                connection = self.context.wrap_socket(connection, server_side=True)
            self.connections.append(connection)
            self.received.append(bytearray())
            self._keep(connection, self.received[-1])
        except OSError:  # a handshake that the shipper broke off among them
            pass
        self.attempts += 1
        connection.close()

    def _keep(self, connection, received):
        while self.reading.wait():
            data = connection.recv(65536)
            if not data:
                break
            received += data

    def hang_up(self, properly):
        """Close the newest connection: as TLS prescribes, with close_notify, or by a FIN alone."""
        connection = self.connections[-1]
        with contextlib.suppress(OSError, ValueError):  # it may have ended already
            if properly:
                connection.settimeout(1)
                with contextlib.suppress(OSError):
                    connection.unwrap()  # it says close_notify, and waits for an answer
            socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def lines(self):
        """Whole lines: what a connection ends with, short of a newline, a receiver has to drop."""
        return [line for received in self.received for line in bytes(received).split(b"\n")[:-1]]

    def wait_for(self, line):
        """Until this line has come; it is the last that was written."""
        wait_for(lambda: any(r.endswith(line + b"\n") for r in self.received), f"line {line[:60]}")

    def close(self):
        for one in [self.server, *self.connections]:
            with contextlib.suppress(OSError):
                one.shutdown(
                    socket.SHUT_RDWR
                )  # close alone would leave it to the thread that waits in it
            one.close()


class RelpReceiver(Receiver):
    """The same, speaking RELP: it confirms each line."""

    def _keep(self, connection, received):
        # A frame is: number SP command SP length [SP data] LF
        with connection.makefile("rb") as stream:
            while True:
                number, command = word(stream), word(stream)
                length = int(word(stream))
                data = stream.read(length)
                if length:
                    stream.read(1)
                if command == b"syslog":
                    received += data
                answer = b"" if command == b"close" else b" 200 OK"
                if command == b"open":
                    answer += b"\n" + data
                length = b"%d" % max(len(answer) - 1, 0)
                connection.sendall(number + b" rsp " + length + answer + b"\n")


def word(stream):
    """What a stream says up to a space; an OSError at its end."""
    found = b""
    while True:
        character = stream.read(1)
        if not character:
            raise OSError("the connection has ended")
        if character in b" \n":
            return found
        found += character


class Shipper:
    """A daemon with its configuration, in a folder of its own."""

    def __init__(self, name, folder):
        self.name = name
        self.folder = folder
        self.process = None
        self.environ = dict(os.environ)
        self.events = folder / "log" / "acme-2026-12-01.jsonl"
        self.events.parent.mkdir()
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(folder / "ca.pem")
        self.receiver = Receiver(context=certificate(self.authority, "localhost"))
        self.text = changed(
            (SHIPPERS / f"{name}.conf").read_text(),
            {
                "siem.example.com": "localhost",
                "6514": str(self.receiver.port),
                "/var/log/duo": f"{folder}/log",
                "/etc/ssl/certs/ca-certificates.crt": f"{folder}/ca.pem",
            },
        )
        if name == "rsyslog":
            path, root = daemon("rsyslogd", "rsyslog")
            modules = next(root.glob("usr/lib/*/rsyslog"))
            if not (modules / "lmnsd_gtls.so").exists():
                missing("rsyslog's TLS driver (Debian: rsyslog-gnutls)")
            self.command = [
                path,
                "-n",
                "-f",
                f"{folder}/main.conf",
                "-i",
                f"{folder}/pid",
                "-M",
                str(modules),
            ]
            main = f"$WorkDirectory {folder}\n$IncludeConfig {folder}/shipper.conf\n"  # as in Debian's rsyslog.conf
            self.change({'resumeInterval="5"': 'resumeInterval="1"'})
        else:
            path, _ = daemon("syslog-ng", "syslog-ng-core")
            own = {
                "cfgfile": "main.conf",
                "persist-file": "persist",
                "pidfile": "pid",
                "control": "control",
            }
            self.command = [
                path,
                "-F",
                "-e",
                "--no-caps",
                *(f"--{o}={folder}/{file}" for o, file in own.items()),
            ]
            main = f'@version: 3.35\n@include "{folder}/shipper.conf"\n'
            self.change({"time-reopen(5)": "time-reopen(1)", "/var/lib/syslog-ng": str(folder)})
        (folder / "main.conf").write_text(main)

    def follow(self, logs):
        """Read another folder."""
        self.change({f"{self.folder}/log": str(logs)})

    def change(self, changes):
        self.text = changed(self.text, changes)

    def choose(self, variant, instead_of):
        """Take what a configuration offers as a comment, in place of what a pattern finds."""
        self.text, count = re.subn(instead_of, "", self.text, flags=re.MULTILINE | re.DOTALL)
        assert count == 1
        self.change({f"#{variant} ": ""})

    def choose_relp(self):
        """RELP in place of TLS alone; the daemon gets a certificate of its own."""
        modules = pathlib.Path(self.command[-1])
        if not (modules / "omrelp.so").exists():
            missing("rsyslog's RELP output (Debian: rsyslog-relp, librelp0)")
        self.environ["LD_LIBRARY_PATH"] = str(modules.parent)  # for librelp, if it is unpacked only
        own = self.authority.issue_cert("collector.example")
        own.private_key_pem.write_to_path(self.folder / "own.key")
        own.cert_chain_pems[0].write_to_path(self.folder / "own.pem")
        self.receiver.close()
        self.receiver = RelpReceiver(context=certificate(self.authority, "localhost"))
        self.choose("relp", RSYSLOG_TLS)
        self.change(
            {
                "2514": str(self.receiver.port),
                "/etc/ssl/duo.pem": f"{self.folder}/own.pem",
                "/etc/ssl/private/duo.key": f"{self.folder}/own.key",
            }
        )

    def choose_plain(self):
        self.receiver.close()
        self.receiver = Receiver()
        self.choose("plain", RSYSLOG_TLS if self.name == "rsyslog" else SYSLOG_NG_TLS)
        self.change({"5514": str(self.receiver.port)})

    def start(self):
        (self.folder / "shipper.conf").write_text(self.text)
        with open(self.folder / "stderr", "ab") as stderr:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env=self.environ,
            )

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.process.wait(20)

    def written(self):
        return self.events.read_bytes().splitlines()

    def append(self, *lines):
        with open(self.events, "ab") as file:
            file.writelines(line + b"\n" for line in lines)

    def close(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            print((self.folder / "stderr").read_text())  # pytest shows it where a test fails
        self.receiver.close()
