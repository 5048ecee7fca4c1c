"""llama.cpp, through the C functions that llama-cpp-python exposes, so that a step is only one call from Python.

    python3 peer_llama_cpp.py MODEL.gguf --threads 2 --prefill 512 --decode 1,8 --context 128 [--flash on]

Prompts are computed 512 tokens at a time, the library's own default for a physical batch (n_ubatch), and only the last
token's logits are asked for. Sequences have a cache of their own each (kv_unified off, the default). For steps of
several sequences one prompt is computed and its cache copied to the others, which saves time and changes nothing: each
reads its own copy. Tokens are drawn at random: nothing is sampled, and nothing sorted.
"""

import ctypes
import random
import time

import llama_cpp.llama_cpp as c
import measure

CHUNK = 512
FLASH = {
    "auto": c.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": c.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": c.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


@c.llama_log_callback
def quiet(level, text, data):
    del level, text, data


class LlamaCpp:
    @classmethod
    def load(cls, args, need):
        return cls(args, *need)

    def __init__(self, args, sequences, length):
        c.llama_log_set(quiet, ctypes.c_void_p(0))
        c.llama_backend_init()
        self.model = c.llama_model_load_from_file(args.model.encode(), c.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp could not load {args.model}")
        self.vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        params = c.llama_context_default_params()
        params.n_ctx = sequences * -(-length // 256) * 256
        params.n_batch = params.n_ubatch = CHUNK
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = args.threads
        params.flash_attn_type = FLASH[args.flash]
        self.context = c.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit("llama.cpp could not make a context")
        self.memory = c.llama_get_memory(self.context)
        self.batch = c.llama_batch_init(max(CHUNK, sequences), 0, 1)
        self.settings = f"flash attention {args.flash}"

    def compute(self, places):
        """One step with random tokens; rows are (sequence, position, whether logits are wanted)."""
        batch = self.batch
        for i, (sequence, position, logits) in enumerate(places):
            batch.token[i] = random.randrange(self.vocab)
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = logits
        batch.n_tokens = len(places)
        start = time.perf_counter()
        code = c.llama_decode(self.context, batch)
        c.llama_synchronize(self.context)
        seconds = time.perf_counter() - start
        if code != 0:
            raise SystemExit(f"llama_decode: {code}")
        return seconds

    def prefill(self, n):
        c.llama_memory_clear(self.memory, True)
        places = [(0, position, position == n - 1) for position in range(n)]
        return sum(self.compute(places[at : at + CHUNK]) for at in range(0, n, CHUNK))

    def decode(self, batch, context, tokens):
        self.prefill(context)
        for sequence in range(1, batch):
            c.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)
        steps = [
            self.compute([(sequence, context + step, True) for sequence in range(batch)])
            for step in range(tokens + 1)
        ]
        return steps[1:]  # the first one also copies the cache


def main():
    parser = measure.parser(__doc__)
    parser.add_argument("--flash", choices=FLASH, default="auto")
    measure.run(LlamaCpp, parser.parse_args())


if __name__ == "__main__":
    main()
