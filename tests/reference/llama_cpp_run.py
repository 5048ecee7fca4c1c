"""Runs llama.cpp through llama-cpp-python's low-level calls: token ids, and logits at every position."""

import ctypes

import llama_cpp
import numpy as np


@llama_cpp.llama_log_callback
def silent(level, text, user_data):
    """Keeps llama.cpp's loading report out of the output."""


class LlamaCpp:
    """One GGUF file. Flash attention is off; `kv_f32` chooses a float32 cache over the default float16."""

    def __init__(self, path, *, vocab_only=False, n_ctx=512, kv_f32=False, threads=1):
        llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.vocab_only = vocab_only
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        assert self.model, f"llama.cpp does not load {path}"
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.n_ctx = n_ctx
        if vocab_only:
            return
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        kv_type = llama_cpp.GGML_TYPE_F32 if kv_f32 else llama_cpp.GGML_TYPE_F16
        params.type_k = params.type_v = kv_type
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        assert self.context, "llama.cpp makes no context"

    def encode(self, text, special=False):
        """Token ids without begin or end tokens; `special`: control tokens are recognised."""
        data = text.encode()
        room = len(data) + 8
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, room, False, special)
        assert count >= 0, (text, count)
        return list(ids[:count])

    def logits(self, ids):
        """(n, n_vocab) f32: the logits at every position, computed at once from an empty cache."""
        assert 0 < len(ids) <= self.n_ctx
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token_id in enumerate(ids):
                batch.token[i] = int(token_id)
                batch.pos[i] = i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = 1
            assert llama_cpp.llama_decode(self.context, batch) == 0
            rows = llama_cpp.llama_get_logits(self.context)
            return np.ctypeslib.as_array(rows, shape=(len(ids), self.n_vocab)).copy()
        finally:
            llama_cpp.llama_batch_free(batch)


def log_softmax(logits):
    """Rows of log-probabilities in float64."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))
