"""``welm.hf``: the arguments of transformers, with the same meaning, and the arguments that are refused."""

from __future__ import annotations

import doctest
import json
import math
import os
import shutil
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import welm
import welm.hf

from conftest import FIXTURES, GREEDY, PROMPT, read_safetensors


@pytest.fixture(scope="module")
def causal() -> welm.hf.CausalLM:
    return welm.hf.from_pretrained(welm.NANO)


@pytest.fixture(scope="module")
def plain(causal: welm.hf.CausalLM) -> welm.hf.CausalLM:
    """The same model without a generation config of its own."""
    return welm.hf.CausalLM(causal.model)


@pytest.fixture(scope="module")
def prompt(causal: welm.hf.CausalLM) -> list[int]:
    return causal.model.tokenize(PROMPT)


class Tensor:
    """The methods of a torch tensor that are used, because torch is not imported."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def tolist(self) -> list[Any]:
        return self.rows

    def new_tensor(self, rows: list[Any]) -> Tensor:
        return Tensor(rows)


class Scalar:
    """Like a tensor without dimensions: it has the method for a length, but calling it is an error."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __len__(self) -> int:
        raise TypeError("len() of a 0-d tensor")

    def tolist(self) -> int:
        return self.value


class Hostile:
    """Raises an exception in every method."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name) if name in ("tolist", "shape", "keys", "dtype") else AttributeError(name)

    def __len__(self) -> int:
        raise RuntimeError("len")

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    def __index__(self) -> int:
        raise RuntimeError("index")

    def __float__(self) -> float:
        raise RuntimeError("float")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    __hash__ = None  # type: ignore[assignment]


class Wraps(Tensor):
    """Like torch's tensors of eight bits: larger numbers wrap around."""

    dtype = "torch.uint8"

    def new_tensor(self, rows: list[Any]) -> Tensor:
        return Wraps([token % 256 for token in rows])


def test_greedy_tokens_are_those_of_transformers() -> None:
    for name in ("neox_sequential", "llama_gqa", "welm"):
        want = read_safetensors(FIXTURES / name / "expected.safetensors")
        model = welm.hf.from_pretrained(
            FIXTURES / name, torch_dtype="float32", device_map="cpu", cache_dtype="f32"
        )
        prompt, greedy = want["prompt"].reshape(1, -1), want["greedy"].flatten().tolist()
        out = model.generate(prompt, max_new_tokens=64, do_sample=False)[0].tolist()
        ends = [at for at, token in enumerate(greedy) if token in model.config.eos_token_ids]
        greedy = greedy[: ends[0] + 1] if ends else greedy
        assert out == [*prompt[0].tolist(), *greedy]


def test_greedy_tokens_of_the_small_model_up_to_its_end_token(
    plain: welm.hf.CausalLM, prompt: list[int]
) -> None:
    end = GREEDY.index(1)
    assert plain.config.eos_token_ids == (1,)
    assert plain.generate([prompt], max_new_tokens=100) == [[*prompt, *GREEDY[: end + 1]]]


def test_other_end_tokens_take_the_place_of_the_models_own(
    plain: welm.hf.CausalLM, prompt: list[int]
) -> None:
    fourth = GREEDY[3]
    assert fourth not in GREEDY[:3]
    end = [*prompt, *GREEDY[:4]]
    options: dict[str, Any] = {"max_new_tokens": 30}
    assert plain.generate(prompt, eos_token_id=fourth, **options) == end
    assert plain.generate(prompt, eos_token_id=np.array([7039, fourth]), **options) == end
    # With several end tokens, the one that came is in the result; the first one is the padding.
    rows = plain.generate([prompt, [*prompt, *GREEDY[:1]]], eos_token_id=[1, fourth], **options)
    assert rows == [end, end]
    assert plain.generate([prompt, [9]], eos_token_id=[fourth], max_new_tokens=4)[0][-1] == fourth
    short, long = plain.generate([[*prompt, *GREEDY[:3]], [9, 9]], eos_token_id=[fourth, 1], **options)
    assert short[: len(end)] == end
    assert set(short[len(end) :]) <= {fourth}
    assert len(short) == len(long)
    # The model's own end token does not end it any more; one outside the vocabulary never comes.
    beyond = plain.generate(prompt, eos_token_id=-1, max_new_tokens=len(GREEDY))
    assert beyond == [*prompt, *GREEDY]
    assert 1 in GREEDY


