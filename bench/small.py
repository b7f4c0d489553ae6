"""Small requests: hits of the cache as wrk counts them, and how long they take beside large requests.

Run as a program it is the second client, in a process of its own so that it never waits for the first one's
interpreter:

    bench/small.py HOST PORT RATE_HZ     sends until its standard input ends, then prints the latencies

Deliberately absent: several texts; misses, whose time is the model's.
"""

import json
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import client

ITEM = {"control_id": "IAM.5", "text": "MFA should be enabled for all IAM users that have a console password"}
PATH = "/api/v1/embed"
CONNECTIONS = 16
LUA = f"""
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [[{json.dumps(ITEM)}]]
"""


def warm(server):
    """One request that computes the embedding, and one that must find it. Returns the length of the vector."""
    client.post_json(server.address, PATH, ITEM)
    answer = client.post_json(server.address, PATH, ITEM)
    if not answer["cache_hit"]:
        raise SystemExit(f"{server.name}: the second request was no hit")
    return len(answer["embedding"])


def hits_per_second(server, folder, seconds):
    """What one thread of wrk gets over 16 connections."""
    script = Path(folder) / "hits.lua"
    script.write_text(LUA)
    url = f"http://{server.address[0]}:{server.address[1]}{PATH}"
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), url]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in printed or "Socket errors" in printed:
        raise SystemExit(f"{server.name}: {printed}")
    return float(re.search(r"Requests/sec:\s+([\d.]+)", printed)[1])


class Beside:
    """Sends hits at a steady rate until the end of the `with` block. `latencies_ms` is sorted, two ways: from the time
    when a request was due, which counts waiting behind a slow one, and from when it was sent."""

    def __init__(self, server, rate_hz):
        self.command = [sys.executable, __file__, server.address[0], str(server.address[1]), str(rate_hz)]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process.stdout.readline()
        return self

    def __exit__(self, *_):
        printed, _ = self.process.communicate("")
        if self.process.returncode:
            raise SystemExit("the second client failed")
        self.due_ms, self.sent_ms = json.loads(printed)


def percentile(ordered, share):
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def main(host, port, rate_hz):
    content = json.dumps(ITEM).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content
    connection = client.connect((host, int(port)))
    print("sending", flush=True)
    due_ms, sent_ms = [], []
    due = time.perf_counter()
    while not select.select([sys.stdin], [], [], max(0, due - time.perf_counter()))[0]:
        sent = time.perf_counter()
        connection.sendall(request)
        status, _ = client.receive(connection)
        ended = time.perf_counter()
        if status != 200:
            sys.exit(f"{PATH}: {status}")
        due_ms.append((ended - due) * 1e3)
        sent_ms.append((ended - sent) * 1e3)
        due += 1 / float(rate_hz)
    print(json.dumps([sorted(due_ms), sorted(sent_ms)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
