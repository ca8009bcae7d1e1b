"""Reads the files that molora wrote with transformers and PEFT, and compares what they compute.

Called by `cargo xtask parity` with the folder of the cases.
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import peft
import torch
import transformers
from safetensors.torch import load_file

TOLERANCE = 1e-4

CLASSES = {
    "causal": transformers.AutoModelForCausalLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
    "encoder": transformers.AutoModel,
}


def output(model, case):
    """Scores, or an encoder's hidden states."""
    inputs = {"input_ids": torch.tensor(case["input_ids"])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if case["kind"] == "seq2seq":
        inputs["decoder_input_ids"] = torch.tensor(case["decoder_input_ids"])
    with torch.no_grad():
        found = model.eval()(**inputs)
    return found.last_hidden_state if case["kind"] == "encoder" else found.logits


def read(folder, case):
    return CLASSES[case["kind"]].from_pretrained(folder, dtype=torch.float32)


def difference(found, expected):
    """The largest difference by the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def check(folder):
    case = json.loads((folder / "case.json").read_text())
    expected = load_file(folder / "expected.safetensors")
    adapted = peft.PeftModel.from_pretrained(read(folder / "base", case), folder / "adapter")
    found = {"adapter": output(adapted, case), "merged": output(read(folder / "merged", case), case)}
    bad = False
    for name in ["adapter", "merged"]:
        error = difference(found[name], expected[name])
        bad |= not error <= TOLERANCE
        print(f"{folder.name:28} {name:8} {error:.1e}{'' if error <= TOLERANCE else '  DIFFERS'}")
    return bad


def main():
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    folders = sorted(path.parent for path in Path(sys.argv[1]).glob("*/case.json"))
    if not folders:
        sys.exit("no case was written")
    if any([check(folder) for folder in folders]):
        sys.exit(f"above the tolerance of {TOLERANCE:.0e} of the largest value")


main()
