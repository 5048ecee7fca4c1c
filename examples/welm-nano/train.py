#!/usr/bin/env python3
"""welm-nano: train a very small Chinese (mostly verse) language model on a plain CPU.

    pip install torch transformers sentencepiece tokenizers safetensors numpy
    python train.py prepare   --work W --corpus DIR     # clean, hold out 1 %, 2 min
    python train.py tokenizer --work W                  # vocabulary, tokenizer.json, token ids
    python train.py train     --work W --minutes 80     # checkpointed; run again to resume
    python train.py export    --work W --out FOLDER     # Hugging Face folder, float weights
    python train.py eval      --work W                  # held-out loss per character
    python train.py sample    --work W --prompt '床前明月光，'
    python train.py scan      --work W                  # how much of its output is verse
    python train.py texts     --work W                  # what was trained on, and what was held out, as texts

DIR holds `<source>.txt.xz` files: UTF-8, documents separated by one blank line.
W is a scratch folder. The model is a GPT-NeoX decoder with sequential residuals and full rotary
positions (the WeLM shape); the module below computes what `GPTNeoXForCausalLM` computes, under the
same parameter names, and `export` checks that the logits agree. One long file on purpose: it is the whole
recipe, to be read from top to bottom.
"""
import argparse, collections, hashlib, json, lzma, math, os, re, shutil, signal, time
from pathlib import Path

import numpy as np

# ----------------------------------------------------------------------------------------------
# 1. Data
# ----------------------------------------------------------------------------------------------
# Corpus file -> share of the training rows. Poetry is split by form into two "sources":
# regular verse (every line 5, or every line 7 characters) and the rest (ci, qu, Book of Songs, ...).
SHARES = {
    "verse-regular": 0.66,
    "verse-other": 0.12,
    "four-great-novels": 0.08,
    "gutenberg-modern-1920s": 0.06,
    "kdconv-dialogues": 0.05,
    "howtocook": 0.03,
}
PROSE = ["four-great-novels", "gutenberg-modern-1920s", "kdconv-dialogues", "howtocook"]
LINE_END = re.compile(r"[，。！？；：、\n]+")
HEAD = re.compile(r"^《([^《》]*)》(?: ([^ ]*))?$")
# Marks of lost or uncertain glyphs, and of editors' notes inside poems.
BROKEN = re.compile(r"[\ufffd□■○●◎△☆/〖〗［］\[\]〔〕（）()?*a-zA-Z0-9]|缺")


def line_lengths(text):
    """Lengths of the stretches between punctuation marks."""
    return [len(s) for s in LINE_END.split(text) if s]


def is_regular(text):
    n = line_lengths(text)
    return len(n) >= 2 and n[0] in (5, 7) and len(set(n)) == 1


def held_out(text):
    """One document in a hundred, decided by its text alone (so duplicates stay on one side)."""
    return int(hashlib.sha1(text.encode()).hexdigest()[:8], 16) % 100 == 0


def read_documents(path):
    text = lzma.open(path, "rt", encoding="utf-8").read()
    return [d.strip("\n") for d in text.split("\n\n") if d.strip()]


def stage_prepare(a):
    """Writes W/train.jsonl and W/heldout.jsonl: {"source", "title", "author", "body"} a line."""
    corpus, work = Path(a.corpus), Path(a.work)
    work.mkdir(parents=True, exist_ok=True)
    stats = collections.defaultdict(collections.Counter)
    with open(work / "train.jsonl", "w") as ftrain, open(work / "heldout.jsonl", "w") as fheld:

        def put(source, body, title="", author=""):
            out = held_out(body)
            stats[source]["heldout" if out else "train"] += 1
            stats[source]["heldout_chars" if out else "train_chars"] += len(body)
            rec = {"source": source, "title": title, "author": author, "body": body}
            (fheld if out else ftrain).write(json.dumps(rec, ensure_ascii=False) + "\n")

        seen = set()
        for d in read_documents(corpus / "chinese-poetry.txt.xz"):
            head, _, body = d.partition("\n")
            m = HEAD.match(re.sub(r" {2,}", " ", head).replace("》 ", "》\0").replace(" ", "・").replace("\0", " "))
            body = body.strip()
            if not m or not body or BROKEN.search(body) or len(body) > 2000 or body in seen:
                stats["poetry, dropped"]["train"] += 1
                continue
            seen.add(body)
            title = m[1] if not BROKEN.search(m[1]) and len(m[1]) <= 40 else ""
            put("verse-regular" if is_regular(body) else "verse-other", body, title, m[2] or "")
        for source in PROSE:
            for d in read_documents(corpus / f"{source}.txt.xz"):
                if "\ufffd" not in d:
                    put(source, d)
    (work / "stats.json").write_text(json.dumps(stats, indent=1, ensure_ascii=False))
    print(json.dumps(stats, indent=1, ensure_ascii=False))


