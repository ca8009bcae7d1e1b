"""Greedy decoding by llama.cpp, without a stop token, from a file that `quantize.py` or molora wrote.

Prints one line of JSON: about the tokens behind the first, which comes with the prompt, or with --prompt alone about
a prompt up to the scores of its next token.
"""

import argparse
import time

import clock
import llama_cpp
import numpy

PROMPT, NEW, SAMPLES = 32, 64, 3


class Model:
    """A model with a context for some sequences at the same time."""

    def __init__(self, path, rows, tokens):
        silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(silent, None)
        self.silent = silent  # which is called as long as the library is there
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), options)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot read {path}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = rows * tokens
        options.n_batch = options.n_ubatch = rows * tokens
        options.n_seq_max = rows
        options.n_threads = options.n_threads_batch = clock.THREADS
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.rows = rows
        self.batch = llama_cpp.llama_batch_init(rows * tokens, 0, 1)
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def bytes(self):
        """Of all weights; a table of embeddings that is the head too is read in every step."""
        return llama_cpp.llama_model_size(self.model)

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def read(self, tokens):
        """Reads a text from its start, so that there are scores behind each of its tokens."""
        self.decode([tokens], 0, lambda index: True)

    def scores(self, index):
        """The scores of the next token behind a token of the last call."""
        scores = llama_cpp.llama_get_logits_ith(self.context, index)
        return numpy.ctypeslib.as_array(scores, (self.vocab_size,))

    def step(self, tokens, position):
        """The likeliest token behind `tokens[row]`, which stand from `position` on, of each row."""
        last = len(tokens[0]) - 1
        self.decode(tokens, position, lambda index: index == last)
        ends = ((row + 1) * len(tokens[0]) - 1 for row in range(len(tokens)))
        return [int(self.scores(end).argmax()) for end in ends]

    def decode(self, tokens, position, is_scored):
        batch, count = self.batch, 0
        for row, of_row in enumerate(tokens):
            for index, token in enumerate(of_row):
                batch.token[count] = token
                batch.pos[count] = position + index
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = row
                batch.logits[count] = is_scored(index)
                count += 1
        batch.n_tokens = count
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama.cpp cannot decode")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, help="time a prompt of so many tokens, and nothing else")
    parser.add_argument("--name", default="gguf", help="of the file's format")
    parser.add_argument("--seconds", type=float, default=3.0, help="for a prompt; of decoding three samples are taken")
    options = parser.parse_args()

    model = Model(options.file, options.batch, (options.prompt or PROMPT) + NEW)
    draw = numpy.random.default_rng(0)
    size = (options.batch, options.prompt or PROMPT)
    prompts = draw.integers(0, model.vocab_size, size).tolist()

    def first():
        model.clear()
        return model.step(prompts, 0)

    def decode(new):
        tokens = first()
        start = time.perf_counter()
        for index in range(new):
            tokens = model.step([[token] for token in tokens], PROMPT + index)
        return time.perf_counter() - start

    if options.prompt:
        samples = clock.measure(first, options.seconds, warm_up=1)
        clock.report(samples, options.batch * options.prompt, options.name)
        return
    decode(8)
    samples = [decode(NEW) for _ in range(SAMPLES)]
    clock.report(samples, options.batch * NEW, options.name, read=NEW * model.bytes())


if __name__ == "__main__":
    main()