def test_the_default_is_twenty_new_tokens_and_greedy(plain: welm.hf.CausalLM, prompt: list[int]) -> None:
    want = plain.generate(prompt, max_new_tokens=20)
    assert plain.generate(prompt) == want
    long = [*prompt, *[9] * 60]
    assert plain.generate(long) == plain.generate(long, max_new_tokens=20)
    context = plain.model.memory.context_tokens
    assert len(plain.generate([9] * (context - 3), eos_token_id=-1)) == context  # what there is room for
    assert plain.generate(prompt, max_length=7) == [*prompt, *GREEDY[: 7 - len(prompt)]]
    assert len(plain.generate(prompt, max_length=7, max_new_tokens=9)) == len(prompt) + 9
    with pytest.raises(
        welm.InvalidOption, match="`max_length`: expected more than the prompt's 5 tokens, got 5"
    ):
        plain.generate(prompt, max_length=5)


def test_the_same_kind_comes_back(plain: welm.hf.CausalLM, prompt: list[int]) -> None:
    options: dict[str, Any] = {"max_new_tokens": 3}
    want = [*prompt, *GREEDY[:3]]
    assert plain.generate(prompt, **options) == want
    assert plain.generate(tuple(prompt), **options) == want
    assert plain.generate([prompt, prompt], **options) == [want, want]
    for dtype in (np.int64, np.uint32):
        got = plain.generate(np.array([prompt], dtype), **options)
        assert (got.dtype, got.tolist()) == (dtype, [want])
    assert plain.generate(np.array(prompt), **options).shape == (len(want),)
    tensor = plain.generate(Tensor([prompt]), attention_mask=Tensor([[1] * len(prompt)]), **options)
    assert isinstance(tensor, Tensor)
    assert tensor.rows == [want]
    assert plain.generate([], **options) == []
    assert plain.generate(np.array([prompt], object), **options).tolist() == [want]
    assert plain.generate(np.zeros((0, 5), np.int64), **options).shape == (0,)
    assert plain.generate([np.int64(token) for token in prompt], **options) == want
    assert plain.generate([Scalar(token) for token in prompt], **options) == want
    assert plain.generate([np.array(prompt), prompt], **options) == [want, want]
    assert plain.generate(array("q", prompt), **options) == want


def test_padding(plain: welm.hf.CausalLM, prompt: list[int]) -> None:
    short = plain.model.tokenize("春")
    pads = [0] * (len(prompt) - len(short))
    rows = [prompt, [9] * len(pads) + short]
    mask = [[1] * len(prompt), [*pads, *([1] * len(short))]]
    first, second = plain.generate(rows, attention_mask=mask, max_new_tokens=60, pad_token_id=2)
    alone = plain.generate(prompt, max_new_tokens=60), plain.generate(short, max_new_tokens=60)
    width = max(len(alone[0]), len(alone[1]) + len(pads))
    assert (len(first), len(second)) == (width, width)
    assert first == alone[0] + [2] * (width - len(alone[0]))
    behind = [9] * len(pads) + alone[1]
    assert second == behind + [2] * (width - len(behind))
    assert plain.generate(
        [[9, *short]], attention_mask=[[False, *([True] * len(short))]], max_new_tokens=4
    ) == [[9, *plain.generate(short, max_new_tokens=4)]]
    with pytest.raises(welm.InvalidOption, match="got holes"):
        plain.generate([prompt], attention_mask=[[1, 0, 1, 1, 1]])
    with pytest.raises(welm.InvalidOption, match="`attention_mask`: expected rows as long"):
        plain.generate([prompt], attention_mask=[[1]])


