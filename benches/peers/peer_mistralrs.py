"""mistral.rs, on the CPU. Its Python package takes texts only, so prompts are of about as many tokens as asked.

    python3 peer_mistralrs.py MODEL.gguf --threads 2 --prefill 512 --decode 1 --context 128

The rates are from the times of its own records of a request: of its prompt, and of what follows. A prompt is random words,
so that no two begin alike; the tokens that it became are what counts. Tokens are chosen greedily, which is in its time. The
Python package answers one request at a time: there is no rate of several sequences.
"""

import os
import random
from pathlib import Path

import measure


class MistralRs:
    @classmethod
    def load(cls, args, need):
        return cls(args)

    def __init__(self, args):
        import mistralrs

        self.mistralrs = mistralrs
        file = Path(args.model)
        which = mistralrs.Which.GGUF(quantized_model_id=str(file.parent), quantized_filename=file.name)
        self.runner = mistralrs.Runner(which, max_seqs=1, prefix_cache_n=0)
        self.random = random.Random(1)
        self.settings = "default"

    def usage(self, context, tokens):
        words = "sun tree river stone cloud bird road house sea hill light wind field rain snow".split()
        prompt = " ".join(self.random.choice(words) for _ in range(context))
        request = self.mistralrs.CompletionRequest(prompt=prompt, model="default", max_tokens=tokens, temperature=0)
        return self.runner.send_completion_request(request).usage

    def prefill(self, n):
        usage = self.usage(n, 1)
        return n * usage.total_prompt_time_sec / usage.prompt_tokens

    def decode(self, batch, context, tokens):
        if batch != 1:
            raise SystemExit("mistralrs is measured with one sequence only")
        usage = self.usage(context, tokens + 1)
        # The first token is the prompt's.
        return [usage.total_completion_time_sec / max(usage.completion_tokens - 1, 1)]


def main():
    args = measure.parser(__doc__).parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    measure.run(MistralRs, args)


if __name__ == "__main__":
    main()
