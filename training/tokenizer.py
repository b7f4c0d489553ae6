"""The vocabulary of both models: one lower-cased byte-level BPE, and the two ways its texts are closed.

The embedder's tokenizer ends each text in <|endoftext|>; the reranker's writes [CLS] source [SEP] candidate [SEP].
"""
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

END, PAD, CLS, SEP, MASK = "<|endoftext|>", "[PAD]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = [END, PAD, CLS, SEP, MASK]
MAX_TOKENS = 512


def train(texts, size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=3, show_progress=False),
    )
    return tokenizer


def for_embedder(tokenizer):
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A $B {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer


def for_reranker(tokenizer):
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:0 {SEP}:0",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in (CLS, SEP)],
    )
    return tokenizer


def hugging_face_config(kind):
    """tokenizer_config.json: 'embedder' or 'reranker'."""
    common = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_TOKENS, "clean_up_tokenization_spaces": False, "pad_token": PAD}
    if kind == "embedder":
        return {**common, "eos_token": END, "padding_side": "left", "model_input_names": ["input_ids", "attention_mask"]}
    return {**common, "cls_token": CLS, "sep_token": SEP, "mask_token": MASK, "padding_side": "right", "model_input_names": ["input_ids", "attention_mask"]}