def test_sampling_is_the_engine_s(plain: welm.hf.CausalLM, prompt: list[int]) -> None:
    want = plain.model.generate(
        prompt,
        temperature=0.7,
        top_k=20,
        top_p=0.9,
        min_p=0.05,
        repetition_penalty=1.2,
        n=3,
        seed=4,
        max_tokens=12,
    )
    got = plain.generate(
        [prompt],
        max_new_tokens=12,
        do_sample=True,
        temperature=0.7,
        top_k=20,
        top_p=0.9,
        min_p=0.05,
        repetition_penalty=1.2,
        num_return_sequences=3,
        seed=4,
        pad_token_id=2,
    )
    assert len(got) == 3
    for row, choice in zip(got, want.choices, strict=True):
        ids = [token.id for token in choice.tokens]
        assert row[: len(prompt) + len(ids)] == [*prompt, *ids]
    # The defaults are those of transformers, not those of the engine.
    (row,) = plain.generate([prompt], do_sample=True, max_new_tokens=9, seed=5)
    choice = plain.model.generate(prompt, temperature=1.0, top_k=50, top_p=1.0, seed=5, max_tokens=9).choices[
        0
    ]
    assert row[len(prompt) :][: len(choice.tokens)] == [token.id for token in choice.tokens]
    (suppressed,) = plain.generate([prompt], suppress_tokens=[GREEDY[0]], max_new_tokens=1)
    assert suppressed[-1] != GREEDY[0]
    for nothing in (False, -1, [-1, 7040]):
        assert plain.generate(prompt, suppress_tokens=nothing, max_new_tokens=2) == [*prompt, *GREEDY[:2]]
    # With greedy decoding the temperature is ignored, as in transformers.
    assert plain.generate(prompt, temperature=5.0, max_new_tokens=3) == [*prompt, *GREEDY[:3]]


def test_stop_strings_are_part_of_the_row(plain: welm.hf.CausalLM, prompt: list[int]) -> None:
    (row,) = plain.generate([prompt], stop_strings=["，"], max_new_tokens=40, tokenizer=object())
    (comma,) = plain.model.tokenize("，")
    assert row == [*prompt, *GREEDY[: GREEDY.index(comma) + 1]]
    assert plain.generate(prompt, max_time=0.0) == prompt


