"""A training step of PEFT's LoRA on a decoder of transformers: forward, backward, AdamW, with a loss at every token.

Prints one line of JSON. bf16 has the frozen weights in bfloat16 and computes under autocast; adapters are in float32, as
PEFT makes them. --checkpointed computes layers again in the backward.
"""

import argparse
import os

import clock  # before torch, which reads the number of threads from the environment

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

ROWS, TOKENS = 8, 256
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--layers", choices=["attention", "all"], default="attention")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--checkpointed", action="store_true")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(clock.THREADS)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    model.config.use_cache = False
    targets = ATTENTION if options.layers == "attention" else "all-linear"
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).train()
    if options.checkpointed:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    ids = torch.randint(0, model.config.vocab_size, (ROWS, TOKENS))

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.dtype == "bf16"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    samples = clock.measure(step, options.seconds)
    clock.report(samples, ROWS * TOKENS, options.dtype)


if __name__ == "__main__":
    main()
