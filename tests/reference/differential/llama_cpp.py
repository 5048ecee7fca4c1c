"""The tokenizer of llama.cpp, from the library in the wheel of xllamacpp."""

import ctypes

import xllamacpp


class _Params(ctypes.Structure):
    # At least as large as llama_model_params. Only the defaults are used.
    _fields_ = (("words", ctypes.c_uint64 * 48),)


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


@_LOG
def _silent(level, text, user_data):
    pass


_lib = ctypes.CDLL(xllamacpp.xllamacpp.__file__)


def _declare(name, result, *arguments):
    function = getattr(_lib, name)
    function.restype, function.argtypes = result, arguments
    return function


_pointer, _int, _bool, _bytes = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_char_p
_defaults = _declare("llama_model_default_params", _Params)
_load = _declare("llama_model_load_from_file", _pointer, _bytes, _Params)
_free = _declare("llama_model_free", None, _pointer)
_vocab = _declare("llama_model_get_vocab", _pointer, _pointer)
_tokenize = _declare("llama_tokenize", _int, _pointer, _bytes, _int, _pointer, _int, _bool, _bool)
_piece = _declare("llama_token_to_piece", _int, _pointer, _int, _bytes, _int, _int, _bool)
_n_tokens = _declare("llama_vocab_n_tokens", _int, _pointer)
_text = _declare("llama_vocab_get_text", _bytes, _pointer, _int)
_attributes = _declare("llama_vocab_get_attr", _int, _pointer, _int)
_is_eog = _declare("llama_vocab_is_eog", _bool, _pointer, _int)
_is_control = _declare("llama_vocab_is_control", _bool, _pointer, _int)
_declare("llama_log_set", None, _LOG, _pointer)(_silent, None)
_declare("llama_backend_init", None)()


class Vocabulary:
    """The vocabulary of a GGUF file, which must also contain a model."""

    def __init__(self, path):
        self.model = _load(str(path).encode(), _defaults())
        if not self.model:
            raise ValueError(f"llama.cpp does not load {path}")
        self.vocab = _vocab(self.model)

    def close(self):
        _free(self.model)

    def __len__(self):
        return _n_tokens(self.vocab)

    def encode(self, text, *, special, add=False):
        data = text.encode()
        room = len(data) + 16
        ids = (ctypes.c_int32 * room)()
        count = _tokenize(self.vocab, data, len(data), ids, room, add, special)
        assert count >= 0, (text, count)
        return list(ids[:count])

    def piece(self, token):
        """The bytes of a token; empty for a control token."""
        room = 4096
        buffer = ctypes.create_string_buffer(room)
        count = _piece(self.vocab, token, buffer, room, 0, False)
        assert count >= 0, (token, count)
        return buffer.raw[:count]

    def ends(self):
        """The tokens that end a generation."""
        return [i for i in range(len(self)) if _is_eog(self.vocab, i)]

    def controls(self):
        """The control tokens and the token for unknown text."""
        return [i for i in range(len(self)) if _is_control(self.vocab, i) or _attributes(self.vocab, i) & 1]

    def special(self):
        """The texts of control and user-defined tokens."""
        return [_text(self.vocab, i).decode() for i in range(len(self)) if _attributes(self.vocab, i) & (8 | 16)]
