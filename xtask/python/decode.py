"""Greedy decoding with a cache by transformers, without a stop token.

Prints one line of JSON about the tokens behind the first, which comes with the prompt.
"""

import argparse
import os
import time

import clock  # before torch, which reads the number of threads from the environment

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from transformers import AutoModelForCausalLM

PROMPT, NEW, SAMPLES = 32, 64, 3


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--seconds", type=float, help="not read: three samples are taken")
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(clock.THREADS)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval()
    ids = torch.randint(0, model.config.vocab_size, (options.batch, PROMPT))

    def decode(new):
        out = model(ids, use_cache=True)
        start = time.perf_counter()
        for _ in range(new):
            token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
            out = model(token, past_key_values=cache, use_cache=True)
        return time.perf_counter() - start

    with torch.inference_mode():
        decode(8)
        samples = [decode(NEW) for _ in range(SAMPLES)]
    clock.report(samples, options.batch * NEW, options.dtype)


if __name__ == "__main__":
    main()
