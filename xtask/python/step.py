"""A training step in MiniLM's shape with random weights: forward, backward, AdamW.

lora    PEFT's LoRA on query, key, value and attention output
samora  SAMoRA as its authors write the layer: the output of every expert is formed,
        [batch, tokens, experts, out], and then mixed

Prints one line of JSON. bf16 is autocast, with weights kept in float32.
"""

import argparse
import math

import clock  # before torch, which reads the number of threads from the environment

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

TASKS, CLASSES = 8, 4
TARGETS = ["query", "key", "value", "attention.output.dense"]


class SamoraSite(nn.Module):
    """y = W0 x + sigmoid(gate(task)) * sum_e g_e(x) B_e (sigma * A x), g from cosine(A x, keys)."""

    def __init__(self, base, experts, rank, state, temperature=0.8):
        super().__init__()
        self.base, self.temperature, self.state = base, temperature, state
        self.a = nn.Parameter(torch.empty(rank, base.in_features))
        self.b = nn.Parameter(torch.zeros(experts, base.out_features, rank))
        self.keys = nn.Parameter(torch.empty(experts, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.keys, a=math.sqrt(5))
        self.sigma = nn.Parameter(torch.ones(rank))
        self.task = nn.Embedding(TASKS, 8)
        self.gate = nn.Parameter(torch.empty(8).uniform_(-1, 1))
        self.dropout = nn.Dropout(0.05)

    def forward(self, x):
        low = self.dropout(x) @ self.a.T
        cosine = F.normalize(low, dim=-1) @ F.normalize(self.keys, dim=-1).T
        weights = (cosine / self.temperature).softmax(-1)
        experts = torch.einsum("btr,eor->bteo", low * self.sigma, self.b)
        mixed = torch.einsum("bte,bteo->bto", weights, experts)
        self.state["penalties"].append(self.penalty())
        gate = torch.sigmoid(self.task(self.state["tasks"]) @ self.gate)
        return self.base(x) + gate[:, None, None] * mixed

    def penalty(self):
        eye = torch.eye(len(self.sigma))
        across = self.b.transpose(1, 2) @ self.b
        orthogonality = F.mse_loss(self.a @ self.a.T, eye)
        orthogonality = orthogonality + F.mse_loss(across, eye.expand_as(across))
        key = F.normalize(self.keys, dim=-1).softmax(-1)
        centre = F.normalize(self.b.mean(1), dim=-1).softmax(-1)
        matching = F.kl_div((key + 1e-8).log(), centre, reduction="batchmean")
        return 1e-3 * orthogonality + 1e-2 * matching


def build(options, state):
    config = BertConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=512,
        hidden_dropout_prob=options.base_dropout,
        attention_probs_dropout_prob=options.base_dropout,
        num_labels=CLASSES,
    )
    model = BertForSequenceClassification(config)
    if options.method == "lora":
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(
            r=8,
            lora_alpha=16,
            lora_dropout=0.05,
            target_modules=TARGETS,
            modules_to_save=["classifier"],
        )
        return get_peft_model(model, lora)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("classifier")
    for layer in model.bert.encoder.layer:
        attention = layer.attention
        for name in ("query", "key", "value"):
            site = SamoraSite(getattr(attention.self, name), options.experts, 8, state)
            setattr(attention.self, name, site)
        attention.output.dense = SamoraSite(attention.output.dense, options.experts, 8, state)
    return model


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("method", choices=["lora", "samora"])
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    # Our frozen base has none, so neither has the reference; transformers' own default is 0.1.
    parser.add_argument("--base-dropout", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(clock.THREADS)
    state = {}
    model = build(options, state).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    ids = torch.randint(5, 30000, (options.rows, options.tokens))
    mask = torch.ones_like(ids)
    labels = torch.randint(0, CLASSES, (options.rows,))
    tasks = torch.randint(0, TASKS, (options.rows,))

    def step():
        state.update(tasks=tasks, penalties=[])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.dtype == "bf16"):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        (loss + sum(state["penalties"])).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    samples = clock.measure(step, options.seconds)
    clock.report(samples, options.rows * options.tokens, options.dtype)


if __name__ == "__main__":
    main()