def test_generation_configs(causal: welm.hf.CausalLM, prompt: list[int], tmp_path: Path) -> None:
    assert causal.generation_config["temperature"] == 0.8
    want = causal.model.generate(
        prompt, temperature=0.8, top_p=0.9, top_k=50, seed=1, max_tokens=128
    ).choices[0]
    (row,) = causal.generate([prompt], seed=1)
    assert row[len(prompt) :][: len(want.tokens)] == [token.id for token in want.tokens]
    assert len(causal.generate(prompt, seed=1, max_new_tokens=2)) == len(prompt) + 2

    class Config:
        def to_diff_dict(self) -> dict[str, Any]:
            return {
                "max_new_tokens": 3,
                "do_sample": False,
                "transformers_version": "5.0",
                "bos_token_id": 1,
                "eos_token_id": [1],
            }

    greedy = [*prompt, *GREEDY[:3]]
    assert causal.generate(prompt, generation_config=Config()) == greedy
    assert causal.generate(prompt, {"max_new_tokens": 9}, max_new_tokens=3, do_sample=False) == greedy
    # What it does not set is as the model's own file has it.
    own = causal.generate(prompt, seed=1, max_new_tokens=9)
    assert causal.generate(prompt, {"max_new_tokens": 9}, seed=1) == own
    for wrong, got in ((5, "5"), ("greedy", '"greedy"'), ([1], r"\[1\]"), (Hostile(), "a value")):
        with pytest.raises(
            welm.InvalidOption, match=f"`generation_config`: expected a mapping .*, got {got}"
        ):
            causal.generate(prompt, wrong)
    with pytest.raises(welm.InvalidOption, match="`num_beams`"):
        causal.generate(prompt, {"num_beams": 4})

    shutil.copytree(welm.NANO, tmp_path / "model")
    own = {"max_new_tokens": 3, "chat_format": "chatml", "transformers_version": "4.1"}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(own))
    assert welm.hf.from_pretrained(tmp_path / "model").generate(prompt) == greedy
    with pytest.raises(TypeError, match="'chat_format'"):
        causal.generate(prompt, own)
    (tmp_path / "model" / "generation_config.json").write_text("[1]")
    for text in (b"[1]", b"{", b"\xff", b"[" * 100_000):
        (tmp_path / "model" / "generation_config.json").write_bytes(text)
        with pytest.raises(welm.InvalidFile, match=r"generation_config\.json: "):
            welm.hf.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 4),
        ("no_repeat_ngram_size", 2),
        ("typical_p", 0.5),
        ("min_new_tokens", 5),
        ("bad_words_ids", [[1]]),
        ("logits_processor", [print]),
        ("stopping_criteria", np.zeros(3)),
        ("streamer", object()),
        ("return_dict_in_generate", True),
        ("output_scores", True),
        ("assistant_model", object()),
        ("use_cache", False),
        ("inputs_embeds", [[0.0]]),
        ("token_type_ids", [[0]]),
        ("num_return_sequences", 2),
        ("min_length", 5),
        ("logits_processor", Hostile()),
        ("num_beams", np.int64(2)),
        ("guidance_scale", 0.0),
        ("bad_words_ids", "x"),
        ("token_healing", True),
    ],
)
def test_what_is_not_offered_is_refused_by_name(
    plain: welm.hf.CausalLM, prompt: list[int], name: str, value: object
) -> None:
    with pytest.raises(welm.InvalidOption, match=f"option `{name}`: ") as raised:
        plain.generate([prompt], **{name: value})
    assert raised.value.option == name
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("text", 'expected rows of token ids, or one row, got "text"'),
        (b"text", "expected rows of token ids, or one row, got b'text' (bytes)"),
        (5, "or one row, got 5"),
        (None, "or one row, got None"),
        (np.int64(5), "or one row, got np.int64(5)"),
        (np.array(5), "or one row, got array(5) (ndarray)"),
        (Scalar(5), "or one row, got "),
        (Hostile(), "expected an array that can be read, got Hostile, which says: tolist"),
        (object(), "or one row, got <object"),
        ({1, 2}, "or one row, got {1, 2} (set)"),
        ((token for token in (1, 2)), "or one row, got <generator"),
        ({"input_ids": [[1]]}, "got a mapping; unpack what a tokenizer gives: generate(**inputs)"),
        ([[[1]]], "expected one or two dimensions of token ids, got three or more"),
        (np.zeros((1, 1, 1), np.int64), "expected one or two dimensions"),
        ([1, [2]], "or one row, got both: [1, [2]]"),
        ([[1], 2], "or one row, got both: [[1], 2]"),
        (["1", "2"], 'expected token ids, got "1"'),
        ([[1.0]], "expected token ids, got 1.0"),
        ([[True]], "expected token ids, got True"),
        ([[None]], "expected token ids, got None"),
        (np.array([[1.5]]), "expected token ids, got 1.5"),
        (np.array([[True]]), "expected token ids, got True"),
        (np.array([["a"]]), 'expected token ids, got "a"'),
        (np.array([[1, None]], object), "expected token ids, got None"),
        (np.array([[1, 2], [3]], object), None),
        (np.ma.masked_array([[1, 2]], [[False, True]]), "expected token ids, got None"),
        (np.array([[1j]]), "expected token ids, got 1j (complex)"),
        (np.array([["2020-01-01"]], "datetime64[D]"), "expected token ids, got datetime.date"),
        (np.array([[(1, 2)]], "i4,i4"), "expected one or two dimensions of token ids"),
        (np.broadcast_to(np.int64(1), (1 << 20, 1 << 20)), "expected at most 67108864 elements, got 1099511627776"),
        ([range(1 << 22)] * 1000, "expected at most 67108864 token ids, got more"),
        (np.array([[1]], np.uint8), "expected elements that hold every id, as those of int64 do, got uint8"),
        (np.array([[1]], np.int8), "got int8"),
        (Wraps([1]), "expected elements that hold every id, as those of int64 do, got torch.uint8"),
        ([[7040]], "expected ids of 0 to 7039, got 7040"),
        ([[-1]], "expected ids of 0 to 7039, got -1"),
        ([[1 << 70]], "expected ids of 0 to 7039, got 1180591620717411303424"),
    ],
)  # fmt: skip
def test_what_are_no_ids(plain: welm.hf.CausalLM, ids: Any, message: str | None) -> None:
    assert plain.config.vocab_size == 7040
    if message is None:
        assert len(plain.generate(ids, max_new_tokens=1)) == 2
        return
    with pytest.raises(welm.InvalidOption) as raised:
        plain.generate(ids, max_new_tokens=1)
    assert raised.value.option == "input_ids"
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("attention_mask", "11111", 'expected rows of 0 or 1, or one row, got "11111"'),
        ("attention_mask", 1, "or one row, got 1"),
        ("attention_mask", [], "expected rows as long as those of input_ids, [5], got []"),
        ("attention_mask", [[1] * 5] * 2, "[5], got [5, 5]"),
        ("attention_mask", np.ones((1, 1, 5, 5)), "expected one or two dimensions of 0 or 1"),
        ("attention_mask", [[0.0, -math.inf, 0, 0, 0]], "expected 0 or 1, got -inf"),
        ("attention_mask", [[2] * 5], "expected 0 or 1, got 2"),
        ("attention_mask", [["1"] * 5], 'expected 0 or 1, got "1"'),
        ("attention_mask", [[None] * 5], "expected 0 or 1, got None"),
        ("attention_mask", Hostile(), "expected an array that can be read"),
        ("max_new_tokens", "5", 'expected a whole number, 0 or more, got "5"'),
        ("max_new_tokens", 1.5, "got 1.5"),
        ("max_new_tokens", -1, "expected 0 or more, got -1"),
        ("max_new_tokens", [5], "got [5]"),
        ("max_new_tokens", Hostile(), "got a value (Hostile)"),
        ("max_length", "long", 'expected a whole number, 0 or more, got "long"'),
        ("num_return_sequences", 0, "expected 1 with do_sample=False, got 0"),
        ("num_return_sequences", "2", "expected a whole number"),
        ("do_sample", "yes", 'expected True or False, got "yes"'),
        ("do_sample", np.array([True, False]), "expected True or False, got array([ True, False]) (ndarray)"),
        ("do_sample", Hostile(), "expected True or False"),
        ("temperature", "hot", 'expected a number, got "hot"'),
        ("temperature", [0.5], "expected a number, got [0.5]"),
        ("top_p", Hostile(), "expected a number, got a value (Hostile)"),
        ("top_k", 1.5, "expected a whole number"),
        ("repetition_penalty", -1, "expected 0.01 to 100, got -1"),
        ("max_time", "soon", 'expected a number, got "soon"'),
        ("max_time", -1, "expected 0 seconds or more, got -1"),
        ("stop_strings", 5, "expected a text or a list of texts, got 5"),
        ("stop_strings", [b"x"], "expected a text or a list of texts, got b'x' (bytes) in it"),
        ("stop_strings", [""], "1 to 256 bytes, got one of 0"),
        ("suppress_tokens", ["a"], 'expected an id, or a list of ids, got "a"'),
        ("suppress_tokens", 1.5, "expected an id, or a list of ids, got 1.5"),
        ("eos_token_id", [[1]], "expected an id, or a list of ids, got [1]"),
        ("eos_token_id", "</s>", 'expected an id, or a list of ids, got "</s>"'),
        ("pad_token_id", "x", 'expected an id, got "x"'),
        ("pad_token_id", [1], "expected an id, got [1]"),
        ("seed", -1, "expected 0 or more, got -1"),
    ],
)
def test_values_of_another_kind(
    plain: welm.hf.CausalLM, prompt: list[int], name: str, value: Any, message: str
) -> None:
    with pytest.raises(welm.InvalidOption) as raised:
        plain.generate([prompt], **{name: value})
    assert raised.value.option == name
    assert str(raised.value).startswith(f"option `{name}`: ")
    assert message in str(raised.value)


