"""Lets PEFT write adapters of its own methods, with what it computes, for molora to read.

Called by `cargo xtask parity` with the folder of the cases. A case has the folder `adapter` as
`save_pretrained` writes it, and `expected.safetensors` with logits by name; all are of the model `base`.
"""

import json
import os
import sys
import warnings
from contextlib import chdir
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
warnings.filterwarnings("ignore")

import peft
import torch
import transformers
from safetensors.torch import save_file

transformers.utils.logging.disable_progress_bar()

OUT = Path(sys.argv[1]).absolute()
HIDDEN = 16
IDS = torch.tensor([[3, 17, 5, 30, 21, 8], [11, 2, 30, 4, 9, 1]])


def base():
    return transformers.AutoModelForCausalLM.from_pretrained(OUT / "base", dtype=torch.float32)


def logits(model, **more):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS), **more).logits


def randomize(model, part, deviation):
    """Gives every parameter with this in its name values at which it counts."""
    for name, parameter in model.named_parameters():
        if part in name:
            torch.nn.init.normal_(parameter, std=deviation)


def keep(name, model, expected):
    model.save_pretrained(OUT / name / "adapter")
    tensors = {key: value.contiguous() for key, value in expected.items()}
    save_file(tensors, OUT / name / "expected.safetensors")


def make_base():
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=HIDDEN,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        use_cache=False,
        initializer_range=0.3,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(OUT / "base")


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


def make_loras(folder, targets):
    """A LoRA for each list of targets, with ranks and scalings of their own."""
    for number, names in enumerate(targets):
        config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=2 + number,
            lora_alpha=5,
            target_modules=names,
            init_lora_weights=False,
        )
        peft.get_peft_model(base(), config).save_pretrained(folder / str(number))


def main():
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    make_base()
    make_poly(1)
    make_poly(2)


main()
