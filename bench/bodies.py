"""Vectors, the bodies of retrieve requests that hold them, and what the right answer is.

A body is a list of byte buffers that are sent one after the other, so that the 920 MB of JSON that 10,000 targets make
exist once, whichever side of them the source stands on.
Deliberately absent: zero vectors, broken bodies; other widths than the original's.
"""

import base64
import json
import mmap
import os
import struct
from dataclasses import dataclass

import numpy as np

DIMENSIONS = 4096
TOP_K = 50
SOURCES = 16
JSON_TYPE = "application/json"
BYTES_TYPE = "application/octet-stream"


@dataclass
class Body:
    """What is sent. `buffers`: bytes-like, in order."""

    method: str
    path: str
    content_type: str
    buffers: list

    @property
    def bytes_total(self):
        return sum(len(buffer) for buffer in self.buffers)


@dataclass
class Vectors:
    """`sources` [SOURCES, DIMENSIONS] and `targets` [count, DIMENSIONS], f32, of unit length."""

    sources: np.ndarray
    targets: np.ndarray

    @classmethod
    def random(cls, count, seed=17):
        rows = np.random.default_rng(seed).standard_normal((SOURCES + count, DIMENSIONS), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return cls(rows[:SOURCES], rows[SOURCES:])

    def as_bf16(self):
        """The same, rounded to bf16."""
        return Vectors(widened(to_bf16(self.sources)), widened(to_bf16(self.targets)))

    def similarities(self, source=0):
        """Cosines of one source with all targets, in f64."""
        wanted = self.sources[source].astype(np.float64)
        blocks = (self.targets[at : at + 1000].astype(np.float64) for at in range(0, len(self.targets), 1000))
        dots = np.concatenate([block @ wanted / np.linalg.norm(block, axis=1) for block in blocks])
        return dots / np.linalg.norm(wanted)


def to_bf16(array):
    """f32 to the bits of bf16, to nearest, ties to even; for finite values."""
    bits = array.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widened(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def text_of(vector):
    return json.dumps(vector.tolist()).encode()


def mapped(path):
    """A file in memory, its pages already there: reading it from a disk is not what is measured."""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)


def json_targets(vectors, path):
    """Writes the array of the targets as json.dumps would, a row at a time, and maps the file."""
    with open(path, "wb") as file:
        for index, row in enumerate(vectors.targets):
            file.write(b", " if index else b"[")
            file.write(text_of(row))
        file.write(b"]")
        # Written out now, and not while something is measured.
        file.flush()
        os.fsync(file.fileno())
    return mapped(path)


def retrieve(buffers, content_type=JSON_TYPE):
    return Body("POST", "/api/v1/retrieve", content_type, buffers)


def json_source_first(vectors, targets):
    head = b'{"source_embedding": ' + text_of(vectors.sources[0]) + b', "target_embeddings": '
    return retrieve([head, targets, b', "top_k": %d}' % TOP_K])


def json_source_last(vectors, targets):
    tail = b', "source_embedding": ' + text_of(vectors.sources[0]) + b', "top_k": %d}' % TOP_K
    return retrieve([b'{"target_embeddings": ', targets, tail])


def encoded(array):
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f4")).decode()


def base64_vectors(vectors):
    """One string a vector."""
    value = {
        "source_embedding": encoded(vectors.sources[0]),
        "target_embeddings": [encoded(row) for row in vectors.targets],
        "top_k": TOP_K,
    }
    return retrieve([json.dumps(value).encode()])


def base64_matrix(vectors):
    """One string for all targets."""
    value = {
        "source_embedding": encoded(vectors.sources[0]),
        "target_embeddings": encoded(vectors.targets),
        "dimensions": DIMENSIONS,
        "top_k": TOP_K,
    }
    return retrieve([json.dumps(value).encode()])


def safetensors(tensors, dtype, metadata):
    """Buffers of a safetensors file. `tensors`: arrays of the bits that `dtype` names."""
    header, offset = ({"__metadata__": metadata} if metadata else {}), 0
    for name, array in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rows = [memoryview(np.ascontiguousarray(array)).cast("B") for array in tensors.values()]
    return [struct.pack("<Q", len(text)) + text, *rows]


def safetensors_retrieve(vectors, dtype):
    as_bits = {"F32": lambda array: array, "BF16": to_bf16}[dtype]
    tensors = {"source_embedding": as_bits(vectors.sources[0]), "target_embeddings": as_bits(vectors.targets)}
    return retrieve(safetensors(tensors, dtype, {"top_k": str(TOP_K)}), BYTES_TYPE)


def resident_put(vectors):
    tensors = {"target_embeddings": vectors.targets}
    return Body("PUT", "/api/v1/targets/bench", BYTES_TYPE, safetensors(tensors, "F32", None))


def resident_one(vectors):
    value = {"source_embedding": vectors.sources[0].tolist(), "targets": "bench", "top_k": TOP_K}
    return retrieve([json.dumps(value).encode()])


def resident_many(vectors):
    value = {"source_embeddings": vectors.sources.tolist(), "targets": "bench", "top_k": TOP_K}
    return retrieve([json.dumps(value).encode()])


def candidates_in(answer):
    """The lists of candidates in an answer, one a source, in order, wherever they stand in it."""
    if isinstance(answer, list):
        return [found for value in answer for found in candidates_in(value)]
    if not isinstance(answer, dict):
        return []
    if "candidates" in answer and all("control_id" in c for c in answer["candidates"]):
        return [answer["candidates"]]
    return [found for value in answer.values() for found in candidates_in(value)]


def wrong(answer, exact_by_source):
    """What is wrong with an answer, or None. Targets within 1e-6 of each other may change places; a similarity may be
    off by 1e-5."""
    lists = candidates_in(answer)
    if len(lists) != len(exact_by_source):
        return f"{len(lists)} lists of candidates for {len(exact_by_source)} sources"
    for candidates, exact in zip(lists, exact_by_source):
        best = np.sort(exact)[::-1][:TOP_K]
        ids = [int(c["control_id"]) for c in candidates]
        if len(ids) != len(best) or len(set(ids)) != len(ids):
            return f"{len(set(ids))} different ids, not {len(best)}"
        for rank, (at, candidate) in enumerate(zip(ids, candidates)):
            if abs(exact[at] - best[rank]) > 1e-6:
                return f"rank {rank}: target {at}, whose cosine is {exact[at]:.8f} and not {best[rank]:.8f}"
            if abs(candidate["similarity"] - exact[at]) > 1e-5:
                return f"target {at}: similarity {candidate['similarity']}, not {exact[at]:.8f}"
    return None
