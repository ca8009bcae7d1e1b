"""Lets PEFT write adapters of its own methods, with what it computes, for molora to read.

Called by `cargo xtask parity` with the folder of the cases. A case has the folder `adapter` as
`save_pretrained` writes it, and `expected.safetensors` with logits by name; all are of the model `base`.
"""

import os
import sys
import warnings
from contextlib import chdir
from itertools import count
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
warnings.filterwarnings("ignore")

import peft
import torch
import transformers
from peft.tuners.lora.arrow import create_arrow_model
from safetensors.torch import load_file, save_file

transformers.utils.logging.disable_progress_bar()

# Paths that PEFT keeps are relative to the folder of the cases.
os.makedirs(sys.argv[1], exist_ok=True)
os.chdir(sys.argv[1])
HIDDEN = 16
SEEDS = count(1)
IDS = torch.tensor([[3, 17, 5, 30, 21, 8], [11, 2, 30, 4, 9, 1]])


def base():
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)


def logits(model, **more):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS), **more).logits


def randomize(model, part, deviation):
    """Gives every parameter with this in its name values at which it counts."""
    torch.manual_seed(next(SEEDS))
    for name, parameter in model.named_parameters():
        if part in name:
            torch.nn.init.normal_(parameter, std=deviation)


def keep(name, model, expected):
    model.save_pretrained(Path(name, "adapter"))
    Path(name, "adapter/README.md").unlink()
    tensors = {key: value.contiguous() for key, value in expected.items()}
    save_file(tensors, Path(name, "expected.safetensors"))


def make_base():
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=HIDDEN,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        use_cache=False,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained("base")


def make_poly(splits):
    config = peft.PolyConfig(
        task_type="CAUSAL_LM",
        r=3,
        n_tasks=3,
        n_skills=4,
        n_splits=splits,
        target_modules=["q_proj", "down_proj"],
        init_weights=False,
    )
    model = peft.get_peft_model(base(), config)
    randomize(model, "module_logits", 1.5)
    tasks = {f"task {t}": logits(model, task_ids=torch.tensor([t, t])) for t in range(3)}
    keep(f"poly-{splits}", model, tasks)


def make_loras(folder, targets, rank=None):
    """A LoRA for each list of targets, with a rank and a scaling of its own unless a rank is given."""
    for number, names in enumerate(targets):
        config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=rank or 2 + number,
            lora_alpha=5,
            target_modules=names,
            init_lora_weights=False,
        )
        model = peft.get_peft_model(base(), config)
        randomize(model, "lora_", 0.4)
        model.save_pretrained(folder / str(number))
        (folder / str(number) / "README.md").unlink()


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_xlora(name, targets, **numbers):
    """The LoRAs are in folders of their own, which the configuration names; what `save_pretrained`
    makes of them lies in the adapter's folder."""
    experts = [f"../experts/{number}" for number in range(len(targets))]
    make_loras(Path(name, "experts"), targets)
    Path(name, "adapter").mkdir()
    config = peft.XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=HIDDEN,
        adapters={str(number): path for number, path in enumerate(experts)},
        **numbers,
    )
    model = base()
    with chdir(Path(name, "adapter")):
        model = peft.get_peft_model(model, config)
    randomize(model, "xlora_classifier", 0.5)
    keep(name, model, {"logits": logits(model)})


def make_xloras():
    some = [["q_proj", "v_proj"], ["q_proj", "down_proj"]]
    make_xlora("xlora", some)
    make_xlora("xlora-layers", [ALL, *some], layerwise_scalings=True, softmax_temperature=0.5)
    make_xlora("xlora-top", some + [["v_proj"]], top_k_lora=2, global_scaling_weight=1.5)
    deep = {"xlora_depth": 3, "xlora_size": 12}
    make_xlora("xlora-deep", some, scaling_pass_value=0.3, global_scaling_weight=0.7, **deep)
    again = {"enable_softmax_topk": True, "top_k_lora": 2, "xlora_dropout_p": 0.0}
    make_xlora("xlora-again", some + [["v_proj"]], enable_softmax=False, **deep, **again)
    make_xlora("xlora-twice", some + [["v_proj"]], softmax_temperature=0.3, **again)
    make_xlora("xlora-scores", some, enable_softmax=False)


def make_lily():
    config = peft.LilyConfig(
        task_type="CAUSAL_LM",
        r=3,
        stride_A=2,
        num_B=3,
        scaling=0.8,
        target_modules=["q_proj", "v_proj", "down_proj"],
    )
    model = peft.get_peft_model(base(), config)
    randomize(model, "lily_", 0.5)
    keep("lily", model, {"logits": logits(model)})


def make_arrow():
    """Experts of which one direction is much stronger than the others, so that PEFT's power iterations
    find it."""
    folder = Path("arrow/experts")
    make_loras(folder, [["q_proj", "v_proj"]] * 3, rank=2)
    for path in folder.glob("*/adapter_model.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if "lora_A" in name:
                tensor[1] *= 0.05
        save_file(tensors, path, {"format": "pt"})
    config = peft.ArrowConfig(top_k=2, router_temperature=0.5, rng_seed=0)
    model = create_arrow_model(base(), [str(folder / str(n)) for n in range(3)], config)
    keep("arrow", model, {"logits": logits(model)})


def main():
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    make_base()
    make_poly(1)
    make_poly(2)
    make_xloras()
    make_lily()
    make_arrow()


main()
