"""A SuperLink and SuperNodes as real processes of this machine, with TLS and keys."""

import contextlib
import datetime
import ipaddress
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

PATIENCE = 900.0
"""Seconds that anything may take here; a busy machine takes minutes to compile."""

BIN = pathlib.Path(sys.executable).parent


def free_ports(count):
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def until(what, found, process=None):
    """Polls until something is found, and returns it."""
    end = time.monotonic() + PATIENCE
    while not (result := found()):
        assert time.monotonic() < end, f"{what}: not after {PATIENCE:g} s"
        assert process is None or process.poll() is None, f"{what}: process ended"
        time.sleep(0.5)
    return result


def certificates(folder):
    """A certificate of 127.0.0.1, its key, and the authority that signed it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.datetime.now(datetime.UTC)
    authority_key, own_key = (ec.generate_private_key(ec.SECP256R1()) for _ in "ab")

    def name(text):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    def builder(subject, key):
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("test authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
        )

    is_authority = x509.BasicConstraints(ca=True, path_length=0)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    authority = (
        builder("test authority", authority_key)
        .add_extension(is_authority, critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), False
        )
        .sign(authority_key, hashes.SHA256())
    )
    names = [
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.DNSName("localhost"),
    ]
    own = (
        builder("127.0.0.1", own_key)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(
                authority_key.public_key()
            ),
            False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(authority.public_bytes(pem))
    (folder / "server.pem").write_bytes(own.public_bytes(pem))
    (folder / "server.key").write_bytes(
        own_key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def node_key(path):
    """A SuperNode's key pair, as ssh-keygen writes it: PATH and PATH.pub."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    path.with_suffix(".pub").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    )
    return path


class Localhost:
    """Flower on this machine; ends all that it started when it is left.

    Attributes:
      folder: Certificates, keys, logs, and Flower's own folder.
      nodes: Number of a SuperNode -> its process.
    """

    def __init__(self, folder, simulation=False):
        self.folder, self.nodes = folder, {}
        self._stack = contextlib.ExitStack()
        self._simulation = simulation
        self.port, *self._ports = free_ports(9)
        self.environment = os.environ | {
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # else a busy machine starves its workers
            "JAX_PLATFORMS": "cpu",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        # What the tests set for themselves changes programs in the last bit.
        self.environment.pop("JAX_NUM_CPU_DEVICES", None)

    def __enter__(self):
        (self.folder / "flwr").mkdir(parents=True)
        certificates(self.folder)
        connection = {
            "address": f"127.0.0.1:{self.port}",
            "root-certificates": str(self.folder / "ca.crt"),
        }
        lines = [f"{name} = {json.dumps(x)}" for name, x in connection.items()]
        text = '[superlink]\ndefault = "here"\n\n[superlink.here]\n' + "\n".join(lines)
        (self.folder / "flwr" / "config.toml").write_text(text + "\n")
        mode = "--simulation" if self._simulation else "--enable-supernode-auth"
        superlink = self.start(
            "superlink",
            "flower-superlink",
            mode,
            "--disable-runtime-dependency-installation",
            f"--port={self.port}",
            f"--ssl-ca-certfile={self.folder / 'ca.crt'}",
            f"--ssl-certfile={self.folder / 'server.pem'}",
            f"--ssl-keyfile={self.folder / 'server.key'}",
        )

        def listens():
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        until("superlink", listens, superlink)
        return self

    def __exit__(self, *problem):
        self._stack.close()

    def start(self, name, program, *arguments):
        """A process with a log of its own, in a group of its own."""
        log = self._stack.enter_context(open(self.folder / f"{name}.log", "w"))
        process = subprocess.Popen(
            [str(BIN / program), *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self.environment,
            cwd=self.folder,
            start_new_session=True,
        )
        self._stack.callback(self.kill, process)
        return process

    def kill(self, process):
        """Ends a process and all that it started, as a power cut does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def flwr(self, *arguments):
        """``flwr ...``, to its end; its output."""
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments],
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.folder,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def node(self, number, config, registered=True):
        """A SuperNode with a registered key."""
        key = node_key(self.folder / f"node-{number}")
        if registered:
            self.flwr("supernode", "register", str(key.with_suffix(".pub")), "here")
        self.nodes[number] = self.start(
            f"node-{number}",
            "flower-supernode",
            f"--superlink=127.0.0.1:{self.port}",
            f"--root-certificates={self.folder / 'ca.crt'}",
            f"--auth-supernode-private-key={key}",
            f"--port={self._ports[number]}",
            f"--node-config={config}",
            f"--ssl-ca-certfile={self.folder / 'ca.crt'}",
            f"--ssl-certfile={self.folder / 'server.pem'}",
            f"--ssl-keyfile={self.folder / 'server.key'}",
        )

    def log(self, name):
        """What a process has printed so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")
