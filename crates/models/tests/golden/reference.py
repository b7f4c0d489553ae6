"""Runs a model of either family with `transformers`, in f32, and pools it the way the service does."""

import numpy as np
import torch
import transformers
from transformers import ModernBertForSequenceClassification, Qwen3Model

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)

CLASSES = {"qwen3": Qwen3Model, "modernbert": ModernBertForSequenceClassification}


def load(kind, folder, attention="eager", dtype=torch.float32):
    """Reads a case's folder the way any user of transformers would; complains about a tensor unread or invented."""
    model, info = CLASSES[kind].from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], f"{folder}: {problem}: {info[problem]}"
    return model.eval()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@torch.no_grad()
def alone(kind, model, sequences, pool=None):
    """One row per sequence, each computed by itself without padding.

    `pool` replaces the pooling of the Qwen3 cases: a function from (tokens, width) to (width).
    """
    rows = []
    for ids in sequences:
        output = model(input_ids=torch.tensor([ids]))
        if kind == "modernbert":
            rows.append(output.logits[0].numpy())
        else:
            hidden = output.last_hidden_state[0]
            rows.append((pool(hidden) if pool else hidden[-1]).numpy())
    rows = np.stack(rows).astype(np.float64)
    return rows[:, 0] if kind == "modernbert" else unit(rows)


@torch.no_grad()
def padded(kind, model, sequences, pad_id=0):
    """The same rows from one right-padded batch with an attention mask."""
    longest = max(map(len, sequences))
    ids = torch.tensor([s + [pad_id] * (longest - len(s)) for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
    output = model(input_ids=ids, attention_mask=mask)
    if kind == "modernbert":
        return output.logits[:, 0].numpy().astype(np.float64)
    rows = output.last_hidden_state.numpy().astype(np.float64)
    return unit(np.stack([rows[i, len(s) - 1] for i, s in enumerate(sequences)]))
