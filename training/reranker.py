"""The reranker: a ModernBERT cross-encoder that reads source and candidate together and gives one logit.

Stage `pretrain` teaches it to see likeness across two texts: targets are the teacher's similarities of many pairs, and,
as a dense aid, the teacher's vectors of both texts at an inner layer. Stage `rank` fits lists as they are met in use: one
source with the embedder's best candidates, the target blending gold pairs with the teachers' similarities. Stage
`calibrate` sets the classifier's scale and bias so that the sigmoid means something.
"""
import random

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ModernBertConfig, ModernBertForSequenceClassification

import construct
import metrics
from common import Average, Schedule, adamw, batches_by_length, pad, step
from data import dev_group
from pairs import draw_weights
from tokenizer import CLS, MAX_TOKENS, PAD, SEP, for_reranker

CONFIG = dict(
    hidden_size=256, intermediate_size=512, num_hidden_layers=5, num_attention_heads=4, max_position_embeddings=MAX_TOKENS,
    global_attn_every_n_layers=2, local_attention=128, global_rope_theta=160000.0, local_rope_theta=10000.0,
    classifier_pooling="cls", num_labels=1, attention_dropout=0.0, embedding_dropout=0.0, mlp_dropout=0.0, classifier_dropout=0.0,
)
INNER = 4  # the dense aid looks at the output of this many layers
CONTENT = construct.CONTENT


class Reranker:
    def __init__(self, tokenizer):
        self.tokenizer = for_reranker(tokenizer)
        self.tokenizer.enable_truncation(MAX_TOKENS)
        special = {k: self.tokenizer.token_to_id(v) for k, v in dict(pad_token_id=PAD, cls_token_id=CLS, sep_token_id=SEP, bos_token_id=CLS, eos_token_id=SEP).items()}
        config = ModernBertConfig(vocab_size=self.tokenizer.get_vocab_size(), **special, **CONFIG)
        self.model = ModernBertForSequenceClassification._from_config(config, attn_implementation="sdpa")
        self.special, self.cache = special, {}

    def start_from(self, table, matrix, texts):
        """Start as a comparison of the two texts' mean word vectors (construct.py); `texts` only set the scale."""
        ids = {k: self.special[k + "_token_id"] for k in ("cls", "sep", "pad")}
        construct.build(self.model, table, matrix, ids, self.ids(texts))

    def ids(self, texts, limit=MAX_TOKENS):
        """Token ids of single texts without special tokens, cut to `limit`."""
        new = [t for t in dict.fromkeys(texts) if t not in self.cache]
        for t, e in zip(new, self.tokenizer.encode_batch(new, add_special_tokens=False)):
            self.cache[t] = e.ids
        return [self.cache[t][:limit] for t in texts]

    def pair_rows(self, pairs, limit=250):
        """[CLS] a [SEP] b [SEP] and the spans of a and b; both are well within the limit in training."""
        cls, sep = self.special["cls_token_id"], self.special["sep_token_id"]
        left, right = self.ids([a for a, _ in pairs], limit), self.ids([b for _, b in pairs], limit)
        return [[cls, *a, sep, *b, sep] for a, b in zip(left, right)], [len(a) for a in left]

    def forward(self, rows, autocast=True, inner=False):
        """Logits of id rows; with inner also the hidden states of layer INNER and the mask."""
        ids, lengths = pad(rows, self.special["pad_token_id"])
        mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=inner)
        logits = out.logits[:, 0].float()
        return (logits, out.hidden_states[INNER].float(), lengths) if inner else logits

    def score(self, pairs, tokens=8192, autocast=True):
        """Logits of many pairs, without gradients, exactly as the exported tokenizer encodes them."""
        rows = [e.ids for e in self.tokenizer.encode_batch(list(pairs))]
        out = np.zeros(len(rows), np.float32)
        with torch.inference_mode():
            for batch in batches_by_length([len(r) for r in rows], tokens, random.Random(0)):
                out[batch] = self.forward([rows[i] for i in batch], autocast).numpy()
        return out