def load_docs(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


def stage_texts(a):
    """Writes W/train.txt and W/heldout.txt for `welm experiment memory`: bodies, an empty line between."""
    for name in ("train", "heldout"):
        bodies = (d["body"] for d in load_docs(Path(a.work) / f"{name}.jsonl"))
        (Path(a.work) / f"{name}.txt").write_text("\n\n".join(bodies) + "\n")


# ----------------------------------------------------------------------------------------------
# 2. Tokenizer
# ----------------------------------------------------------------------------------------------
VOCAB = 7040          # a multiple of 32
CHARACTERS = 5900     # single characters; there are also 259 control and byte tokens; the rest are merges
UNK, EOT, PAD = "<unk>", "<|endoftext|>", "<pad>"
EOT_ID, PAD_ID = 1, 2


def train_sentencepiece(work):
    """SentencePiece BPE without any normalisation. Lines are fed without their newline, and newline
    and tab are required characters: so they are tokens of their own and never part of a merge."""
    import sentencepiece as spm
    repeat = {"kdconv-dialogues": 4, "howtocook": 4, "gutenberg-modern-1920s": 4}
    lines, count = [], collections.Counter()
    for d in load_docs(work / "train.jsonl"):
        head = f"《{d['title']}》 {d['author']}" if d["title"] else ""
        text = (head + "\n" + d["body"]).split("\n")
        for _ in range(repeat.get(d["source"], 1)):
            lines += [t for t in text if t]
        for t in text:
            for c in t:
                count[c] += repeat.get(d["source"], 1)
    # Every ASCII and every common punctuation character stays, then the most frequent characters.
    always = "\n\t" + "".join(map(chr, range(33, 127))) + "，。！？；：、“”‘’（）《》「」『』【】〈〉—…·・～％＋－＝　"
    chars = list(always)
    for c, _ in count.most_common():
        if len(chars) >= CHARACTERS:
            break
        if c not in always and c not in " \u2581":
            chars.append(c)
    keep = set(chars) | {" "}
    # A line is cut at characters outside the vocabulary (these become bytes in use).
    cut = []
    for t in lines:
        piece = ""
        for c in t:
            if c in keep:
                piece += c
            else:
                if piece:
                    cut.append(piece)
                piece = ""
        if piece:
            cut.append(piece)
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(cut), model_prefix=str(work / "sp"), model_type="bpe",
        vocab_size=VOCAB, byte_fallback=True, character_coverage=1.0,
        required_chars="".join(chars), normalization_rule_name="identity",
        add_dummy_prefix=False, remove_extra_whitespaces=False, split_digits=True,
        max_sentencepiece_length=4, max_sentence_length=100000, num_threads=1,
        unk_id=0, bos_id=-1, eos_id=EOT_ID, pad_id=PAD_ID,
        unk_piece=UNK, eos_piece=EOT, pad_piece=PAD, minloglevel=1)


