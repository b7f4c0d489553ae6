"""Qwen3-Embedding-8B's shape, with random weights in bf16, served by a CPU: memory, start, and whether it computes rightly.

PyTorch runs the same layers one after another in f32, so that it fits beside nothing else.
"""

import argparse
import contextlib
import http.client
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "gpu"))

import numpy
import program
import serving
import shapes
import torch
import weights
from safetensors import safe_open
from transformers import Qwen3Config
from transformers.models.qwen3 import modeling_qwen3

EMBEDDER, RERANKER = "qwen3", "modernbert"
TEXT_TOKENS = [3, 17, 60, 130]
OVER_WEIGHTS_BYTES = 1.5e9
COSINE_MIN = 0.9999
PACKED_S_MAX = 600


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nexus", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder with room for 32 GB")
    parser.add_argument("--layers", type=int, default=36, help="fewer than the 36 of the 8B: a rehearsal")
    options = parser.parse_args()
    config = shapes.QWEN3 | {"num_hidden_layers": options.layers, "max_window_layers": options.layers}
    work = options.work / f"full-size-{options.layers}"
    folder = weights.make(config, work / EMBEDDER, "cpu")
    tiny = shapes.SHAPES["tiny"]["modernbert-tiny"]
    serving.write_tokenizer(config, folder)
    serving.write_tokenizer(tiny, weights.make(tiny, work / RERANKER, "cpu"))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    for packed in folder.glob(".nexus-packed-*"):
        packed.unlink()

    texts = [" ".join(f"w{numpy.random.default_rng(n).integers(3, 100_000)}" for n in range(count - 1))
             for count in TEXT_TOKENS]  # fmt: skip
    disk_s = serving.read_all(work, [EMBEDDER])
    print(f"weights: {size / 1e9:.2f} GB; read alone, cold: {disk_s:.1f} s, {size / disk_s / 1e9:.2f} GB/s", flush=True)
    wrong, vectors = [], {}
    for start in ("first start", "second start"):
        serving.drop_cache()
        vectors[start], peak = serve(options.nexus, work, start, texts, size)
        if peak > size + OVER_WEIGHTS_BYTES and options.layers == 36:
            wrong.append(f"{start}: VmHWM is {peak / 1e9:.2f} GB, {(peak - size) / 1e9:.2f} GB over the weights")
    if not numpy.array_equal(vectors["first start"], vectors["second start"]):
        wrong.append("the second start gives other vectors than the first")
    exact = layer_by_layer(config, folder, texts)
    for count, ours, theirs in zip(TEXT_TOKENS, vectors["second start"], exact):
        cosine = float(ours @ theirs / numpy.linalg.norm(ours) / numpy.linalg.norm(theirs))
        print(f"text of {count} tokens: cosine to PyTorch in f32 {cosine:.7f}", flush=True)
        if not cosine >= COSINE_MIN:
            wrong.append(f"text of {count} tokens: cosine {cosine:.7f}, expected {COSINE_MIN}")
    if wrong:
        raise SystemExit("\n".join(wrong))


def serve(binary, work, start, texts, size):
    """The texts' vectors, and the peak of the process's memory in bytes; prints what it took."""
    folder = work / EMBEDDER
    with serving.serving(program.Program(str(binary), "cpu", work), work, [EMBEDDER, RERANKER]) as (port, ready_s):
        pid = serving_pid(port)
        before = peak_bytes(pid)
        vectors, seconds = [], []
        for text in texts:
            began = time.perf_counter()
            vectors.append(embed(port, text))
            seconds.append(time.perf_counter() - began)
        peak = peak_bytes(pid)
        rates = ", ".join(f"{count} tokens {s:.2f} s" for count, s in zip(TEXT_TOKENS, seconds))
        print(f"{start}: ready after {ready_s:.1f} s ({size / ready_s / 1e9:.2f} GB/s of weights); VmHWM "
              f"{before / 1e9:.2f} GB then, {peak / 1e9:.2f} GB after the texts, {(peak - size) / 1e9:+.2f} GB over the "
              f"weights; {rates}", flush=True)  # fmt: skip
        began = time.perf_counter()
        while not list(folder.glob(".nexus-packed-*.bin")):
            if time.perf_counter() - began > PACKED_S_MAX:
                raise SystemExit("the packed weights were not written")
            time.sleep(0.1)
        waited = time.perf_counter() - began
        if waited > 0.1:
            print(f"{start}: packed weights written {waited:.0f} s after the last text", flush=True)
        print_log(work)
    return numpy.array(vectors), peak


def print_log(work):
    for line in (work / "serve.log").read_text().splitlines():
        if "packed" in line:
            print(f"  {line.strip()}", flush=True)


def embed(port, text):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    with contextlib.closing(connection):
        body = json.dumps({"control_id": "a", "text": text})
        connection.request("POST", "/api/v1/embed", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
    if answer.status != 200:
        raise SystemExit(f"embed: {answer.status}: {content[:300]!r}")
    return numpy.array(json.loads(content)["embedding"], dtype="float64")


def serving_pid(port):
    """The process that listens on the port."""
    sockets = set()
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and int(fields[1].split(":")[1], 16) == port:
            sockets.add(f"socket:[{fields[9]}]")
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(str(fd.readlink()) in sockets for fd in (process / "fd").iterdir()):
                return int(process.name)
    raise SystemExit(f"no process listens on port {port}")


def peak_bytes(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("the system does not tell VmHWM")


@torch.inference_mode()
def layer_by_layer(config, folder, texts):
    """The texts' pooled hidden states in f32, with one layer's weights in memory at a time."""
    places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]

    def tensor(name):
        with safe_open(folder / places[name], "pt") as file:
            return file.get_tensor(name).float()

    prefix = "model." if any(name.startswith("model.") for name in places) else ""
    ids = [[int(word[1:]) for word in text.split()] + [config["eos_token_id"]] for text in texts]
    settings = Qwen3Config(**config, attn_implementation="sdpa")
    rotary = modeling_qwen3.Qwen3RotaryEmbedding(settings)
    with safe_open(folder / places[f"{prefix}embed_tokens.weight"], "pt") as file:
        table = file.get_slice(f"{prefix}embed_tokens.weight")
        hidden = [torch.stack([table[i].float() for i in row])[None] for row in ids]
    for number in range(config["num_hidden_layers"]):
        layer = modeling_qwen3.Qwen3DecoderLayer(settings, number).eval()
        start = f"{prefix}layers.{number}."
        layer.load_state_dict({name.removeprefix(start): tensor(name) for name in places if name.startswith(start)})
        for n, x in enumerate(hidden):
            positions = torch.arange(x.shape[1])[None]
            x = layer(x, attention_mask=None, position_ids=positions, position_embeddings=rotary(x, positions))
            hidden[n] = x[0] if isinstance(x, tuple) else x
    norm = modeling_qwen3.Qwen3RMSNorm(config["hidden_size"], config["rms_norm_eps"])
    norm.load_state_dict({"weight": tensor(f"{prefix}norm.weight")})
    return [norm(x)[0, -1].numpy().astype("float64") for x in hidden]


if __name__ == "__main__":
    main()