def test_names_of_errors_are_transformers_own(plain: welm.hf.CausalLM, prompt: list[int]) -> None:
    for arguments, message in (
        ({"num_return_sequences": 0}, "option `num_return_sequences`: expected 1 to 128, got 0"),
        ({"stop_strings": ["a"] * 300}, "option `stop_strings`: expected at most 256"),
        ({"temperature": 1000}, "option `temperature`: expected 0 to 100, got 1000"),
    ):
        with pytest.raises(welm.InvalidOption) as raised:
            plain.generate(prompt, do_sample=True, **arguments)
        assert message in str(raised.value)


def test_what_an_argument_is_like_does_not_matter(plain: welm.hf.CausalLM, prompt: list[int]) -> None:
    want = [*prompt, *GREEDY[:3]]
    for three in (3, np.int64(3), np.array(3), Scalar(3)):
        if not isinstance(three, Scalar):
            assert plain.generate(prompt, max_new_tokens=three) == want
        assert plain.generate(prompt, max_new_tokens=3, do_sample=np.bool_(False)) == want
    row = plain.generate(
        prompt, do_sample=np.True_, temperature=np.float32(0.5), seed=np.int64(1), max_new_tokens=3
    )
    assert row == plain.generate(prompt, do_sample=True, temperature=0.5, seed=1, max_new_tokens=3)
    mask = np.ones((1, len(prompt)), np.float32)
    assert plain.generate([prompt], attention_mask=mask, max_new_tokens=3) == [want]
    assert plain.generate(prompt, attention_mask=mask, max_new_tokens=3) == want


