"""OpenVINO GenAI, which reads GGUF files itself, on its CPU plugin.

    python3 peer_openvino.py MODEL.gguf --threads 2 --prefill 512 --decode 1,8 --context 128

The rates are from the times of its own records: until the first token, and between tokens. Prompts are random tokens, all
sequences of a batch have the same length, and end tokens are ignored. Tokens are chosen greedily, which is in its time.
"""

import measure
import numpy
import openvino
import openvino_genai


class OpenVINO:
    @classmethod
    def load(cls, args, need):
        return cls(args)

    def __init__(self, args):
        self.pipeline = openvino_genai.LLMPipeline(args.model, "CPU", INFERENCE_NUM_THREADS=args.threads)
        self.random = numpy.random.default_rng(1)
        self.settings = "default"

    def generate(self, batch, context, tokens):
        ids = openvino.Tensor(self.random.integers(1_000, measure.VOCABULARY, (batch, context)))
        inputs = openvino_genai.TokenizedInputs(ids, openvino.Tensor(numpy.ones((batch, context), dtype=numpy.int64)))
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        config.apply_chat_template = False
        return self.pipeline.generate(inputs, config).perf_metrics

    def prefill(self, n):
        return self.generate(1, n, 1).get_ttft().mean / 1e3

    def decode(self, batch, context, tokens):
        # Its time per token is a step's time divided by the batch: two tokens that come together count as two.
        return [self.generate(batch, context, tokens + 1).get_tpot().mean / 1e3 * batch]


def main():
    measure.run(OpenVINO, measure.parser(__doc__).parse_args())


if __name__ == "__main__":
    main()
