"""Starts and stops what is compared, and reads how much memory it takes.

Deliberately absent: machines other than this one; systems other than Linux, whose /proc is read.
"""

import os
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
READY_S = 120
# As long without work is the end of it.
IDLE_S = 0.3


class Server:
    """A running process. `address` is (host, port)."""

    def __init__(self, name, command, environment, ready, address=None):
        self.name = name
        self.folder = tempfile.TemporaryDirectory(prefix="nexus-bench-")
        environment = os.environ | environment | {"NEXUS_CACHE_DIR": self.folder.name}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE if address is None else subprocess.DEVNULL, text=True
        )
        try:
            self.address = address or self._announced()
            self._wait(ready)
        except BaseException:
            self.stop()
            raise

    def _announced(self):
        line = self.process.stdout.readline().removeprefix("listening on http://").strip()
        if not line:
            raise SystemExit(f"{self.name} did not start")
        # Whatever else it prints is read, so that it never waits for a reader.
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        host, _, port = line.rpartition(":")
        return host, int(port)

    def _wait(self, path):
        url = f"http://{self.address[0]}:{self.address[1]}{path}"
        until = time.monotonic() + READY_S
        while time.monotonic() < until and self.process.poll() is None:
            try:
                urllib.request.urlopen(url, timeout=READY_S).read()
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.02)
        raise SystemExit(f"{self.name} did not become ready")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def _processes(self):
        found = [self.process.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        return found

    def _mib(self, key):
        total = 0
        for pid in self._processes():
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith(key + ":"))
        return total / 1024

    def resident_mib(self):
        return self._mib("VmRSS")

    def cpu_s(self):
        """Seconds of processor that it has used since its start, in user mode and in the kernel."""
        ticks = 0
        for pid in self._processes():
            # The name of a program may hold anything, but ends at the last parenthesis.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def settle(self):
        """Waits until it has nothing to do any more: the original goes on freeing what a request took after its answer."""
        until = time.monotonic() + READY_S
        before = self.cpu_s()
        while time.monotonic() < until:
            time.sleep(IDLE_S)
            if (now := self.cpu_s()) - before < IDLE_S / 10:
                return
            before = now

    def forget_peak(self):
        """From now on, `peak_mib` is the most since now."""
        for pid in self._processes():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_mib(self):
        return self._mib("VmHWM")


STACK = ("fastapi", "starlette", "pydantic", "uvicorn", "uvloop", "httptools", "torch")


def original_versions(python):
    """What the original's stack consists of, in words: its figures depend on it."""
    code = (
        "import importlib.metadata, platform, sys\n"
        "print(platform.python_version(), *map(importlib.metadata.version, sys.argv[1:]))"
    )
    printed = subprocess.run([python, "-c", code, *STACK], check=True, stdout=subprocess.PIPE, text=True).stdout
    return ", ".join(map(" ".join, zip(("Python", *STACK), printed.split())))


def original(python):
    """The reference in bench/original, as FastAPI services are run. Its access log is off, as Nexus's is. `python`: the
    interpreter that has its packages."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()
    command = [python, "-m", "uvicorn", "server:app", "--app-dir", str(HERE / "original"), "--workers", "1"]
    command += ["--host", address[0], "--port", str(address[1]), "--log-level", "warning"]
    return Server("original", command, {}, "/health", address)


def nexus(binary, models=None):
    """`models`: a folder that `wide_model.make` made; the built-in models without it."""
    environment = {"NEXUS_PORT": "0", "LOG_LEVEL": "WARNING"}
    if models:
        environment |= {"MODEL_BUCKET": str(models), "RETRIEVER_MODEL_PATH": "wide-embedder"}
        environment |= {"RERANKER_MODEL_PATH": "reranker"}
    return Server("nexus", [binary, "serve"], environment, "/ready")
