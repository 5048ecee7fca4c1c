"""CTranslate2's generator, with int8 weights and int8 activations.

    python3 peer_ctranslate2.py FOLDER --threads 2 --prefill 512 --decode 1,8 --context 128

A prompt's time is that of generate_batch for one token, with the prompt computed at once (include_prompt_in_result
off): forward_batch would also compute the logits of every position. Steps are timed by the callback that
generate_batch makes for each token, from the second token on. The end token is held off by min_length. All sequences
form one batch; greedy search; no scores.

What it does its products with is a matter of environment variables, which `run` sets: see there.
"""

import os
import random
import time

import ctranslate2
import measure


class CTranslate2:
    @classmethod
    def load(cls, args, need):
        return cls(args)

    def __init__(self, args):
        self.generator = ctranslate2.Generator(
            args.model, device="cpu", compute_type="int8", inter_threads=1, intra_threads=args.threads
        )
        with open(os.path.join(args.model, "vocabulary.json")) as vocabulary:
            # Tokens are called t0, t1, ..., each in two quotation marks.
            self.vocab = vocabulary.read().count('"') // 2
        set_ = [f"{name}={os.environ[name]}" for name in sorted(os.environ) if name.startswith("CT2_")]
        self.settings = ", ".join(set_) or "default"

    def prompt(self, n):
        return [f"t{random.randrange(3, self.vocab)}" for _ in range(n)]

    def generate(self, prompts, tokens, callback=None):
        start = time.perf_counter()
        results = self.generator.generate_batch(
            prompts,
            max_length=tokens,
            min_length=tokens,
            sampling_topk=1,
            beam_size=1,
            include_prompt_in_result=False,
            callback=callback,
        )
        seconds = time.perf_counter() - start
        got = {len(result.sequences_ids[0]) for result in results}
        if got != {tokens}:
            raise SystemExit(f"expected {tokens} tokens, got {got}")
        return seconds

    def prefill(self, n):
        return self.generate([self.prompt(n)], 1)

    def decode(self, batch, context, tokens):
        last = {}  # for each step, the time when its last sequence had its token

        def came(result):
            last[result.step] = time.perf_counter()
            return False

        self.generate([self.prompt(context) for _ in range(batch)], tokens + 1, came)
        times = [last[step] for step in sorted(last)]
        return [after - before for before, after in zip(times, times[1:])]


def main():
    measure.run(CTranslate2, measure.parser(__doc__).parse_args())


if __name__ == "__main__":
    main()
