"""The perplexity of a text under a file of llama.cpp: FILE TOKENS.

As `examples/perplexity.rs` of molora-models: a list of token numbers is read in windows of 512, of which every token but
the first is scored.
"""

import json
import sys

import llama
import llama_cpp
import numpy

WINDOW = 512


def main():
    file, tokens = sys.argv[1:]
    with open(tokens) as opened:
        tokens = json.load(opened)
    model = llama.Model(file, 1, WINDOW)
    total, count = 0.0, 0
    for start in range(0, len(tokens) - WINDOW + 1, WINDOW):
        window = tokens[start : start + WINDOW]
        model.clear()
        model.read(window)
        for index, token in enumerate(window[1:]):
            scores = model.scores(index).astype(numpy.float64)
            largest = scores.max()
            total += largest + numpy.log(numpy.exp(scores - largest).sum()) - scores[token]
            count += 1
    print(f"{file}: {numpy.exp(total / count):.4f} over {count} tokens")


if __name__ == "__main__":
    main()
