"""`nexus serve` with models of random weights: how soon it is ready, and what 64 clients get."""

import contextlib
import http.client
import json
import os
import random
import socket
import subprocess
import threading
import time

import floors
import shapes
import timings
import weights

CLIENTS = {"full": 64, "tiny": 8}
SECONDS = {"full": 20, "tiny": 4}
TOKENS = 64
READY_S_MAX = 240
SHARE_MIN = 0.85


def measure(program, shape, device, work):
    """Prints two lines. Returns what is wrong."""
    names = list(shapes.SHAPES[shape])[:2]
    for name in names:
        config = shapes.SHAPES[shape][name]
        write_tokenizer(config, weights.make(config, work / name, device))
    floors.release()
    embedder = shapes.SHAPES[shape][names[0]]
    clients = CLIENTS[shape]
    sequences, batches = timings.draw(embedder, {"load": (clients, TOKENS, clients)})
    in_process = program.times(work / names[0], sequences, batches, timings.REPETITIONS[shape])["load"]
    in_process_rate = clients / in_process["median_ms"] * 1e3

    size = sum(f.stat().st_size for name in names for f in (work / name).glob("*.safetensors"))
    disk_s = read_all(work, names)
    with serving(program, work, names) as (port, ready_s):
        print(f"start: ready after {ready_s:.1f} s, {size / ready_s / 1e9:.3g} GB/s; the same files read alone "
              f"{disk_s:.1f} s, {size / disk_s / 1e9:.3g} GB/s (cold only where the page cache could be dropped)")  # fmt: skip
        rate = requests_per_s(port, embedder, clients, SECONDS[shape])
    share = rate / in_process_rate
    print(f"HTTP: {clients} clients, single texts of {TOKENS} tokens: {rate:.1f} texts/s; in process, "
          f"{clients} at once: {in_process_rate:.1f} texts/s; {share:.0%}", flush=True)  # fmt: skip
    if shape == "full" and share < SHARE_MIN:
        return [f"HTTP gives {share:.0%} of what the engine gives in process: expected {SHARE_MIN:.0%}"]
    return []


def outlive(program, shape, device, work):
    """One of two replicas on the device fails; ends the run where an answer is missing or wrong. The embedder is the small
    one, two of which fit any device."""
    small, large = list(shapes.SHAPES["tiny"].items())[0], list(shapes.SHAPES[shape].items())[1]
    for name, config in (small, large):
        write_tokenizer(config, weights.make(config, work / name, device))
    floors.release()
    print(program.bench("replicas", work / small[0], work / large[0]), end="", flush=True)


def write_tokenizer(config, folder):
    """One word a token. Every text ends in one end token; pairs are framed as cross-encoders want it."""
    vocabulary = {f"w{i}": i for i in range(config["vocab_size"])}

    def special(name, at):
        return {"SpecialToken": {"id": name, "type_id": at}}

    def text(which, at=0):
        return {"Sequence": {"id": which, "type_id": at}}

    if shapes.is_embedder(config):
        end = f"w{config['eos_token_id']}"
        single, pair, used = [text("A"), special(end, 0)], [text("A"), text("B"), special(end, 0)], [end]
    else:
        first, between = f"w{config['cls_token_id']}", f"w{config['sep_token_id']}"
        single = [special(first, 0), text("A"), special(between, 0)]
        pair, used = [*single, text("B"), special(between, 0)], [first, between]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": vocabulary[token], "content": token, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False, "special": True} for token in used],
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": None,
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {
            token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]} for token in used}},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def read_all(work, names):
    """Seconds to read the weights, from the disk where the system lets the page cache go."""
    drop_cache()
    start = time.perf_counter()
    for name in names:
        for path in (work / name).glob("*.safetensors"):
            with path.open("rb", buffering=0) as file:
                buffer = bytearray(16 << 20)
                while file.readinto(buffer):
                    pass
    seconds = time.perf_counter() - start
    drop_cache()
    return seconds


def drop_cache():
    with contextlib.suppress(OSError):
        os.sync()
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("1")


@contextlib.contextmanager
def serving(program, work, names):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"MODEL_BUCKET": str(work.resolve()), "RETRIEVER_MODEL_PATH": names[0], "RERANKER_MODEL_PATH": names[1],
                "NEXUS_CACHE": "off", "NEXUS_DEVICE": program.device}  # fmt: skip
    log = program.folder / "serve.log"
    start = time.perf_counter()
    with log.open("w") as out:
        command = [program.binary, "serve", "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, env=os.environ | settings, stdout=out, stderr=out)
    try:
        while True:
            if process.poll() is not None or time.perf_counter() - start > READY_S_MAX:
                raise SystemExit(f"nexus serve is not ready; it said:\n{log.read_text()[-4000:]}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if get(port, "/ready") == 200:
                    break
            time.sleep(0.02)
        yield port, time.perf_counter() - start
    finally:
        process.terminate()
        process.wait(60)


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def requests_per_s(port, config, clients, seconds):
    """Answers a second of clients that each send the next text when they have the answer to the last one."""
    begin, end = time.perf_counter() + 2, time.perf_counter() + 2 + seconds
    counts, failures = [0] * clients, []

    def client(number):
        draw = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            while time.perf_counter() < end:
                # One token less than asked for: the end token comes to it.
                words = " ".join(f"w{draw.randint(3, 2000)}" for _ in range(TOKENS - 1))
                body = json.dumps({"control_id": "a", "text": words})
                connection.request("POST", "/api/v1/embed", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
                if answer.status != 200:
                    raise OSError(f"{answer.status}: {content[:300]!r}")
                if begin < time.perf_counter() < end:
                    counts[number] += 1
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"client {number}: {error}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"HTTP: {len(failures)} of {clients} clients failed: {failures[0]}")
    return sum(counts) / seconds
