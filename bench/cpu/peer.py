"""One contender in a process of its own: peer.py KIND MODEL TOKENS ROWS

Writes its rows for every sequence to ROWS (.npy), says `ready`, and then, for each line of standard input that names a
load, computes that and prints the milliseconds.
"""

import json
import os
import pathlib
import sys
import time

import numpy

BATCH = 16


def main():
    kind, model, tokens, rows = sys.argv[1:]
    tokens = json.loads(pathlib.Path(tokens).read_text())
    sequences, loads = tokens["sequences"], {load["name"]: load["batches"] for load in tokens["loads"]}
    forward = KINDS[kind](pathlib.Path(model))
    pad_free = kind.startswith("llama")

    def run(batches):
        out = {}
        for batch in batches:
            # Sorted, so that little is padded, as sentence-transformers does it.
            order = batch if pad_free else sorted(batch, key=lambda i: len(sequences[i]))
            size = len(order) if pad_free else BATCH
            for start in range(0, len(order), size):
                part = order[start : start + size]
                out |= zip(part, forward([sequences[i] for i in part]))
        return out

    everything = run([range(len(sequences))])
    numpy.save(rows, numpy.array([everything[i] for i in range(len(sequences))]))
    for batches in loads.values():
        run(batches)
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        run(loads[line.strip()])
        print((time.perf_counter() - start) * 1e3, flush=True)


def padded(sequences):
    ids = numpy.zeros((len(sequences), max(map(len, sequences))), dtype="int64")
    mask = numpy.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return ids, mask


def is_embedder(folder):
    return json.loads((folder / "config.json").read_text())["model_type"] == "qwen3"


def load(folder, dtype, attention):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(os.cpu_count())
    kind = transformers.AutoModel if is_embedder(folder) else transformers.AutoModelForSequenceClassification
    return kind.from_pretrained(folder, dtype=dtype, attn_implementation=attention, local_files_only=True).eval()


def pytorch(dtype):
    def prepare(folder):
        import torch

        model, embedder = load(folder, getattr(torch, dtype), "sdpa"), is_embedder(folder)

        @torch.inference_mode()
        def forward(sequences):
            ids, mask = map(torch.from_numpy, padded(sequences))
            full = bool(mask.all())
            if embedder:
                # The cache of keys and values is for generating text.
                hidden = model(input_ids=ids, attention_mask=None if full else mask, use_cache=False).last_hidden_state
                return hidden[torch.arange(len(ids)), mask.sum(1) - 1].float().numpy()
            return model(input_ids=ids, attention_mask=None if full else mask).logits.float().numpy()

        return forward

    return prepare


def onnx(folder):
    import onnxruntime
    import torch

    path = folder / "model.onnx"
    if not path.exists():
        model = load(folder, torch.float32, "eager")
        ids = torch.randint(10, 1000, (4, 32))
        sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        torch.onnx.export(
            model, (ids, torch.ones_like(ids)), path, dynamo=True, input_names=["input_ids", "attention_mask"],
            output_names=["logits"], dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
        )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    # Others are measured in between.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(sequences):
        ids, mask = padded(sequences)
        return session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]

    return forward


def llama(quantization):
    def prepare(folder):
        import llama_cpp as llama

        import gguf_model

        path = gguf_model.write(folder, quantization)
        # Held for as long as the library may call it.
        prepare.silent = llama.llama_log_callback(lambda *_: None)
        llama.llama_log_set(prepare.silent, None)
        llama.llama_backend_init()
        model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
        settings = llama.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = 8192, 8192, 8192, 64
        settings.n_threads = settings.n_threads_batch = os.cpu_count()
        settings.embeddings, settings.pooling_type = True, llama.LLAMA_POOLING_TYPE_LAST
        context = llama.llama_init_from_model(model, settings)
        columns = llama.llama_model_n_embd(model)
        batch = llama.llama_batch_init(8192, 0, 1)

        def forward(sequences):
            llama.llama_memory_clear(llama.llama_get_memory(context), True)
            at = 0
            for number, sequence in enumerate(sequences):
                for position, token in enumerate(sequence):
                    batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, position, 1
                    batch.seq_id[at][0], batch.logits[at] = number, position == len(sequence) - 1
                    at += 1
            batch.n_tokens = at
            if llama.llama_decode(context, batch):
                raise SystemExit("llama_decode failed")
            return [numpy.ctypeslib.as_array(llama.llama_get_embeddings_seq(context, n), (columns,)).copy()
                    for n in range(len(sequences))]  # fmt: skip

        return forward

    return prepare


KINDS = {"pytorch-f32": pytorch("float32"), "pytorch-bf16": pytorch("bfloat16"), "onnxruntime": onnx,
         "llama.cpp-f16": llama("F16"), "llama.cpp-q8_0": llama("Q8_0")}  # fmt: skip

if __name__ == "__main__":
    main()