@pytest.mark.parametrize("nothing", [None, False, [], (), {}, set(), "", np.array([]), np.False_, Tensor([])])
def test_nothing_asks_for_nothing(plain: welm.hf.CausalLM, prompt: list[int], nothing: Any) -> None:
    """Values that ask for nothing are allowed for every argument that is not supported."""
    asked = dict.fromkeys(welm.hf._INSTEAD, nothing)
    del asked["use_cache"]
    assert plain.generate(prompt, max_new_tokens=3, **asked) == [*prompt, *GREEDY[:3]]
    assert welm.hf.from_pretrained(welm.NANO, **dict.fromkeys(welm.hf._LOADING, nothing)).device == "cpu"


def test_defaults_ask_for_nothing(plain: welm.hf.CausalLM, prompt: list[int]) -> None:
    for kind in (lambda value: value, np.asarray):
        asked = {
            name: kind(value) for name, (value, *_) in welm.hf._NEUTRAL.items() if not isinstance(value, str)
        }
        assert plain.generate(prompt, max_new_tokens=3, **asked) == [*prompt, *GREEDY[:3]]
    met = {name: value for name, (value, _) in welm.hf._LOADING.items()}
    assert welm.hf.from_pretrained(welm.NANO, **met).device == "cpu"
    assert plain.generate(prompt, max_new_tokens=3, num_assistant_tokens_schedule="constant") == [
        *prompt,
        *GREEDY[:3],
    ]