def tokenizer_json(sp):
    """The same vocabulary as a Hugging Face tokenizer. SentencePiece joins the adjacent pair whose
    union has the best score; that is a BPE merge list holding, in order of score, every way of
    making a piece out of two pieces."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    pieces = [sp.id_to_piece(i) for i in range(sp.get_piece_size())]
    vocab = {p: i for i, p in enumerate(pieces)}
    merges = []
    for i, p in enumerate(pieces):
        if len(p) > 1 and not sp.is_byte(i) and not sp.is_control(i) and not sp.is_unknown(i):
            for k in range(1, len(p)):
                if p[:k] in vocab and p[k:] in vocab:
                    merges.append((-sp.get_score(i), vocab[p[:k]], vocab[p[k:]], p[:k], p[k:]))
    merges = [(l, r) for *_, l, r in sorted(merges)]
    t = Tokenizer(models.BPE(vocab, merges, unk_token=UNK, fuse_unk=False, byte_fallback=True))
    t.normalizer = normalizers.Replace(" ", "\u2581")
    t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    t.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in (UNK, EOT, PAD)])
    return t


HARD_TEXTS = [
    "", " ", "  a  b  ", "\t\tx\n\n y\n", "你好，世界!", "，,。.！!？?；;：:（(", "🙂👩‍👩‍👧‍👦🇨🇳", "床前明月光，疑是地上霜。\n",
    "微信AI推出のWeLM是一个language model thatいろいろなtaskをperformができる", "𪚥龘鱻 café ﬁ Ａ１ ½\u3000全角\u00a0\u200b\r\n",
    "한국어 텍스트", "1234567890 3.14159", "《春日》 朱熹\n", "\x00\x01\x7f", "a\u0301 e\u0301", "…………————", "   缩进\n\t制表",
]


def verify_tokenizer(sp, t, docs):
    """tokenizers == sentencepiece, and decode(encode(x)) == x, on hard strings and real documents."""
    texts = HARD_TEXTS + [d["body"] for d in docs]
    texts += [f"《{d['title']}》 {d['author']}\n{d['body']}" for d in docs if d["title"]]
    for x in texts:
        ids = t.encode(x, add_special_tokens=False).ids
        # SentencePiece's C interface ends a string at NUL in no case we meet, so NUL is compared too.
        assert ids == sp.encode(x), (x, [t.id_to_token(i) for i in ids], sp.encode(x, out_type=str))
        assert t.decode(ids, skip_special_tokens=False) == x, (x, t.decode(ids, skip_special_tokens=False))
        assert 0 not in ids, ("unknown token", x)
    # Encoding in parts equals encoding the whole where `tokenise` cuts.
    for d in docs[:2000]:
        if d["title"]:
            whole = f"《{d['title']}》 {d['author']}\n{d['body']}"
            parts = [f"《{d['title']}》", f" {d['author']}", "\n", d["body"]]
            assert sp.encode(whole) == sum((sp.encode(p) for p in parts), []), whole
    print(f"tokenizer verified on {len(texts)} texts")


def stage_tokenizer(a):
    import sentencepiece as spm
    work = Path(a.work)
    train_sentencepiece(work)
    sp = spm.SentencePieceProcessor(model_file=str(work / "sp.model"))
    t = tokenizer_json(sp)
    t.save(str(work / "tokenizer.json"))
    singles = sum(len(sp.id_to_piece(i)) == 1 and "\u4e00" <= sp.id_to_piece(i) <= "\u9fff" for i in range(VOCAB))
    print("vocabulary", sp.get_piece_size(), "single Han", singles)
    held = load_docs(work / "heldout.jsonl")
    verify_tokenizer(sp, t, held)
    tokenise(work, sp)


def tokenise(work, sp, limit=480):
    """W/tokens.npz: for every source one flat id array and the places where its documents start.
    A poem is stored in parts (title, author, body), so that each use can choose its heading.
    Prose is cut between paragraphs into documents of at most `limit` tokens."""
    parts = {s: [[], [], [], []] for s in SHARES}  # flat ids; ends of title, author, body
    nl = sp.encode("\n")
    assert len(nl) == 1
    for d in load_docs(work / "train.jsonl"):
        flat, e1, e2, e3 = parts[d["source"]]
        if d["source"].startswith("verse"):
            if d["title"]:
                flat += sp.encode(f"《{d['title']}》")
            e1.append(len(flat))
            if d["title"] and d["author"]:
                flat += sp.encode(f" {d['author']}")
            e2.append(len(flat))
            flat += sp.encode(d["body"])
            e3.append(len(flat))
            continue
        cur = []
        for p in sp.encode(d["body"].split("\n")):
            p = p + nl
            while p:
                if cur and len(cur) + len(p) > limit:
                    flat += cur; e1.append(len(flat) - len(cur)); e2.append(len(flat) - len(cur)); e3.append(len(flat))
                    cur = []
                cur, p = cur + p[:limit], p[limit:]
        if cur[:-1]:
            flat += cur[:-1]; n = len(flat) - len(cur) + 1
            e1.append(n); e2.append(n); e3.append(len(flat))
    arrays = {}
    for s, (flat, e1, e2, e3) in parts.items():
        arrays[s] = np.array(flat, np.uint16)
        arrays[s + "/ends"] = np.array([e1, e2, e3], np.int64)
        print(f"{s:25} {len(flat):9} tokens {len(e3):7} documents")
    np.savez(work / "tokens.npz", **arrays)


class Sampler:
    """Rows of `length`+1 ids. A row has one source, drawn by its share. It begins at the start of a
    document (as a prompt does in use) and is filled with whole documents, `<|endoftext|>` between;
    the last one is cut off at the row's end. Each source is walked in a fresh random order every
    epoch. `state` is all that a checkpoint needs."""

    def __init__(self, work, newline, seed=1, state=None):
        z = np.load(Path(work) / "tokens.npz")
        self.flat = {s: z[s] for s in SHARES}
        self.ends = {s: z[s + "/ends"] for s in SHARES}
        self.newline, self.seed = newline, seed
        self.state = state or {"row": 0, "pos": {s: 0 for s in SHARES}}
        self.order = {}

    def document(self, s, rng):
        n = self.ends[s].shape[1]
        epoch, i = divmod(self.state["pos"][s], n)
        self.state["pos"][s] += 1
        if self.order.get(s, (None, None))[0] != epoch:
            self.order[s] = (epoch, np.random.default_rng([self.seed, epoch]).permutation(n))
        i = self.order[s][1][i]
        e1, e2, e3 = self.ends[s][:, i]
        start = self.ends[s][2, i - 1] if i else 0
        flat, body = self.flat[s], self.flat[s][e2:e3]
        # Headings: regular verse has none half of the time, other verse always has one, so that a
        # bare first line means regular verse. Three in five headings are "title", else "title author".
        if s == "verse-other" and e1 == start:
            return self.document(s, rng)
        if e1 == start or (s == "verse-regular" and rng.random() < 0.5):
            return [body]
        return [flat[start:e1] if rng.random() < 0.6 else flat[start:e2], [self.newline], body]

    def rows(self, count, length):
        out = np.empty((count, length + 1), np.int64)
        names, p = list(SHARES), np.array(list(SHARES.values()))
        for r in range(count):
            rng = np.random.default_rng([self.seed, 7, self.state["row"]])
            self.state["row"] += 1
            s = names[rng.choice(len(names), p=p / p.sum())]
            parts, n = [], 0
            while n <= length:
                for q in self.document(s, rng) + [[EOT_ID]]:
                    parts.append(q)
                    n += len(q)
            out[r] = np.concatenate(parts)[:length + 1]
        return out


# ----------------------------------------------------------------------------------------------
# 3. Model: GPT-NeoX, sequential residual, full rotary, tied embedding
# ----------------------------------------------------------------------------------------------
import torch
import torch.nn as nn
import torch.nn.functional as F

SHAPE = dict(layers=6, dim=256, heads=4, hidden=1024, context=512)


class Layer(nn.Module):
    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.heads = heads
        self.input_layernorm = nn.LayerNorm(dim, eps=1e-5)
        self.post_attention_layernorm = nn.LayerNorm(dim, eps=1e-5)
        self.attention = nn.ModuleDict({"query_key_value": nn.Linear(dim, 3 * dim), "dense": nn.Linear(dim, dim)})
        self.mlp = nn.ModuleDict({"dense_h_to_4h": nn.Linear(dim, hidden), "dense_4h_to_h": nn.Linear(hidden, dim)})

    def forward(self, x, cos, sin):
        b, t, d = x.shape
        # query_key_value holds, head after head, that head's query, key and value.
        qkv = self.attention["query_key_value"](self.input_layernorm(x)).view(b, t, self.heads, -1)
        q, k, v = qkv.transpose(1, 2).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.attention["dense"](y.transpose(1, 2).reshape(b, t, d))
        h = self.mlp["dense_h_to_4h"](self.post_attention_layernorm(x))
        return x + self.mlp["dense_4h_to_h"](F.gelu(h))


def rotate(x, cos, sin):
    """Rotary positions, half-split pairing: component i is rotated with component i + head_dim/2."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Nano(nn.Module):
    def __init__(self, layers, dim, heads, hidden, context, vocab=VOCAB):
        super().__init__()
        self.gpt_neox = nn.ModuleDict({
            "embed_in": nn.Embedding(vocab, dim),
            "layers": nn.ModuleList(Layer(dim, heads, hidden) for _ in range(layers)),
            "final_layer_norm": nn.LayerNorm(dim, eps=1e-5)})
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() == 2:
                small = name.endswith(("dense.weight", "dense_4h_to_h.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers) if small else 0.02)
        half = dim // heads // 2
        angle = torch.arange(context)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids):
        """Hidden states after the final norm; logits are their product with the embedding."""
        x = self.gpt_neox["embed_in"](ids)
        kind = torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype
        cos, sin = self.cos[:ids.shape[1]].to(kind), self.sin[:ids.shape[1]].to(kind)
        for layer in self.gpt_neox["layers"]:
            x = layer(x, cos, sin)
        return self.gpt_neox["final_layer_norm"](x)

    def logits(self, ids):
        return F.linear(self(ids), self.gpt_neox["embed_in"].weight)

    def loss(self, ids, targets):
        return F.cross_entropy(self.logits(ids).flatten(0, 1).float(), targets.flatten())


# ----------------------------------------------------------------------------------------------
# 4. Training
# ----------------------------------------------------------------------------------------------
class Muon(torch.optim.Optimizer):
    """Momentum whose update is replaced by the nearest (half-)orthogonal matrix, for the matrices
    inside the layers (K. Jordan et al., 2024). Needs fewer tokens than AdamW, which matters here,
    because training time is short. query_key_value is treated as three matrices."""

    def __init__(self, named, heads, lr=0.02, momentum=0.95, weight_decay=0.01):
        super().__init__([p for _, p in named], dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.qkv = {p for n, p in named if "query_key_value" in n}
        self.heads = heads

    @torch.no_grad()
    def step(self):
        g = self.param_groups[0]
        by_shape = collections.defaultdict(list)
        for p in g["params"]:
            m = self.state[p].setdefault("momentum", torch.zeros_like(p))
            m.lerp_(p.grad, 1 - g["momentum"])
            u = p.grad.lerp(m, g["momentum"])  # Nesterov
            if p in self.qkv:
                d = p.shape[1]
                u = u.view(self.heads, 3, -1, d).transpose(0, 1).reshape(3, -1, d)
            else:
                u = u[None]
            by_shape[min(u.shape[1:]), max(u.shape[1:])].append((p, u))
        for group in by_shape.values():
            wide = [u.mT if u.shape[1] > u.shape[2] else u for _, u in group]
            for (p, u), o in zip(group, orthogonal(torch.cat(wide)).split([len(w) for w in wide])):
                o = o.mT if u.shape[1] > u.shape[2] else o
                scale = max(1.0, o.shape[1] / o.shape[2]) ** 0.5
                if p in self.qkv:
                    o = o.reshape(3, self.heads, -1, p.shape[1]).transpose(0, 1)
                p.mul_(1 - g["lr"] * g["weight_decay"])
                p.add_(o.reshape(p.shape).to(p.dtype), alpha=-g["lr"] * scale)


def orthogonal(x, steps=5):
    """Newton-Schulz iteration towards the orthogonal factor of each matrix of a batch."""
    x = x.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * (s @ s)) @ x
    return x


def save_atomically(obj, path):
    tmp = Path(str(path) + ".tmp")
    torch.save(obj, tmp)
    os.replace(tmp, path)


def stage_train(a):
    from tokenizers import Tokenizer
    torch.manual_seed(1)
    work = Path(a.work)
    tok = Tokenizer.from_file(str(work / "tokenizer.json"))
    model = Nano(**SHAPE)
    matrices = [(n, p) for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    inside = {p for _, p in matrices}
    muon = Muon(matrices, SHAPE["heads"], lr=a.lr)
    adam = torch.optim.AdamW([p for p in model.parameters() if p not in inside], lr=a.adam_lr,
                             betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    state = {"step": 0, "tokens": 0, "seconds": 0.0, "sampler": None}
    ckpt = work / "checkpoint.pt"
    if ckpt.exists() and not a.bench:
        c = torch.load(ckpt, weights_only=False)
        model.load_state_dict(c["model"]); muon.load_state_dict(c["muon"]); adam.load_state_dict(c["adam"])
        state = c["state"]
        print("resumed at step", state["step"], flush=True)
    sampler = Sampler(work, tok.encode("\n").ids[0], state=state["sampler"])
    print(f"{sum(p.numel() for p in model.parameters())/1e6:.2f} M parameters", flush=True)
    compute = torch.compile(model.loss, dynamic=False) if a.compile else model.loss

    def save():
        state["sampler"] = sampler.state
        save_atomically({"model": model.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict(),
                         "state": state, "shape": SHAPE}, ckpt)

    log = open(work / ("bench.log" if a.bench else "train.log"), "a")
    last_save = last_export = time.time()
    typical, shown, mean = 0.0, time.time(), None
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))  # finish the step, save, end
    while True:
        # Progress from 0 to 1 by time: seconds spent in steps (a pause is not counted) against the
        # budget, and, where given, a wall-clock deadline, whichever ends first.
        left = a.minutes * 60 - state["seconds"]
        if a.deadline:
            left = min(left, a.deadline - time.time())
        progress = state["seconds"] / max(1e-9, state["seconds"] + max(left, 0))
        if stop or left <= 0 or (a.bench and state["step"] >= a.bench):
            break
        begin = time.time()
        # Warm-up, then linear decay to 1 % of the rate.
        factor = min(1.0, (state["step"] + 1) / 100) * max(0.01, 1 - progress)
        muon.param_groups[0]["lr"] = a.lr * factor
        muon.param_groups[0]["momentum"] = 0.85 + 0.10 * min(1.0, state["step"] / 300)
        adam.param_groups[0]["lr"] = a.adam_lr * factor
        # The last fifth on rows of the full context length.
        length = SHAPE["context"] if progress > 0.8 else SHAPE["context"] // 2
        batch = torch.from_numpy(sampler.rows(a.batch // length, length))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = compute(batch[:, :-1], batch[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p not in inside], 1.0)
        muon.step(); adam.step()
        muon.zero_grad(set_to_none=True); adam.zero_grad(set_to_none=True)
        now = time.time()
        took = now - begin
        if typical:
            took = min(took, 4 * typical)  # a longer step is one that was paused
        typical = 0.9 * typical + 0.1 * took if typical else took
        state["seconds"] += took
        state["step"] += 1
        state["tokens"] += batch[:, 1:].numel()
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        if state["step"] % 20 == 0:
            line = (f"step {state['step']} tokens {state['tokens']/1e6:.2f}M loss {mean:.4f} lr {factor:.3f} "
                    f"{state['seconds']/60:.1f} min {20*a.batch/(now-shown):.0f} tok/s")
            shown = now
            print(line, flush=True); log.write(line + "\n"); log.flush()
        if a.bench:
            continue
        if now - last_save > 300:
            save(); last_save = now
        if a.export and now - last_export > 600:
            export(work, model, a.export); last_export = now
    if not a.bench:
        save()
        if a.export:
            export(work, model, a.export)
    print("done", state["step"], state["tokens"], state["seconds"], flush=True)


def load_model(work):
    c = torch.load(Path(work) / "checkpoint.pt", weights_only=False)
    model = Nano(**c["shape"])
    model.load_state_dict(c["model"])
    return model.eval(), c["state"]


# ----------------------------------------------------------------------------------------------
# 5. Export to a Hugging Face folder
# ----------------------------------------------------------------------------------------------
def hf_config(shape):
    return {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "welm",
        "vocab_size": VOCAB, "hidden_size": shape["dim"], "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"], "intermediate_size": shape["hidden"],
        "hidden_act": "gelu", "max_position_embeddings": shape["context"],
        "rotary_pct": 1.0, "rotary_emb_base": 10000, "layer_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        "use_parallel_residual": False, "attention_bias": True, "tie_word_embeddings": True,
        "attention_dropout": 0.0, "hidden_dropout": 0.0, "initializer_range": 0.02, "use_cache": True,
        "bos_token_id": EOT_ID, "eos_token_id": EOT_ID, "pad_token_id": PAD_ID, "torch_dtype": "float32",
    }


def export(work, model, out):
    from safetensors.torch import save_file
    out = Path(out)
    tmp = out.with_name(out.name + ".tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    weights = {n: p.detach().float().contiguous().clone() for n, p in model.named_parameters()}
    save_file(weights, str(tmp / "model.safetensors"), metadata={"format": "pt"})

    (tmp / "model.safetensors").chmod(0o644)

    def dump(name, obj):
        (tmp / name).write_text(json.dumps(obj, indent=2, ensure_ascii=False) + "\n")

    dump("config.json", hf_config(SHAPE))
    dump("generation_config.json", {
        "bos_token_id": EOT_ID, "eos_token_id": EOT_ID, "pad_token_id": PAD_ID, "do_sample": True,
        "temperature": 0.8, "top_p": 0.9, "top_k": 50, "max_new_tokens": 128})
    dump("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": UNK, "bos_token": EOT, "eos_token": EOT,
        "pad_token": PAD, "add_bos_token": False, "add_eos_token": False, "add_prefix_space": False,
        "clean_up_tokenization_spaces": False, "model_max_length": SHAPE["context"]})
    shutil.copy(Path(work) / "tokenizer.json", tmp / "tokenizer.json")
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(tmp, out)
    shutil.rmtree(old, ignore_errors=True)
    print("exported to", out, flush=True)


def as_transformers(weights, cfg):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    cfg = dict(cfg, model_type="gpt_neox")  # "welm" is the same architecture under its family's name
    hf = GPTNeoXForCausalLM(GPTNeoXConfig(**cfg)).eval()
    missing, unexpected = hf.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"embed_out.weight", "lm_head.weight"}, (missing, unexpected)
    hf.tie_weights()
    return hf


def verify_export(model, out):
    """Loads the folder with transformers and compares the logits with this file's model."""
    from safetensors.torch import load_file
    from transformers import PreTrainedTokenizerFast
    cfg = json.loads((Path(out) / "config.json").read_text())
    hf = as_transformers(load_file(str(Path(out) / "model.safetensors")), cfg)
    ids = torch.randint(3, VOCAB, (2, SHAPE["context"]), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        worst = (hf(ids).logits - model.logits(ids)).abs().max().item()
    assert worst < 1e-3, worst
    t = PreTrainedTokenizerFast(tokenizer_file=str(Path(out) / "tokenizer.json"))
    for x in HARD_TEXTS:
        assert t.decode(t.encode(x, add_special_tokens=False), clean_up_tokenization_spaces=False) == x, x
    print(f"logits agree with transformers: largest difference {worst:.2e}")


def stage_export(a):
    model, _ = load_model(a.work)
    export(a.work, model, a.out)
    verify_export(model, a.out)


# ----------------------------------------------------------------------------------------------
# 6. Evaluation, sampling, scansion
# ----------------------------------------------------------------------------------------------
@torch.no_grad()
def stage_eval(a):
    """Held-out loss per character. Every document after `<|endoftext|>`; poems with title and
    author; the closing `<|endoftext|>` is predicted but is no character. Long documents in windows
    of the context, none of them overlapping. Total nats / characters."""
    from tokenizers import Tokenizer
    torch.manual_seed(0)
    model, _ = load_model(a.work)
    tok = Tokenizer.from_file(str(Path(a.work) / "tokenizer.json"))
    by = collections.defaultdict(list)
    for d in load_docs(Path(a.work) / "heldout.jsonl"):
        by[d["source"]].append(d)
    result = {}
    ctx = SHAPE["context"]
    for s, docs in by.items():
        windows, chars, tokens = [], 0, 0
        for d in docs[:a.documents]:
            head = f"《{d['title']}》" + (f" {d['author']}" if d["author"] else "") + "\n" if d["title"] else ""
            text = head + d["body"]
            ids = [EOT_ID] + tok.encode(text, add_special_tokens=False).ids + [EOT_ID]
            chars += len(text)
            tokens += len(ids) - 1
            for i in range(0, len(ids) - 1, ctx):
                windows.append(ids[i:i + ctx + 1])
        windows.sort(key=len)
        nats = 0.0
        for i in range(0, len(windows), 16):
            w = windows[i:i + 16]
            n = max(map(len, w))
            x = torch.full((len(w), n), -100)
            for j, ids in enumerate(w):
                x[j, :len(ids)] = torch.tensor(ids)
            lg = model.logits(x[:, :-1].clamp(min=0))
            nats += F.cross_entropy(lg.flatten(0, 1), x[:, 1:].flatten(), reduction="sum", ignore_index=-100).item()
        result[s] = dict(documents=len(docs[:a.documents]), chars=chars, tokens=tokens,
                         nats_per_char=nats / chars, bits_per_char=nats / chars / math.log(2), nats_per_token=nats / tokens)
        print(f"{s:25} {len(docs[:a.documents]):5} documents {chars:7} characters "
              f"{nats/chars:.4f} nats/char {nats/chars/math.log(2):.4f} bits/char  {nats/tokens:.4f} nats/token", flush=True)
    (Path(a.work) / "eval.json").write_text(json.dumps(result, indent=1))


def load_for_sampling(work):
    from tokenizers import Tokenizer
    model, _ = load_model(work)
    hf = as_transformers({n: p.detach() for n, p in model.named_parameters()}, hf_config(SHAPE))
    return hf, Tokenizer.from_file(str(Path(work) / "tokenizer.json"))


@torch.no_grad()
def generate(hf, tok, prompts, a, max_tokens):
    """One continuation of every prompt, as (text, ended by `<|endoftext|>`). Prompts with equally
    many tokens go through together, so that nothing has to be padded."""
    torch.manual_seed(a.seed)
    choice = dict(do_sample=True, temperature=a.temperature, top_p=a.top_p, top_k=a.top_k)
    if a.temperature == 0:
        choice = dict(do_sample=False)
    rows = [tok.encode(p, add_special_tokens=False).ids for p in prompts]
    out = [None] * len(rows)
    groups = collections.defaultdict(list)
    for i, r in enumerate(rows):
        groups[len(r)].append(i)
    for n, members in groups.items():
        for k in range(0, len(members), 64):
            some = members[k:k + 64]
            ids = torch.tensor([rows[i] for i in some])
            got = hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens,
                              eos_token_id=EOT_ID, pad_token_id=EOT_ID, **choice)
            for i, r in zip(some, got[:, n:].tolist()):
                ended = EOT_ID in r
                text = tok.decode(r[:r.index(EOT_ID)] if ended else r, skip_special_tokens=False)
                out[i] = (text, ended)
    return out


def stage_sample(a):
    hf, tok = load_for_sampling(a.work)
    prompt = a.prompt.replace("\\n", "\n")
    for text, ended in generate(hf, tok, [prompt] * a.n, a, a.max_tokens):
        print(prompt + text + ("" if ended else " …"))
        print("-" * 20)


def scans(poem):
    """A poem scans if all its lines (between punctuation) have the same length, 5 or 7, their number
    is even and at least 4, no character is broken, and `。` (or ？ ！) closes every second line."""
    n = line_lengths(poem)
    ends = re.findall(r"[^，。！？；：、\n]+([，。！？；：、]?)", poem)
    return (len(n) >= 4 and len(n) % 2 == 0 and n[0] in (5, 7) and len(set(n)) == 1 and "\ufffd" not in poem
            and all(e in "。？！；" and e for e in ends[1::2]) and all(e for e in ends))


def stage_scan(a):
    """Samples poems from first lines (held-out ones) and from titles, and counts."""
    hf, tok = load_for_sampling(a.work)
    verse = [d for d in load_docs(Path(a.work) / "heldout.jsonl") if d["source"] == "verse-regular"]
    np.random.default_rng(3).shuffle(verse)
    sets = {
        "five-character first line": [d["body"][:6] for d in verse if line_lengths(d["body"])[0] == 5 and d["body"][5] == "，"],
        "seven-character first line": [d["body"][:8] for d in verse if line_lengths(d["body"])[0] == 7 and d["body"][7] == "，"],
        "title only": [f"《{d['title']}》\n" for d in verse if d["title"]],
    }
    result = {}
    for name, prompts in sets.items():
        poems = lines = good_poems = good_lines = complete = 0
        prompts = [p for p in prompts[:a.n] for _ in range(4)]
        for p, (text, ended) in zip(prompts, generate(hf, tok, prompts, a, 200)):
            poem = text if p.startswith("《") else p + text
            n = line_lengths(poem) or [0]
            poems += 1
            complete += ended
            good_poems += ended and scans(poem)
            lines += len(n)
            good_lines += sum(x == n[0] for x in n) if n[0] in (5, 7) else 0
        result[name] = dict(poems=poems, complete=complete / poems, poems_that_scan=good_poems / poems, lines_that_scan=good_lines / lines)
        print(f"{name:27} {poems} poems; finished {complete/poems:.1%}; scan {good_poems/poems:.1%}; "
              f"lines of the first one's length {good_lines/lines:.1%}", flush=True)
    (Path(a.work) / "scan.json").write_text(json.dumps(result, indent=1))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("stage", choices=["prepare", "tokenizer", "train", "export", "eval", "sample", "scan", "texts"])
    p.add_argument("--work", required=True, help="scratch folder")
    p.add_argument("--corpus", help="prepare: folder of <source>.txt.xz")
    p.add_argument("--minutes", type=float, default=80, help="train: budget of training time, pauses not counted")
    p.add_argument("--deadline", type=float, default=0, help="train: and end by this Unix time")
    p.add_argument("--batch", type=int, default=8192, help="train: tokens a step")
    p.add_argument("--lr", type=float, default=0.02, help="train: Muon's learning rate (layer matrices)")
    p.add_argument("--adam-lr", type=float, default=0.003, help="train: AdamW's (embedding, norms, biases)")
    p.add_argument("--compile", action="store_true", help="train: torch.compile")
    p.add_argument("--bench", type=int, default=0, help="train: this many steps, nothing is saved")
    p.add_argument("--export", help="train: export here every ten minutes and at the end")
    p.add_argument("--out", help="export: folder")
    p.add_argument("--prompt", default="床前明月光，")
    p.add_argument("--n", type=int, default=5, help="sample: how many; scan: prompts of a kind (4 poems each)")
    p.add_argument("--max-tokens", type=int, default=128)
    p.add_argument("--temperature", type=float, default=0.8)
    p.add_argument("--top-p", type=float, default=0.9)
    p.add_argument("--top-k", type=int, default=50)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--documents", type=int, default=10**9, help="eval: most documents of each source")
    a = p.parse_args()
    globals()["stage_" + a.stage](a)


if __name__ == "__main__":
    main()