def spans_mean(hidden, starts, ends):
    """Mean of the hidden states over [start, end) of each row."""
    position = torch.arange(hidden.shape[1])[None]
    mask = ((position >= starts[:, None]) & (position < ends[:, None])).float()
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)


def neighbours(vectors, depth=24, block=2048):
    """The nearest other texts of each."""
    out = []
    vectors = torch.tensor(vectors)
    for start in range(0, len(vectors), block):
        scores = vectors[start : start + block] @ vectors.T
        scores[torch.arange(len(scores)), torch.arange(start, start + len(scores))] = -1
        out.append(scores.topk(depth).indices.to(torch.int32))
    return torch.cat(out).numpy()


def aid_loss(aid, hidden, first, total, left, right):
    """The dense aid: the mean inner state over each text, through a linear map, against that text's vector."""
    first = torch.as_tensor(first)
    a = F.normalize(aid(spans_mean(hidden, torch.ones_like(first), first + 1)), dim=-1)
    b = F.normalize(aid(spans_mean(hidden, first + 2, total - 1)), dim=-1)
    return (1 - (a * left).sum(-1)).mean() + (1 - (b * right).sum(-1)).mean()


def list_loss(logits, wanted, width):
    """Order within each list: softmax of the logits against a given distribution."""
    return -(wanted * F.log_softmax(logits.view(-1, width) * 2, dim=-1)).sum(-1).mean()


def pretrain(student, data, matrix, dense_targets, alike_targets, steps, path, peak=5e-4, lists=10, width=6, limit=96, check=100, seed=3, minutes=None):
    """Likeness of pairs: each list is one text with near neighbours, farther ones and random texts.

    The likeness of two texts is the dot product of their rows in alike_targets; dense_targets feed the aid, which
    starts as `matrix` (static.py). Returns the aid.
    """
    rng = random.Random(seed)
    vectors, alike = torch.tensor(dense_targets), torch.tensor(alike_targets)
    texts = data.texts
    pool = [i for i, t in enumerate(texts[: len(data.near)]) if len(t.split()) >= 4]
    near = neighbours(alike_targets[pool])
    lengths = [len(r) for r in student.ids(texts, limit)]
    order = sorted(range(len(pool)), key=lambda k: lengths[pool[k]])
    place = {k: p for p, k in enumerate(order)}
    aid = torch.nn.Linear(CONFIG["hidden_size"], vectors.shape[1])
    torch.nn.init.zeros_(aid.bias)
    aid.weight.data = F.pad(matrix, (0, CONFIG["hidden_size"] - matrix.shape[1]))
    optimizer, schedule, average = adamw([student.model, aid]), Schedule(steps, peak, minutes=minutes), Average(student.model)
    student.model.train()
    while schedule.running():
        # Texts of like length meet, so that little is padding.
        centre = rng.randrange(len(order))
        sources = [order[min(len(order) - 1, max(0, centre + rng.randint(-400, 400)))] for _ in range(lists)]
        pairs = []
        for k in sources:
            close = list(near[k])
            chosen = [close[0], rng.choice(close[1:4]), rng.choice(close[4:10]), rng.choice(close[10:])]
            chosen += [order[min(len(order) - 1, max(0, place[k] + rng.randint(-2000, 2000)))] for _ in range(width - len(chosen))]
            pairs += [(pool[k], pool[c]) for c in chosen]
        left, right = [a for a, _ in pairs], [b for _, b in pairs]
        rows, first = student.pair_rows([(texts[a], texts[b]) for a, b in pairs], limit)
        logits, hidden, total = student.forward(rows, inner=True)
        likeness = (alike[left] * alike[right]).sum(-1)
        dense = aid_loss(aid, hidden, first, total, vectors[left], vectors[right])
        absolute = F.mse_loss(logits / 10, likeness - 0.5) * 10
        ordered = list_loss(logits, F.softmax(likeness.view(lists, width) * 20, dim=-1), width)
        step(dense + 2 * absolute + ordered, optimizer, schedule, [student.model, aid], average)
        if schedule.step % 50 == 0:
            error = float((logits.detach() / 10 + 0.5 - likeness).square().mean().sqrt())
            hit = float((logits.view(lists, width).argmax(-1) == likeness.view(lists, width).argmax(-1)).float().mean())
            print(f"pretrain {schedule.step}/{steps} dense {float(dense):.3f} rms {error:.3f} top1 {hit:.2f} {schedule.seconds()}s", flush=True)
        if schedule.step % check == 0 or not schedule.running():
            torch.save({"model": average.shadow, "aid": aid.state_dict()}, path)
    student.model.load_state_dict(average.shadow)
    return aid


