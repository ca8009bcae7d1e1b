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
# With Python of our own, whose order of operations is molora's.
OWN_TOLERANCE = 1e-5

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


def twice(auto, folder):
    """A model with Python of our own, as it was exported, and as it is after `save_pretrained`."""
    model = auto.from_pretrained(folder / "model", trust_remote_code=True, dtype=torch.float32).eval()
    yield model
    model.save_pretrained(folder / "saved")
    yield auto.from_pretrained(folder / "saved", trust_remote_code=True, dtype=torch.float32).eval()


def padded(rows, on_left):
    """Rows as one batch, and its mask."""
    longest = max(map(len, rows))
    pad = lambda row, value: [value] * (longest - len(row))
    join = lambda row, value: pad(row, value) + row if on_left else row + pad(row, value)
    ids, mask = [join(row, 0) for row in rows], [join([1] * len(row), 0) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def own(folder, case):
    """Scores of a run that was exported for transformers, alone, padded and with a cache, and what it writes."""
    rows, first = case["rows"], case["first"]
    vectors = case["vectors"] and torch.tensor(case["vectors"])
    more = {"decoder_input_ids": torch.tensor([case["target"]])} if case["kind"] == "seq2seq" else {}
    for model in twice(CLASSES[case["kind"]], folder):
        # Transformers' BART counts places, padding too.
        on_either_side = not (more and hasattr(model.config, "max_position_embeddings"))
        for task in (None, "pets"):
            told = lambda part: {"task": task, "text_vectors": None if vectors is None else vectors[part]}
            of = lambda row: f"{task or 'none'} {row}"
            for row, ids in enumerate(rows):
                ids, said = torch.tensor([ids]), told(slice(row, row + 1))
                yield of(row), model(ids, **more, **said).logits
                if case["kind"] == "causal":
                    start = model(ids[:, :first], use_cache=True, **said)
                    rest = model(ids[:, first:], cache=start.cache, use_cache=True, **said)
                    yield of(row) + " cached", torch.cat([start.logits, rest.logits], 1)
                    yield of(row) + " cached", model(ids, use_cache=False, prompt_length=first, **said).logits
            for on_left in (True, False) if on_either_side else (False,):
                batch, said = padded(rows, on_left), told(slice(None))
                many = {name: value.repeat(len(rows), 1) for name, value in more.items()}
                found = model(**batch, **many, **said).logits
                for row, mask in enumerate(batch["attention_mask"].bool()):
                    yield of(row), (found[row] if more else found[row, mask]).unsqueeze(0)
            model.generation_config.eos_token_id = None
            for use_cache in (True, False):
                numbers = {"max_new_tokens": 32, "do_sample": False, "pad_token_id": 0, "use_cache": use_cache}
                found = model.generate(**padded(rows, on_either_side), **numbers, **told(slice(None)))
                if found[:, -32:].tolist() != case["written"][task or "none"]:
                    sys.exit(f"{folder.name}: wrote {found[:, -32:].tolist()}, expected {case['written']}")


def heads(folder, case):
    """Scores of the classes of each task of an encoder."""
    for model in twice(transformers.AutoModelForSequenceClassification, folder):
        for task, asked in case["tasks"].items():
            vectors = asked["vectors"] and torch.tensor(asked["vectors"])
            found = model(**padded(asked["rows"], False), task=task, text_vectors=vectors)
            yield task, found.logits.softmax(-1).unsqueeze(0)


METHODS = {"lora": lora, "poly": poly, "xlora": xlora, "lily": lily, "arrow": arrow, "merge": merge, "gguf": gguf}
OWN = {"transformers": own, "heads": heads}


def check(folder):
    case = json.loads((folder / "case.json").read_text())
    expected = load_file(folder / "expected.safetensors")
    method = case.get("method", "lora")
    tolerance, errors = OWN_TOLERANCE if method in OWN else TOLERANCE, {}
    for name, found in (METHODS | OWN)[method](folder, case):
        errors[name] = max(difference(found, expected[name]), errors.get(name, 0))
    for name, error in errors.items():
        print(f"{folder.name:40} {name:14} {error:.1e}{'' if error <= tolerance else '  DIFFERS'}")
    if missing := expected.keys() - errors.keys():
        sys.exit(f"{folder.name}: nothing was compared with {', '.join(missing)}")
    return not all(error <= tolerance for error in errors.values())


def main():
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    folders = sorted(path.parent for path in Path(sys.argv[1]).glob("*/case.json"))
    if not folders:
        sys.exit("no case was written")
    with torch.no_grad():
        differ = [check(folder) for folder in folders]
    if any(differ):
        sys.exit(f"above the tolerance of {TOLERANCE:.0e}, with our own Python {OWN_TOLERANCE:.0e}, of the largest value")


main()
