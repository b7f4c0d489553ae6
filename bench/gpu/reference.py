"""The same models in PyTorch: `transformers`, scaled-dot-product attention."""

import shapes
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def load(config, folder, dtype, device):
    kind = transformers.AutoModel if shapes.is_embedder(config) else transformers.AutoModelForSequenceClassification
    model, report = kind.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", output_loading_info=True, local_files_only=True
    )
    if report["missing_keys"] or report["mismatched_keys"] or report["unexpected_keys"]:
        raise SystemExit(f"{folder}: transformers does not take these weights: {report}")
    return model.eval().to(device)


@torch.inference_mode()
def forward(model, sequences):
    """Rows of a padded batch: the last token's hidden state, or the logit. Padding is on the right."""
    device = next(model.parameters()).device
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    ids = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long)
    for row, sequence in zip(ids, sequences):
        row[: len(sequence)] = torch.tensor(sequence)
    mask = None
    if lengths.min() < lengths.max():
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(device)
    output = model(input_ids=ids.to(device), attention_mask=mask)
    if hasattr(output, "logits"):
        return output.logits.float()
    rows = torch.arange(len(sequences), device=device)
    return output.last_hidden_state[rows, (lengths - 1).to(device)].float()


def alone(model, sequences):
    """Each sequence alone, as no padding can be wrong: an array of rows."""
    return torch.cat([forward(model, [sequence]) for sequence in sequences]).cpu().numpy().astype("float64")