def test_what_asks_for_nothing_is_taken(plain: welm.hf.CausalLM, prompt: list[int]) -> None:
    out = plain.generate(
        prompt,
        max_new_tokens=3,
        num_beams=1,
        use_cache=True,
        no_repeat_ngram_size=0,
        output_scores=False,
        streamer=None,
        length_penalty=1.0,
        eos_token_id=1,
        min_p=None,
    )
    assert out == [*prompt, *GREEDY[:3]]


def test_errors(plain: welm.hf.CausalLM, prompt: list[int]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        plain.generate(prompt, temprature=1.0)
    with pytest.raises(welm.InvalidOption, match="`temperature`: expected more than 0"):
        plain.generate(prompt, do_sample=True, temperature=0.0)
    with pytest.raises(welm.TooLong):
        plain.generate(prompt, max_new_tokens=5000)
    with pytest.raises(welm.InvalidOption, match='expected a local folder or GGUF file, got "org/name"'):
        welm.hf.from_pretrained("org/name")
    for name, value in {
        "load_in_8bit": True,
        "trust_remote_code": True,
        "attn_implementation": "sdpa",
    }.items():
        with pytest.raises(welm.InvalidOption, match=f"option `{name}`: not offered; "):
            welm.hf.from_pretrained(welm.NANO, **{name: value})
    met = {
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": False,
        "load_in_8bit": None,
    }
    assert welm.hf.from_pretrained(welm.NANO, device_map={"": "cpu"}, **met).config.family == "welm"
    with pytest.raises(welm.InvalidOption, match="`device_map`: expected one device"):
        welm.hf.from_pretrained(welm.NANO, device_map={"layers.0": 0, "layers.1": 1})
    for option, value in {
        "folder": 0,
        "device_map": True,
        "dtype": np.float32,
        "torch_dtype": 5,
        "trust_remote_code": np.True_,
        "revision": "v2",
    }.items():
        arguments: dict[str, Any] = {"folder": welm.NANO, option: value}
        with pytest.raises(welm.InvalidOption) as raised:
            welm.hf.from_pretrained(**arguments)
        assert raised.value.option == ("dtype" if option == "torch_dtype" else option)
    for folder in (None, 1, b"model", ["model"]):
        with pytest.raises(welm.InvalidOption, match="`folder`: expected a local folder or GGUF file, got "):
            welm.hf.from_pretrained(folder)  # type: ignore[arg-type]
    with pytest.raises(welm.InvalidOption, match="`torch_dtype`: expected the same as dtype, f32, got bf16"):
        welm.hf.from_pretrained(welm.NANO, dtype="f32", torch_dtype="bf16")
    nothing: list[dict[str, Any]] = [
        {"torch_dtype": None},
        {"device_map": {}},
        {"device_map": None, "device": "cpu"},
    ]
    for same in nothing:
        assert welm.hf.from_pretrained(welm.NANO, **same).config.family == "welm"
    with pytest.raises(TypeError, match="unexpected keyword argument 'revizion'"):
        welm.hf.from_pretrained(welm.NANO, revizion="main")


@pytest.mark.parametrize("ids", [range(2**36), [range(2**62)], [[1], range(2**70)]])
def test_more_ids_than_there_can_be(plain: welm.hf.CausalLM, ids: Any) -> None:
    with pytest.raises(welm.InvalidOption, match="option `input_ids`: expected at most 4194304 elements"):
        plain.generate(ids)


def test_example() -> None:
    assert doctest.testmod(welm.hf) == (0, 3)


def test_attributes(causal: welm.hf.CausalLM) -> None:
    assert causal.eval() is causal
    assert (causal.device, causal.config) == ("cpu", causal.model.config)


def test_torch_and_numpy_are_not_imported() -> None:
    program = "import sys, welm.hf; print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, env=os.environ
    ).stdout
    assert out == b"[]\n"
