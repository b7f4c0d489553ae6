"""A client that costs what a client has to cost and no more: a plain socket, large writes from memory.

Run as a program it is the other end, and discards what it reads: that is the rate that no server can exceed.
Deliberately absent: TLS, redirects, anything but one request at a time.
"""

import http.client
import json
import re
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass

SLICE_BYTES = 1 << 20
TIMEOUT_S = 300


@dataclass
class Answer:
    """`seconds` from the first byte sent to the last byte of the answer."""

    status: int
    content: bytes
    seconds: float

    def json(self):
        return json.loads(self.content)


def connect(address):
    connection = socket.create_connection(address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # The kernel's own timeouts: Python's would put a poll before each write.
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", TIMEOUT_S, 0))
    return connection


def receive(connection, method="POST"):
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    return response.status, response.read()


def exchange(address, body):
    """Sends a `bodies.Body` over a new connection."""
    head = (
        f"{body.method} {body.path} HTTP/1.1\r\nHost: {address[0]}\r\nConnection: close\r\n"
        f"Content-Type: {body.content_type}\r\nContent-Length: {body.bytes_total}\r\n\r\n"
    ).encode()
    with connect(address) as connection:
        began = time.perf_counter()
        try:
            connection.sendall(head)
            for buffer in body.buffers:
                view = memoryview(buffer)
                for at in range(0, len(view), SLICE_BYTES):
                    connection.sendall(view[at : at + SLICE_BYTES])
        except (BrokenPipeError, ConnectionResetError, BlockingIOError):
            pass  # A server that refuses may answer before all is sent; what it said can mostly be read.
        try:
            status, content = receive(connection, body.method)
        except ConnectionError as error:
            status, content = 0, repr(error).encode()
        return Answer(status, content, time.perf_counter() - began)


def post_json(address, path, value):
    """One small request, for what is not measured."""
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
    connection.request("POST", path, json.dumps(value), {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    if response.status != 200:
        raise SystemExit(f"{path}: {response.status} {content[:200]!r}")
    return json.loads(content)


def discarded(body):
    """Sends a body to a process that discards it. Returns an `Answer`."""
    with subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True) as process:
        return exchange(("127.0.0.1", int(process.stdout.readline())), body)


def discard():
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    connection, _ = listener.accept()
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(1 << 16)
    head, _, start = head.partition(b"\r\n\r\n")
    left = int(re.search(rb"Content-Length: (\d+)", head)[1]) - len(start)
    buffer = bytearray(1 << 20)
    while left > 0 and (got := connection.recv_into(buffer)):
        left -= got
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


if __name__ == "__main__":
    discard()
