"""Reads the files that molora wrote with transformers, PEFT and llama.cpp, and compares what they compute.

Called by `cargo xtask parity` with the folder of the cases.
"""

import json
import os
import sys
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
warnings.filterwarnings("ignore")

import llama_cpp
import peft
import torch
import transformers
from peft.tuners.lora.arrow import create_arrow_model
from safetensors.torch import load_file

transformers.utils.logging.disable_progress_bar()

TOLERANCE = 1e-4

CLASSES = {
    "causal": transformers.AutoModelForCausalLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
    "encoder": transformers.AutoModel,
}


def output(model, case, **more):
    """Scores, or an encoder's hidden states."""
    inputs = {"input_ids": torch.tensor(case["input_ids"])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if case["kind"] == "seq2seq":
        inputs["decoder_input_ids"] = torch.tensor(case["decoder_input_ids"])
    with torch.no_grad():
        found = model.eval()(**inputs, **more)
    return found.last_hidden_state if case["kind"] == "encoder" else found.logits


def read(folder, case):
    return CLASSES[case["kind"]].from_pretrained(folder, dtype=torch.float32)


def difference(found, expected):
    """The largest difference by the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def lora(folder, case):
    """A LoRA beside the weights, and the same merged by molora into a whole model."""
    adapted = peft.PeftModel.from_pretrained(read(folder / "base", case), folder / "adapter")
    yield "adapter", output(adapted, case)
    yield "merged", output(read(folder / "merged", case), case)


def poly(folder, case):
    """Every task of a PolyTropon adapter."""
    adapted = peft.PeftModel.from_pretrained(read(folder / "base", case), folder / "adapter")
    rows = len(case["input_ids"])
    for task in range(adapted.peft_config["default"].n_tasks):
        yield f"task {task}", output(adapted, case, task_ids=torch.tensor([task] * rows))


def xlora(folder, case):
    """LoRAs and a classifier; PEFT refuses a base model with a cache."""
    base = read(folder / "base", case)
    base.config.use_cache = False
    yield "logits", output(peft.PeftModel.from_pretrained(base, folder / "adapter"), case)


def lily(folder, case):
    """Experts that layers share; PEFT mixes them for the whole batch."""
    adapted = peft.PeftModel.from_pretrained(read(folder / "base", case), folder / "adapter")
    yield "logits", output(adapted, case)


def arrow(folder, case):
    """LoRAs in folders, routed with the numbers of the case."""
    experts = [str(folder / "adapter" / name) for name in case["experts"]]
    config = peft.ArrowConfig(**case["arrow"], rng_seed=0)
    adapted = create_arrow_model(read(folder / "base", case), experts, config)
    yield "logits", output(adapted, case)


def merge(folder, case):
    """What molora made of several LoRAs, and what PEFT makes of the same ones."""
    adapted = peft.PeftModel.from_pretrained(read(folder / "base", case), folder / "adapter")
    yield "adapter", output(adapted, case)
    names, numbers = case["experts"], dict(case["merge"])
    adapted = peft.PeftModel.from_pretrained(
        read(folder / "base", case), folder / names[0], adapter_name=names[0]
    )
    for name in names[1:]:
        adapted.load_adapter(folder / name, adapter_name=name)
    adapted.add_weighted_adapter(names, numbers.pop("weights"), "both", **numbers)
    adapted.set_adapter("both")
    yield "merged", output(adapted, case)


def gguf(folder, case):
    """A model in a GGUF file, alone and with a LoRA beside it; tokens of texts, which have to be the same."""
    adapter = folder / "adapter.gguf"
    for name, lora in [("model", None), ("adapter", str(adapter))][: 1 + adapter.exists()]:
        model = llama_cpp.Llama(
            str(folder / "model.gguf"),
            lora_path=lora,
            n_ctx=64,
            logits_all=True,
            flash_attn=False,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=False,
        )
        for text, expected in case["texts"]:
            found = model.tokenize(text.encode(), add_bos=False, special=True)
            if found != expected:
                sys.exit(f"{folder.name}: tokens of {text!r}: {found}, expected {expected}")
        rows = []
        for ids in case["input_ids"]:
            model.reset()
            model.eval(ids)
            rows.append(torch.tensor(model.scores[: len(ids)]))
        yield name, torch.stack(rows)


METHODS = {"lora": lora, "poly": poly, "xlora": xlora, "lily": lily, "arrow": arrow, "merge": merge, "gguf": gguf}


def check(folder):
    case = json.loads((folder / "case.json").read_text())
    expected = load_file(folder / "expected.safetensors")
    bad = False
    for name, found in METHODS[case.get("method", "lora")](folder, case):
        error = difference(found, expected.pop(name))
        bad |= not error <= TOLERANCE
        print(f"{folder.name:28} {name:8} {error:.1e}{'' if error <= TOLERANCE else '  DIFFERS'}")
    if expected:
        sys.exit(f"{folder.name}: nothing was compared with {', '.join(expected)}")
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
