# SPDX-License-Identifier: MIT OR Apache-2.0
# Copyright (c) The molora developers
"""Mixtures of LoRA experts at linear layers: experts, routers and gates, as molora computes them.

A mixture is a choice on each of a few axes, written in `config.json` as in a run's `adapter_config.json`. What a
choice computes stands beside its name below; papers and derivations are in molora's documentation
(docs/architecture.md, docs/methods). Nothing is dropped or disturbed here: this is evaluation.

B rows, T tokens, D and O input and output width of a layer, E experts of rank R, S down-projections (E, or 1 that
all experts share), G decisions for each token (of groups of ranks or outputs, where there are such), F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def choice(value: Any) -> tuple[str, Any]:
    """Name and numbers of a choice: `"softmax"`, `{"top_k": 2}` or `{"linear": {"bias": true}}`."""
    return (value, {}) if isinstance(value, str) else next(iter(value.items()))


def descending(scores: Tensor) -> Tensor:
    """Places along the last axis from the largest score down; of equal ones the lower comes first."""
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices


def largest(scores: Tensor, count: int) -> Tensor:
    """True at the `count` largest scores of the last axis."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, descending(scores)[..., :count], True)


def unit(rows: Tensor, epsilon: float) -> Tensor:
    """Rows divided by their norm, which counts as at least `epsilon`."""
    return rows / rows.square().sum(-1, keepdim=True).clamp_min(epsilon * epsilon).sqrt()


def standard(rows: Tensor) -> Tensor:
    """Rows of mean 0 and variance 1, as a layer norm makes them."""
    centred = rows - rows.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean over real tokens, `[B, T, F]` to `[B, 1, F]`; zero for a row without any."""
    count = mask.sum(1).clamp_min(1).to(tokens.dtype).view(-1, 1, 1)
    return tokens.masked_fill(~mask.unsqueeze(2), 0).sum(1, keepdim=True) / count


def last_only(mask: Tensor) -> Tensor:
    """The mask `[B, T]` of each row's last real token."""
    place = mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (place == place.amax(1, keepdim=True)) & (place > 0)


def by_group(weights: Tensor, groups: int) -> Tensor:
    """Weights `[B, T*G, E]` as `[B, T, G, E]`; a single decision counts for all groups."""
    if weights.shape[1] == 1:
        return weights.unsqueeze(2).expand(-1, 1, groups, -1)
    return weights.unflatten(1, (-1, groups))


@dataclass
class Pass:
    """What all layers of one forward pass read beside their inputs."""

    mask: Tensor  # True for real tokens, [B, T]
    prompt: Tensor | None = None  # those that decisions for a sequence read, [B, T]; all if None
    tasks: Tensor | None = None  # rows that pick each sequence's task, [B, tasks]
    bias: Tensor | None = None  # added to the logits of experts, [B, E]
    clusters: Tensor | None = None  # rows that pick each sequence's cluster, [B, clusters]
    similarities: Tensor | None = None  # of each sequence with all clusters, [B, clusters]
    labels: Tensor | None = None  # one-hot decisions that layers share, [B, E]
    shared: Tensor | None = None  # weights that the layer's router gave, [B, T, E]
    kept: dict[str, Tensor] | None = None  # decisions for sequences, kept with the cache
    votes: list[Tensor] | None = None  # logits of the layers' routers, in a pass of the base alone
    source: Pass | None = None  # the text that a decoder's layer reads, of an encoder-decoder


class Part(nn.Module):
    """A module whose parameters have molora's names, with dots."""

    def add(self, name: str, *shape: int) -> None:
        """Makes a parameter, which is read from a file."""
        *path, last = name.split(".")
        module: nn.Module = self
        for step in path:
            if step not in module._modules:
                module.add_module(step, nn.Module())
            module = module._modules[step]
        module.register_parameter(last, nn.Parameter(torch.zeros(shape)))

    def __getitem__(self, name: str) -> Tensor:
        *path, last = name.split(".")
        module = self
        for step in path:
            module = module._modules[step]
        return module._parameters[last]