class Lists:
    """Training lists as they are met in use: a source, the embedder's best candidates, gold among them."""

    def __init__(self, walks, embed, seed=4, depth=24):
        self.rng, self.walks, self.weights = random.Random(seed), [], draw_weights(walks, 0.3)
        for walk in walks:
            gold = metrics.gold_of(walk)
            sources, targets = list(gold), list(walk["targets"])
            rankings = metrics.retrieve(embed([walk["sources"][s] for s in sources]), embed([walk["targets"][t] for t in targets]), sources, targets, depth)
            self.walks.append((walk, gold, sources, rankings))

    def draw(self, width):
        """(source text, candidate texts, gold flags): the candidates are among the best, with at least one gold target."""
        while True:
            walk, gold, sources, rankings = self.rng.choices(self.walks, self.weights)[0]
            s = self.rng.choice(sources)
            found = [t for t in rankings[s] if walk["targets"][t] != walk["sources"][s]]
            if len(found) >= width:
                break
        chosen = self.rng.sample(found, width)
        if not gold[s] & set(chosen):
            chosen[-1] = self.rng.choice(sorted(gold[s]))
        self.rng.shuffle(chosen)
        return walk["sources"][s], [walk["targets"][t] for t in chosen], [t in gold[s] for t in chosen]


def rank(student, aid, index, dense_targets, alike_targets, lists, dev, steps, path, peak=4e-4, count=6, width=8, bonus=2.5, hold=0.5, limit=90, check=100, minutes=None):
    """Fit lists: the wanted order is the likeness, with gold targets lifted by `bonus`. Kept: the best on the dev lists.

    index: text to its row in dense_targets and alike_targets.
    """
    vectors, alike = torch.tensor(dense_targets), torch.tensor(alike_targets)
    optimizer, schedule, average = adamw([student.model, aid]), Schedule(steps, peak, warmup=50, minutes=minutes), Average(student.model, 0.99)
    best = -1.0

    def consider():
        nonlocal best
        student.model.eval()
        with average as model:
            recall, mrr = dev_rerank(student, dev)
            if mrr > best:
                best = mrr
                torch.save({"model": model.state_dict(), "aid": aid.state_dict()}, path)
        student.model.train()
        print(f"rank {schedule.step} dev recall {recall:.4f} mrr {mrr:.4f} best {best:.4f} {schedule.seconds()}s", flush=True)

    consider()
    student.model.train()
    while schedule.running():
        pairs, gold = [], []
        for _ in range(count):
            source, candidates, flags = lists.draw(width)
            pairs += [(source, c) for c in candidates]
            gold += flags
        left, right = ([index[p[k]] for p in pairs] for k in (0, 1))
        gold = torch.tensor(gold, dtype=torch.float32)
        # Rows of like length share a forward pass.
        rows, first = student.pair_rows(pairs, limit)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        logits, dense = torch.zeros(len(rows)), 0.0
        for part in (order[: len(order) // 2], order[len(order) // 2 :]):
            out, hidden, total = student.forward([rows[i] for i in part], inner=True)
            logits = logits.index_put((torch.tensor(part),), out)
            left_part, right_part = [left[i] for i in part], [right[i] for i in part]
            dense = dense + 0.5 * aid_loss(aid, hidden, [first[i] for i in part], total, vectors[left_part], vectors[right_part])
        likeness = (alike[left] * alike[right]).sum(-1)
        wanted = F.softmax((likeness * 20 + bonus * gold).view(count, width), dim=-1)
        absolute = F.mse_loss(logits / 10, likeness - 0.5 + 0.05 * bonus * gold) * 10
        loss = list_loss(logits, wanted, width) + hold * (dense + absolute)
        value = step(loss, optimizer, schedule, [student.model, aid], average)
        if schedule.step % 50 == 0:
            print(f"rank {schedule.step}/{steps} loss {value:.4f} {schedule.seconds()}s", flush=True)
        if schedule.step % check == 0 or not schedule.running():
            consider()
    student.model.load_state_dict(torch.load(path)["model"])


def calibrate(student, dev, walks, seed=6, spread=2.0):
    """Fold a scale and a bias into the classifier: gold pairs against the other candidates and against random pairs.

    A weighted logistic fit on dev: half the weight on gold, a quarter each on the other candidates and on random pairs;
    then stretched by `spread`, so that plain cases lie nearer to 0 and 1 (a person reads the score; the order is the same).
    """
    rng = random.Random(seed)
    targets = {w["name"]: list(w["targets"].values()) for w in walks}
    groups = ([], [], [])
    for name, gold, source, found in rng.sample(dev, min(80, len(dev))):
        for t, text in found[:10]:
            groups[0 if t in gold else 1].append((source, text))
        groups[2].extend((source, text) for text in rng.sample(targets[name], 3))
    logits = [torch.tensor(student.score(g)) for g in groups]
    scale, bias = torch.tensor(1.0, requires_grad=True), torch.tensor(0.0, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale, bias], max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = sum(share * F.binary_cross_entropy_with_logits(scale * x + bias, torch.full_like(x, wanted)) for x, wanted, share in zip(logits, (1.0, 0.0, 0.0), (0.5, 0.25, 0.25)))
        loss.backward()
        return loss

    optimizer.step(closure)
    scale, bias = spread * scale.detach().clamp_min(0.05).item(), spread * bias.item()
    classifier = student.model.classifier
    with torch.no_grad():
        classifier.weight.mul_(scale)
        classifier.bias.mul_(scale).add_(bias)
    medians = [float((scale * x + bias).sigmoid().median()) for x in logits]
    print(f"calibrated: scale {scale:.3f} bias {bias:.3f}; median score of gold {medians[0]:.2f}, other candidates {medians[1]:.2f}, random pairs {medians[2]:.2f}", flush=True)


def load(tokenizer, path, dimensions):
    """A saved reranker and its aid."""
    state, student = torch.load(path), Reranker(tokenizer)
    student.model.load_state_dict(state["model"])
    aid = torch.nn.Linear(CONFIG["hidden_size"], dimensions)
    aid.load_state_dict(state["aid"])
    return student, aid


def dev_lists(data, embed, depth=20, most=10, seed=8):
    """[(crosswalk, gold, source text, [(id, text)])]: the embedder's best candidates of some dev sources.

    At most so many of a crosswalk, three times as many where it is alone in its kind: reading pairs is slow.
    """
    out, rng = [], random.Random(seed)
    for walk in data.dev:
        gold = metrics.gold_of(walk)
        _, _, rankings = metrics.retrieval(embed, walk)
        chosen = sorted(rankings)
        rng.shuffle(chosen)
        for s in chosen[: most * (3 if dev_group(walk["name"]) == walk["name"] else 1)]:
            found = rankings[s]
            out.append((walk["name"], gold[s], walk["sources"][s], [(t, walk["targets"][t]) for t in found[:depth]]))
    return out


def dev_rerank(student, lists, by=None):
    """(recall@10, MRR@10) after reranking, averaged over kinds of dev crosswalk; by="embedder" keeps the embedder's order."""
    if by != "embedder":
        scores = student.score([(s, t) for _, _, s, found in lists for _, t in found])
    groups, at = {}, 0
    for name, gold, _, found in lists:
        ids = [t for t, _ in found]
        if by != "embedder":
            ids = metrics.ranked(scores[at : at + len(ids)], ids, len(ids))
        at += len(found)
        groups.setdefault(name, []).append((metrics.recall(ids, gold), metrics.reciprocal_rank(ids, gold)))
    kinds = {}
    for name, values in groups.items():
        kinds.setdefault(dev_group(name), []).append(np.mean(values, axis=0))
    recall, mrr = np.mean([np.mean(v, axis=0) for v in kinds.values()], axis=0)
    return float(recall), float(mrr)
