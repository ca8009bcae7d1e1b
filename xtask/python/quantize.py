"""Writes a model file of llama.cpp in another of its formats: SOURCE FORMAT TARGET."""

import sys

import llama_cpp

FORMATS = {
    "f16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}


def main():
    source, name, target = sys.argv[1:]
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = FORMATS[name]
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), options) != 0:
        raise SystemExit(f"llama.cpp cannot write {target}")


if __name__ == "__main__":
    main()