class Router(Part):
    """Weights of experts from features: a scorer, a selection and a normaliser."""

    def __init__(self, spec: dict[str, Any], features: int, experts: int, groups: int, tasks: int) -> None:
        super().__init__()
        self.scorer, self.numbers = choice(spec["scorer"])
        self.selection, self.most = choice(spec["selection"])
        self.normaliser, self.normal = choice(spec["normaliser"])
        self.granularity, self.pooling = spec["granularity"], spec["pooling"]
        self.reads, self.temperature = spec["route_from"], spec["temperature"]
        self.experts, self.groups = experts, groups
        if self.granularity == "task":
            features = tasks if self.scorer == "table" else spec["task_width"]
            if self.scorer != "table":
                self.add("task_embedding", tasks, features)
        for name, shape in self.shapes(features, tasks).items():
            self.add(name, *shape)

    def shapes(self, f: int, tasks: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters of scorer and normaliser for F features."""
        n, e, numbers = self.groups * self.experts, self.experts, self.numbers
        z, h, g = numbers.get("task_width", 0), self.normal.get("hidden", 0), len(numbers.get("groups", ()))
        places = min(numbers.get("selected", 0), self.groups, e)
        c, w = numbers.get("clusters", 0), numbers.get("width", 0)
        by_features, by_task = {"by_features.weight": (n, f), "by_features.bias": (n,)}, {"by_task.weight": (n, z)}
        scorers = {
            "linear": {"weight": (n, f)} | ({"bias": (n,)} if numbers.get("bias") else {}),
            "cosine": {"keys": (n, f)},
            "prototype": {"prototypes": (n, f)},
            "arrow": {"prototypes": (n, f)},
            "uniform": {},
            "grouped": {"group": (g, f), "within": (n,) if numbers.get("within") == "static" else (n, f)},
            "perceptron": {"hidden": (f, f), "hidden_bias": (f,), "weight": (n, f), "bias": (n,)},
            "table": {"table": (tasks, n)},
            "magnitude": {"bias": (n,)},
            "per_task": {"weight": (tasks, n, f)},
            "task_prompt": {"weight": (n, f), "prompts": (tasks, f)},
            "cluster": {"cluster_embedding": (c, w), "weight": (n, w), "bias": (n,)},
            "conditional": {"down.weight": (self.groups, f), "up.weight": (e, f), "given.weight": (places, e, f)},
            "blend": by_features | by_task | {"by_task.bias": (n,), "by_task.embedding": (tasks, z), "alpha": (1,)},
        }
        hidden = {"lambda.hidden.weight": (h, f), "lambda.hidden.bias": (h,)}
        normalisers = {
            "cells": {"blend": (1,)},
            "threshold": {"threshold.weight": (1, f), "threshold.bias": (1,)},
            "sparsegen": hidden | {"lambda.output.weight": (1, h), "lambda.output.bias": (1,)},
        }
        return scorers[self.scorer] | normalisers.get(self.normaliser, {})

    def forward(self, x: Tensor, now: Pass, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weights and logits `[B, T*G, E]` for features `[B, T, F]`; T is 1 for sequences and tasks.

        `columns` `[F, P]` are those of the down-projection, for a scorer that reads them.
        """
        features, decided = self.features(x, now), None
        if self.granularity == "sequence" and self.pooling == "scores":
            mask = now.mask if now.prompt is None else now.prompt
            logits = masked_mean(self.score(x.masked_fill(~mask.unsqueeze(2), 0), now), mask)
        elif self.scorer == "conditional":
            logits, decided = self.pairs(features, now, columns)
        else:
            logits = self.score(features, now)
        logits = logits / self.temperature
        if now.bias is not None:
            bias = now.bias.to(logits.dtype)
            logits = logits + bias.repeat(1, logits.shape[2] // bias.shape[1]).unsqueeze(1)
        if self.normaliser == "cells":
            weights = self.cells(logits, now).reshape(len(logits), -1, self.experts)
            logits = logits.reshape(weights.shape)
        else:
            logits = logits.reshape(len(logits), -1, self.experts)
            features = features.repeat_interleave(self.groups, 1)
            weights = self.weigh(features, logits) if decided is None else decided.reshape(logits.shape)
        if now.labels is not None:
            known = now.labels.sum(1).view(-1, 1, 1) > 0.5
            weights = torch.where(known, now.labels.unsqueeze(1).to(weights.dtype), weights)
        return weights, logits

    def features(self, x: Tensor, now: Pass) -> Tensor:
        """One row of features for each decision."""
        if self.granularity == "token":
            return x
        if self.granularity == "task":
            tasks = now.tasks.to(x.dtype)
            rows = tasks if self.scorer == "table" else tasks @ self["task_embedding"]
            return rows.unsqueeze(1)
        mask = now.mask if now.prompt is None else now.prompt
        return masked_mean(x, last_only(mask) if self.pooling == "last" else mask)

    def score(self, u: Tensor, now: Pass) -> Tensor:
        """Scores `[B, T, G*E]` of features u."""
        numbers, tasks = self.numbers, None if now.tasks is None else now.tasks.to(u.dtype)
        match self.scorer:
            case "linear":  # W u + b
                return F.linear(u, self["weight"], self["bias"] if numbers.get("bias") else None)
            case "cosine":  # cos(k_e, u)
                return unit(u, 1e-12) @ unit(self["keys"], 1e-12).T
            case "prototype":  # <std(v_e), std(u)> / sqrt(F)
                return standard(u) @ standard(self["prototypes"]).T / math.sqrt(u.shape[-1])
            case "arrow":  # |<v_e, u>|
                return (u @ self["prototypes"].T).abs()
            case "uniform":
                return u.new_zeros(*u.shape[:2], self.groups * self.experts)
            case "perceptron":  # W2 relu(W1 u + b1) + b2
                return F.linear(F.relu(F.linear(u, self["hidden"], self["hidden_bias"])), self["weight"], self["bias"])
            case "table":  # the row of the task; of an unknown one the mean, or zeros
                logits = u @ self["table"]
                return logits * (u.amax(-1, keepdim=True) > 0.999) if numbers.get("unknown") == "zero" else logits
            case "magnitude":  # sum_r |z_er + d_e| of the expert's own code
                codes = u.unflatten(-1, (self.experts, -1)) + self["bias"].unsqueeze(1)
                return (codes if numbers["signed"] else codes.abs()).sum(-1)
            case "per_task":  # <w_te, u>
                weight = (tasks @ self["weight"].flatten(1)).unflatten(1, (-1, u.shape[-1]))
                return u @ weight.transpose(1, 2)
            case "task_prompt":  # <w_e, u + t>
                return F.linear(u, self["weight"]) + F.linear(tasks @ self["prompts"], self["weight"]).unsqueeze(1)
            case "cluster":  # W c + b for the embedding c of the sequence's cluster
                rows = now.clusters.to(u.dtype) @ self["cluster_embedding"]
                return F.linear(rows, self["weight"], self["bias"]).unsqueeze(1).expand(-1, u.shape[1], -1)
            case "grouped":
                return self.grouped(u)
            case "blend":  # log((1 - a) softmax(by features) + a softmax(by task)), a = sigmoid(alpha)
                by_features = F.linear(u, self["by_features.weight"], self["by_features.bias"])
                by_task = F.linear(tasks @ self["by_task.embedding"], self["by_task.weight"], self["by_task.bias"])
                of_features = by_features.log_softmax(2) + F.logsigmoid(-self["alpha"])
                return torch.logaddexp(of_features, by_task.unsqueeze(1).log_softmax(2) + F.logsigmoid(self["alpha"]))
        raise ValueError(f"the scorer {self.scorer} is not known here")

    def grouped(self, u: Tensor) -> Tensor:
        """The logarithm of the weight of an expert's group times its weight inside it (AT-MoE)."""
        groups = self.numbers["groups"]
        group_of = {expert: group for group, members in enumerate(groups) for expert in members}
        own = torch.tensor([group_of[expert] for expert in range(self.experts)], device=u.device)
        outer = ((u @ self["group"].T) / self.numbers["group_temperature"]).log_softmax(2)[..., own]
        static = self.numbers["within"] == "static"
        inner = outer.exp() * self["within"] if static else u @ self["within"].T
        inner = inner / self.numbers["within_temperature"]
        same = own.unsqueeze(1) == own.unsqueeze(0)  # experts of one group, [E, E]
        total = inner.unsqueeze(2).masked_fill(~same, -math.inf).logsumexp(3)
        return outer + inner - total

    def pairs(self, u: Tensor, now: Pass, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and weights `[B, T, P*E]` of pairs of down- and up-vectors, the second chosen given the first.

        p = softmax(W_A u); q = (softmax(W_B u) + c sum_j softmax(V_j a_j)) / (1 + c r), a_1 .. a_r the largest r of p;
        the pairs (a_j, b_j) have weight 1 (Shen et al., arXiv:2402.15896).
        """
        given, condition = self["given.weight"], self.numbers["condition"]
        places = len(given)
        bias = u.new_zeros(1, 1, self.experts) if now.bias is None else now.bias.to(u.dtype).unsqueeze(1)
        log_p = (u @ self["down.weight"].T).log_softmax(2)
        a = descending(log_p)[..., :places]
        table = given @ columns  # V_j a for every down-vector, [r, E, P]
        rows = table[torch.arange(places, device=u.device), :, a]  # [B, T, r, E]
        share = (rows + bias.unsqueeze(2)).softmax(3).sum(2)
        q = ((u @ self["up.weight"].T + bias).softmax(2) + condition * share) / (1 + condition * places)
        b = descending(q)[..., :places]
        free = q.gather(2, b) > 0  # an up-vector that is barred takes no part
        weights = u.new_zeros(*u.shape[:2], self.groups * self.experts)
        weights.scatter_(2, a * self.experts + b, free.to(u.dtype))
        logits = log_p.unsqueeze(3) + q.clamp_min(1e-30).log().unsqueeze(2)
        return logits.flatten(2), weights

    def cells(self, logits: Tensor, now: Pass) -> Tensor:
        """a omega softmax(l) + c (1 - omega) s over the cells of all groups, s the similarities (MoR1E)."""
        omega = torch.sigmoid(self["blend"] * self.normal["sharpness"])
        weights = self.normal["token_scale"] * omega * logits.softmax(2)
        if now.similarities is None:
            return weights
        similar = now.similarities.to(weights.dtype).unsqueeze(1)
        return weights + self.normal["prior_scale"] * (1 - omega) * similar

    def select(self, logits: Tensor, probs: Tensor) -> Tensor | None:
        """True for the experts that take part; None for all."""
        match self.selection:
            case "top_k" if self.most < self.experts:
                chosen = largest(logits, self.most)
            case "top_p" if self.most < 1:  # the fewest that hold more than this mass together
                order = descending(logits)
                mass = probs.gather(-1, order)
                chosen = (mass.cumsum(-1) - mass <= self.most).gather(-1, order.argsort(-1))
            case "argmax" | "straight_through" | "straight_through_dense":
                return largest(logits, 1)
            case _:
                return None
        return chosen & (logits > -math.inf)

    def weigh(self, u: Tensor, logits: Tensor) -> Tensor:
        """Weights of experts from features and logits, 0 for those that take no part."""
        probs = logits.softmax(-1)
        chosen = self.select(logits, probs)
        if self.selection in ("argmax", "straight_through", "straight_through_dense"):
            return chosen.to(logits.dtype)
        part = torch.ones_like(logits, dtype=torch.bool) if chosen is None else chosen
        match self.normaliser:
            case "softmax":
                return probs if chosen is None else logits.masked_fill(~part, -math.inf).softmax(-1)
            case "softmax_twice":  # HMoRA's released code
                return probs if chosen is None else probs.masked_fill(~part, -math.inf).softmax(-1)
            case "sigmoid":
                return torch.sigmoid(logits) * part
            case "sigmoid_share":  # s_e / sum_j s_j
                gates = torch.sigmoid(logits) * part
                return gates / (gates.sum(-1, keepdim=True) + 1e-12)
            case "none":
                return (part & (logits > -math.inf)).to(logits.dtype)
            case "identity":
                return logits.masked_fill(~part | (logits == -math.inf), 0)
            case "probability":  # not renormalised
                floor = self.normal["floor"]
                return (probs + floor * (logits > -math.inf)) * part
            case "threshold":  # max(p_e - theta, 0), renormalised; theta = theta_max sigmoid(<w, u> + b)
                theta = torch.sigmoid(F.linear(u, self["threshold.weight"], self["threshold.bias"]))
                above = probs - theta * (self.normal.get("theta_max") or 1 / self.experts)
                above = above.clamp_min(0) * part
                total = above.sum(-1, keepdim=True)
                return above / total.masked_fill(total == 0, 1)
            case "sparsegen":
                return self.sparsegen(u, logits.masked_fill(~part | (logits <= -1e9), -1e9))
        raise ValueError(f"the normaliser {self.normaliser} is not known here")

    def sparsegen(self, u: Tensor, logits: Tensor) -> Tensor:
        """max(l_e - tau, 0) / (1 - lambda), lambda = logsigmoid(w2 relu(W1 u + b1) + b2) + 0.99 (LD-MoLE).

        Kept are the largest j with 1 - lambda + j l_(j) > l_(1) + .. + l_(j), and equal scores together.
        """
        hidden = F.relu(F.linear(u, self["lambda.hidden.weight"], self["lambda.hidden.bias"]))
        room = 0.01 - F.logsigmoid(F.linear(hidden, self["lambda.output.weight"], self["lambda.output.bias"]))
        before = (logits.unsqueeze(-2) >= logits.unsqueeze(-1)).to(logits.dtype)
        kept = room + before.sum(-1) * logits > (before * logits.unsqueeze(-2)).sum(-1)
        tau = ((logits * kept).sum(-1, keepdim=True) - room) / kept.sum(-1, keepdim=True)
        return (logits - tau) * kept / room


def decided(router: Router, path: str, x: Tensor, now: Pass, columns: Tensor | None = None) -> Tensor:
    """The weights that the router at a path gives; those for a sequence are kept."""
    if now.kept is None or router.granularity != "sequence":
        return router(x, now, columns)[0]
    if path not in now.kept:
        now.kept[path] = router(x, now, columns)[0]
    return now.kept[path]


class Bank(Part):
    """The experts of a site: y = s sum_e w_e B_e core(A_e x), or another way to combine them."""

    def __init__(self, spec: dict[str, Any], experts: int, d_in: int, d_out: int, tasks: int) -> None:
        super().__init__()
        rank = spec["rank"]
        slices = 1 if spec["slices"] == "shared" else experts
        self.experts, self.rank, self.slices = experts, rank, slices
        # Number of experts that a router decides among, and of decisions for each token.
        self.choices, self.groups = experts, 1
        self.down, down = choice(spec.get("down", "dense"))
        self.core, self.core_numbers = choice(spec["core"])
        self.combine, self.numbers = choice(spec.get("combine", "sum"))
        match self.combine:
            case "rank_groups":
                self.groups = rank // self.numbers["ranks"] if self.numbers["ranks"] else 1
            case "output_groups":
                self.groups = self.numbers["groups"]
            case "factors":
                self.groups = self.numbers["splits"]
            case "grid":
                self.groups = rank
            case "sizes":
                self.choices = len(self.sizes())
        scaling, alpha = choice(spec["scaling"])
        alpha = 1.0 if scaling == "unit" else alpha
        divided = {"alpha_over_rank": alpha / rank, "rank_stabilized": alpha / math.sqrt(rank), "unit": 1.0}
        self.factor = math.sqrt(3 * alpha * d_in / rank) if scaling == "aligned" else divided[scaling]
        if self.down == "factored":
            self.add("shared_A", down["subspace"], d_in)
            self.add("coefficients", slices, rank, down["subspace"])
        else:
            self.add("lora_A", slices, rank, d_in)
        self.add("lora_B", experts, d_out, 1 if self.combine == "grid" else rank)
        match self.core:
            case "scale":
                self.add("rank_scale", slices * rank)
            case "relu" if self.core_numbers.get("expert_scale"):
                self.add("scale", experts)
            case "task":
                self.add("task_core", tasks, slices * rank, *(() if self.core_numbers["diagonal"] else (rank,)))
            case "output_gate":
                self.add("output_gate", 1)

    def sizes(self) -> list[int]:
        """The rank of each choice, of one LoRA whose ranks are divided (Duo-LLM)."""
        shares, left = self.numbers["shares"], self.rank
        ranks = [0] if self.numbers["skip"] else []
        for number, share in enumerate(shares):
            after = len(shares) - 1 - number
            part = min(max(share * self.rank // sum(shares), 1), max(left - after, 1)) if after else left
            ranks.append(part)
            left -= part
        return ranks

    def matrix(self) -> Tensor:
        """A of all slices, `[S*R, D]`."""
        if self.down == "factored":
            return self["coefficients"].flatten(0, 1) @ self["shared_A"]
        return self["lora_A"].flatten(0, 1)

    def lower(self, x: Tensor) -> Tensor:
        """The code x A `[B, T, S*R]`, before any core; x itself where matrices are mixed and not codes."""
        return x if self.combine == "factors" else F.linear(x, self.matrix())

    def turned(self, low: Tensor, tasks: Tensor | None) -> Tensor:
        """The code behind the core."""
        match self.core:
            case "scale":  # sigma o z
                return low * self["rank_scale"]
            case "relu":
                return F.relu(low)
            case "output_gate":  # sigmoid(sharpness beta) z
                return low * torch.sigmoid(self["output_gate"] * self.core_numbers["sharpness"])
            case "task":  # Lambda_t z; the mean over tasks where the task is unknown
                core = self["task_core"]
                rows = core.new_full((1, len(core)), 1 / len(core)) if tasks is None else tasks.to(core.dtype)
                own = (rows @ core.flatten(1)).unflatten(1, core.shape[1:])
                if own.dim() == 2:
                    return low * own.unsqueeze(1)
                own = own.unflatten(1, (self.slices, self.rank)).expand(len(low), -1, -1, -1)
                return torch.einsum("btsr,bsqr->btsq", low.unflatten(2, (self.slices, self.rank)), own).flatten(2)
        return low

    def forward(self, low: Tensor, weights: Tensor | None, tasks: Tensor | None) -> Tensor:
        """The delta `[B, T, O]` for codes `[B, T, S*R]` and weights `[B, T*G, E]`; None weighs every expert by 1."""
        b, rank, experts = self["lora_B"], self.rank, self.experts
        if weights is None:
            weights = low.new_ones(1, 1, self.choices)
        if self.core == "relu" and self.core_numbers.get("expert_scale"):
            weights = weights * self["scale"]
        if self.combine == "factors":
            return self.mixed(low, by_group(weights, self.groups)) * self.factor
        z = self.turned(low, tasks) * self.factor
        match self.combine:
            case "sum":
                return self.summed(z, weights)
            case "rank_groups":  # sum_e B_e (w_e o z), a weight for each group of ranks
                gates = by_group(weights, self.groups).transpose(2, 3).repeat_interleave(rank // self.groups, 3)
                return torch.einsum("bter,eor->bto", z.unsqueeze(2) * gates, b)
            case "output_groups":  # block g of sum_e w_eg B_e z
                gates = by_group(weights, self.groups).unsqueeze(4)
                parts = z.view(*z.shape[:2], 1, 1, rank) * gates
                return torch.einsum("btger,egor->btgo", parts, b.unflatten(1, (self.groups, -1))).flatten(2)
            case "grid":  # sum_j b_j sum_i w_ij z_i
                return (by_group(weights, rank) * z.unsqueeze(3)).sum(2) @ b.squeeze(2)
            case "sizes":  # each choice weighs the ranks that it has
                sizes = torch.tensor(self.sizes(), device=z.device)
                owner = torch.arange(self.choices, device=z.device).repeat_interleave(sizes)
                return z * weights[..., owner] @ b[0].T
            case "orthogonal":
                return self.orthogonal(z, weights.expand(-1, -1, experts))
        raise ValueError(f"the combination {self.combine} is not known here")

    def summed(self, z: Tensor, weights: Tensor) -> Tensor:
        """sum_e w_e B_e z_e."""
        codes = z.unflatten(2, (self.slices, self.rank)) * weights.unsqueeze(3)
        return torch.einsum("bter,eor->bto", codes, self["lora_B"])

    def mixed(self, x: Tensor, weights: Tensor) -> Tensor:
        """(sum_e w_e B_e) (sum_e w_e A_e) x, weights `[B, 1, G, E]` of blocks of inputs and outputs (Poly, MHR)."""
        w = weights.squeeze(1)
        a = self["lora_A"].unflatten(2, (self.groups, -1))
        b = self["lora_B"].unflatten(1, (self.groups, -1))
        a = torch.einsum("bqe,erqd->brqd", w, a).flatten(2)
        b = torch.einsum("bqe,eqor->bqor", w, b).flatten(1, 2)
        return (x @ a.transpose(1, 2)) @ b.transpose(1, 2)

    def orthogonal(self, z: Tensor, weights: Tensor) -> Tensor:
        """sum_e w_e q_e, q the outputs made orthogonal from the largest weight down (OMoE)."""
        left, units, delta = weights, [], 0
        for _ in range(min(self.numbers["selected"], self.experts)):
            chosen = largest(left, 1)
            left = left.masked_fill(chosen, -math.inf)
            output = rest = self.summed(z, chosen.to(z.dtype))
            for other in units:
                rest = rest - other * (other * rest).sum(-1, keepdim=True)
            norm = (rest.square().sum(-1, keepdim=True) + 1e-24).sqrt()
            units.append(rest / norm)
            size = (output.square().sum(-1, keepdim=True) + 1e-24).sqrt() if self.numbers["norms"] else self.factor
            delta = delta + units[-1] * size * (weights * chosen).sum(-1, keepdim=True)
        return delta


class Mixture(nn.Module):
    """What a site adds to its linear layer: experts, and a router and a gate if there are such."""

    def __init__(self, path: str, spec: dict[str, Any], experts: int, d_in: int, d_out: int, tasks: int) -> None:
        super().__init__()
        self.path, self.general = path, spec.get("general")
        bank, router, gate = spec["bank"], spec.get("router"), spec.get("gate")
        self.experts = Bank(bank, experts + (self.general is not None), d_in, d_out, tasks)
        self.router = self.gate = self.start = None
        if router is not None and spec["router_scope"] == "site":
            features = self.experts.slices * bank["rank"] if router["route_from"] == "low_rank" else d_in
            choices = self.experts.choices - (self.general is not None)
            self.router = Router(router, features, choices, self.experts.groups, tasks)
        if gate is not None:
            self.gate = Part()
            self.gate.add("task_embedding", tasks, gate["width"])
            self.gate.add("weight", gate["width"], 1)
            if gate["bias"]:
                self.gate.add("bias", 1)
        start, numbers = choice(bank.get("start", "kaiming"))
        if start in ("pissa", "olora", "segments"):  # what experts started as, and the layer loses
            self.start = Part()
            self.start.add("lora_A", experts * bank["rank"], d_in)
            self.start.add("lora_B", d_out, experts * bank["rank"])
            share = 1 / experts if start == "segments" and not numbers["full_residual"] else 1.0
            self.start_factor = share * self.experts.factor
        self.register_parameter("lora_magnitude_vector", nn.Parameter(torch.zeros(d_out)) if spec.get("dora") else None)
        self.norms: tuple[Any, Tensor] | None = None

    def forward(self, y: Tensor, x: Tensor, weight: Tensor, now: Pass) -> Tensor:
        """y = x W `[B, T, O]`, without the bias, as the mixture changes it for inputs `[B, T, D]`; W is `weight`."""
        low = self.experts.lower(x)
        weights = now.shared
        if self.router is not None:
            columns = self.experts.matrix().T if self.router.scorer == "conditional" else None
            weights = decided(self.router, self.path, low if self.router.reads == "low_rank" else x, now, columns)
        routed = weights is not None
        if routed and self.general is not None:
            weights = self.with_general(weights)
        if self.gate is not None:  # sigmoid(<w, t> + b) for the embedding t of the task
            bias = self.gate["bias"] if "bias" in self.gate._parameters else 0
            logits = now.tasks.to(x.dtype) @ (self.gate["task_embedding"] @ self.gate["weight"]) + bias
            gate = torch.sigmoid(logits).unsqueeze(2)
            weights = gate if weights is None else weights * gate
            weights = weights.expand(-1, -1, self.experts.choices)
        y = y + self.experts(low, weights, now.tasks)
        if self.start is not None:
            lost = F.linear(F.linear(x, self.start["lora_A"]), self.start["lora_B"])
            y = y - self.start_factor * lost
        if self.lora_magnitude_vector is not None:  # DoRA, arXiv:2402.09353, eq. 5
            y = y * (self.lora_magnitude_vector / self.column_norms(weight, routed))
        return y

    def with_general(self, weights: Tensor) -> Tensor:
        """Weights with that of the general expert, which comes last."""
        name, share = choice(self.general)
        if name == "routed_share":  # AT-MoE: lambda of the routed ones, 1 - lambda
            routed, general = weights * share, torch.full_like(weights[..., :1], 1 - share)
        else:  # MoCLE: what the others leave of 1
            general = 1 - weights.sum(-1, keepdim=True)
            routed = weights.square() if name == "rest_of_squared" else weights
        return torch.cat([routed, general], -1)

    def column_norms(self, weight: Tensor, routed: bool) -> Tensor:
        """Norms of the columns of W plus the delta of all experts, or their mean where they are routed."""
        tensors = [weight, *self.experts.parameters()]
        key = (routed, weight.dtype, *((tensor.data_ptr(), tensor._version) for tensor in tensors))
        if self.norms is None or self.norms[0] != key:
            with torch.no_grad():
                bank = self.experts
                low = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
                low = low if bank.combine == "factors" else bank.matrix().T
                share = 1 / bank.choices if routed else 1.0
                delta = bank(low.unsqueeze(0), weight.new_full((1, 1, bank.choices), share), None).squeeze(0)
                if self.start is not None:
                    delta = delta - self.start_factor * (self.start["lora_B"] @ self.start["lora_A"]).T
                self.norms = key, (weight + delta).norm(dim=0)
        return self.norms[1]


class MixtureLinear(nn.Module):
    """A linear layer, whose tensors keep their names, with mixtures beside it.

    There is one for the whole output, or one for some of the parts that a fused layer holds side by side.
    """

    def __init__(self, linear: nn.Module, passes: list[Pass], reads_source: bool) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.is_transposed = not isinstance(linear, nn.Linear)  # GPT-2's layers have weights [D, O]
        self.passes, self.reads_source = passes, reads_source  # those that the model is in, the innermost last
        self.parts: list[tuple[str, int, int]] = []
        self.in_features, self.out_features = self.matrix().shape

    def matrix(self) -> Tensor:
        """The frozen weight, `[D, O]`."""
        return self.weight if self.is_transposed else self.weight.T

    def add(self, name: str, mixture: Mixture, first: int, width: int) -> None:
        """Puts a mixture beside the outputs from `first` on."""
        self.add_module(name, mixture)
        self.parts.append((name, first, first + width))

    def forward(self, x: Tensor) -> Tensor:
        now, matrix = self.passes[-1], self.matrix()
        now = now.source if self.reads_source and now.source is not None else now
        y = x @ matrix
        if now.votes is None:
            for name, first, end in self.parts:
                part = getattr(self, name)(y[..., first:end], x, matrix[:, first:end], now)
                whole = end - first == y.shape[-1]
                y = part if whole else torch.cat([y[..., :first], part, y[..., end:]], -1)
        return y if self.bias is None else y + self.bias
