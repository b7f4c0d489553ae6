"""Two small tokenizers, trained here on sentences of our own, and what the `tokenizers` library answers with them.

`qwen` is built as the tokenizer.json of Qwen3-Embedding is: NFC, the Split regex and ByteLevel without its own regex,
and a post-processor that appends `<|endoftext|>`. `modernbert` is built as ModernBERT's: NFC, ByteLevel with its own
regex, `[CLS] A [SEP] B [SEP]`.
"""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCABULARY = 640
WINDOWS_SINGLE = [16, 64]
WINDOWS_PAIR = [16, 32, 64]

# From the published tokenizer.json of Qwen2 and Qwen3.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CORPUS = """
Require multi-factor authentication for every person who signs in to the management console.
Access keys are rotated every ninety days, and keys that nobody uses are removed.
Storage buckets must not be readable or writable by the public.
Encrypt data at rest with keys that the organization controls, and data in transit with TLS 1.2 or newer.
Audit logs are kept for 365 days in a place where those who are audited cannot change them.
The organization reviews accounts, roles and permissions at least once every quarter.
Security groups do not open port 22 or port 3389 to 0.0.0.0/0.
Backups are taken every day, kept in another region, and restored in a test twice a year.
Known vulnerabilities are patched within 14 days when they are critical and within 30 days otherwise.
Passwords, tokens and other secrets don't belong in source code; they're kept in a vault.
L'accès à distance exige une authentification à deux facteurs. Größere Änderungen müssen geprüft werden.
El cifrado es obligatorio; las contraseñas no se comparten.
访问控制策略必须定期审查。所有数据在传输时都要加密。
""".strip().splitlines()

TEXTS = [
    "",
    " ",
    "\n",
    "a",
    "MFA",
    "Require multi-factor authentication for all users.",
    " leading and trailing space ",
    "Don't share passwords; they'RE secrets, I'Ve said, and we'll SAY 'so'.",
    "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m Stra\u00dfe",
    "cafe\u0301 nai\u0308ve A\u030angstro\u0308m",
    "\u212b \u2126 \ufb01le \uff21\uff22\uff23 \u1e9b\u0323",
    "\uac00\uac01 \u1100\u1161\u11a8",
    "访问控制策略：所有用户必须启用多因素认证。",
    "アクセス制御と暗号化",
    "Доступ запрещён по умолчанию",
    "التحكم في الوصول",
    "emoji \U0001f512\U0001f511 and \U0001f468\u200d\U0001f469\u200d\U0001f467 and \U0001f1f3\U0001f1f1 and \u2764\ufe0f",
    "tabs\tand\t\ttabs\nnew\n\nlines\r\nand \t \n mixed  ",
    "run" + " " * 37 + "of spaces" + " " * 5,
    "   \n   \n\n  x",
    "1234567890 3.14159 10.0.0.0/8 2024-01-31 ISO27001 AES256 \u0663\u0664 \u00bd \u2163",
    "port 22, 3389 & 0.0.0.0/0 -> deny!!! ... (a|b) [x] {y} <z> #1 @me $5 %n ^ ~ ` \\ / _ - = +",
    "a\u00a0b\u2003c\u200bd\u2028e\u3000f\ufefff",
    "nul\u0000and\u0007bell\u007f",
    "AC-2(1): Account Management | Automated System Account Management",
    "snake_case_name camelCaseName SCREAMING_CASE kebab-case-name path/to/file.txt https://example.com/a?b=c&d=e#f",
    "text with <|endoftext|> inside and [SEP] inside and [CLS] too",
    "<|endoftext|>",
    "[SEP]",
    "a" * 300,
    "ab" * 90 + "é" * 90,
    "-" * 130,
    " ".join(CORPUS),
    "The organization keeps 365 days of logs. " * 40,
]

PAIRS = [
    ("Require MFA.", "Multi-factor authentication is required for all users."),
    ("", "nothing before"),
    ("nothing after", ""),
    ("", ""),
    ("Encrypt data at rest.", CORPUS[3] + " " + CORPUS[4] + " " + CORPUS[5]),
    (CORPUS[0] + " " + CORPUS[1] + " " + CORPUS[2], "Access keys are rotated."),
    (" ".join(CORPUS[:5]), " ".join(CORPUS[5:])),
    (" ".join(CORPUS[5:]), " ".join(CORPUS[:5])),
    (CORPUS[6], CORPUS[6]),
    ("访问控制策略必须定期审查。" * 6, "cafe\u0301 " * 30),
    ("a [SEP] b", "c <|endoftext|> d"),
    ("  spaces  at both ends  ", "\ttabs\n"),
]


def qwen():
    tokenizer = Tokenizer(models.BPE(byte_fallback=False, ignore_merges=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    end = "<|endoftext|>"
    train(tokenizer, [end, "<|im_start|>", "<|im_end|>"])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
            processors.TemplateProcessing(
                single=f"$A {end}", pair=f"$A {end} $B:1 {end}:1", special_tokens=[(end, tokenizer.token_to_id(end))]
            ),
        ]
    )
    return tokenizer


def modernbert():
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"])
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ids
    )
    return tokenizer


def train(tokenizer, specials):
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in specials],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)


def ids(tokenizer, window, *texts):
    if window is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(window, strategy="longest_first")
    return tokenizer.encode(*texts).ids


def golden(tokenizer, appended):
    singles, pairs = [], []
    for text in TEXTS:
        cut = {str(window): ids(tokenizer, window, text) for window in WINDOWS_SINGLE}
        whole = ids(tokenizer, None, text)
        for window, got in cut.items():
            assert len(got) == min(int(window), len(whole)) and got[-1] == appended, (text, window)
        singles.append({"text": text, "ids": whole, "truncated": cut})
    for a, b in PAIRS:
        cut = {str(window): ids(tokenizer, window, a, b) for window in WINDOWS_PAIR}
        whole = ids(tokenizer, None, a, b)
        for window, got in cut.items():
            assert len(got) == min(int(window), len(whole)) and got[-1] == appended, (a, b, window)
        pairs.append({"a": a, "b": b, "ids": whole, "truncated": cut})
    return singles, pairs


def make(folder):
    folder.mkdir(exist_ok=True)
    for name, build, end in (("qwen", qwen, "<|endoftext|>"), ("modernbert", modernbert, "[SEP]")):
        tokenizer = build()
        tokenizer.no_truncation()
        tokenizer.save(str(folder / f"{name}.tokenizer.json"))
        # What is recorded comes from the file as it is read back, not from the object that made it.
        tokenizer = Tokenizer.from_file(str(folder / f"{name}.tokenizer.json"))
        singles, pairs = golden(tokenizer, tokenizer.token_to_id(end))
        rows = ["{" + f'\n  "kind": "{name}",\n  "singles": [']
        rows.append(",\n".join("    " + json.dumps(row) for row in singles))
        rows.append('  ],\n  "pairs": [')
        rows.append(",\n".join("    " + json.dumps(row) for row in pairs))
        (folder / f"{name}.golden.json").write_text("\n".join(rows) + "\n  ]\n}\n")
        longest = max(len(row["ids"]) for row in singles)
        print(f"tokenizer {name}: {tokenizer.get_vocab_size()} tokens, {len(singles)} texts up to {longest} tokens")
