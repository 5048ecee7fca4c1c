"""onnxruntime-genai on its CPU provider, with a model that its own builder wrote (int4).

    python3 peer_onnxruntime.py FOLDER --threads 2 --prefill 512 --decode 1,8 --context 128

A prompt's time is that of `append_tokens`, which computes the logits of its last token. A step is
`generate_next_token`, which chooses each sequence's token and computes the next logits. Prompts are random tokens, all
sequences of a batch have the same length, and the end token is held off by min_length. Greedy search.
"""

import json
import time

import measure
import numpy
import onnxruntime_genai as og


class OnnxRuntime:
    @classmethod
    def load(cls, args, need):
        return cls(args)

    def __init__(self, args):
        config = og.Config(args.model)
        session = {"intra_op_num_threads": args.threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = og.Model(config)
        self.random = numpy.random.default_rng(1)
        self.settings = "int4, accuracy level 4"

    def begin(self, batch, context, tokens):
        """A generator that has computed random prompts, and the seconds that this took."""
        params = og.GeneratorParams(self.model)
        length = context + tokens
        params.set_search_options(batch_size=batch, max_length=length, min_length=length, do_sample=False)
        generator = og.Generator(self.model, params)
        prompts = self.random.integers(1_000, measure.VOCABULARY, (batch, context), dtype=numpy.int32)
        start = time.perf_counter()
        generator.append_tokens(prompts)
        return generator, time.perf_counter() - start

    def prefill(self, n):
        return self.begin(1, n, 1)[1]

    def decode(self, batch, context, tokens):
        generator, _ = self.begin(batch, context, tokens + 2)
        generator.generate_next_token()
        seconds = []
        for _ in range(tokens):
            start = time.perf_counter()
            generator.generate_next_token()
            seconds.append(time.perf_counter() - start)
        return seconds


def main():
    measure.run(OnnxRuntime, measure.parser(__doc__).parse_args())


if __name__ == "__main__":
    main()
