"""The original's stack, to compare with: a small service as a team would write it with FastAPI, pydantic and PyTorch.

    uvicorn server:app --app-dir bench/original --workers 1

It speaks the wire format that Nexus kept. The embedding model is replaced by a random unit vector of 4096 that depends
on the text alone, made when a text is first seen: what is compared is retrieval and the answers that come from the
cache, and neither runs a model.
Deliberately absent: reranking, several workers (each would hold its own model and cache), anything that a first version
of such a service would not have, tuning and handicaps alike.
"""

import hashlib

import torch
from fastapi import FastAPI
from pydantic import BaseModel

DIMENSIONS = 4096

app = FastAPI(title="control-mapping")
cache: dict[str, list[float]] = {}


class EmbedRequest(BaseModel):
    control_id: str
    text: str


class EmbedResponse(BaseModel):
    control_id: str
    embedding: list[float]
    cache_hit: bool


class RetrieveRequest(BaseModel):
    source_embedding: list[float]
    target_embeddings: list[list[float]]
    top_k: int = 50


class Candidate(BaseModel):
    control_id: str
    similarity: float


class RetrieveResponse(BaseModel):
    candidates: list[Candidate]


def compute_embedding(key: str) -> list[float]:
    """Stands where the model would run."""
    generator = torch.Generator().manual_seed(int(key[:15], 16))
    return torch.nn.functional.normalize(torch.randn(DIMENSIONS, generator=generator), dim=0).tolist()


@app.get("/health")
async def health():
    return {"status": "healthy"}


# A hit waits for nothing, so that a thread for it would only cost time.
@app.post("/api/v1/embed")
async def embed(request: EmbedRequest) -> EmbedResponse:
    key = hashlib.sha256(request.text.encode()).hexdigest()
    hit = key in cache
    if not hit:
        cache[key] = compute_embedding(key)
    return EmbedResponse(control_id=request.control_id, embedding=cache[key], cache_hit=hit)


# Not async: FastAPI runs it on a thread, and the event loop goes on.
@app.post("/api/v1/retrieve")
def retrieve(request: RetrieveRequest) -> RetrieveResponse:
    source = torch.tensor(request.source_embedding, dtype=torch.float32)
    targets = torch.tensor(request.target_embeddings, dtype=torch.float32)
    source = torch.nn.functional.normalize(source, dim=0)
    targets = torch.nn.functional.normalize(targets, dim=1)
    similarities = torch.matmul(targets, source)
    best = torch.topk(similarities, k=min(request.top_k, len(similarities)))
    return RetrieveResponse(
        candidates=[
            Candidate(control_id=str(index), similarity=similarity)
            for similarity, index in zip(best.values.tolist(), best.indices.tolist())
        ]
    )
