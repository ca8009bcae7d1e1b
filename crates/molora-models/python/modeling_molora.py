# SPDX-License-Identifier: MIT OR Apache-2.0
# Copyright (c) The molora developers
"""Models with a mixture of LoRA experts at their linear layers, on any base model that molora reads.

`AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)` makes a class of the base's own and of one
below: its linear layers are replaced in the base model by those of `mixture_molora.py`, and all else, `generate`
with its cache too, is the base's. Every model takes beside the base's arguments
- `task`: name or number of the task that the inputs are of, or one for each row; -1 or None is an unknown one;
- `text_vectors` `[B, V]`: vectors of the texts by the encoder that the configuration names, for mixtures that compare
  texts with clusters or instructions: the mean of its last hidden states over at most 128 tokens, of length 1;
- `prompt_length`: number of the first tokens, padding included, that decisions for a sequence read. With a cache
  they are taken in its first pass and kept.
"""

from __future__ import annotations

import inspect
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForTextEncoding
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .configuration_molora import MoloraConfig
from .mixture_molora import Bank, Mixture, MixtureLinear, Pass, Router
from .mixture_molora import decided, largest, last_only, masked_mean, unit

OWN = ("task", "text_vectors", "prompt_length")  # arguments of a model that its base does not know
KEPT = "molora_decisions"  # where decisions for sequences are kept, on a cache
FUSED = {"c_attn": ("q", "k", "v"), "Wqkv": ("q", "k", "v"), "Wi": ("gate", "up")}  # parts side by side
OF_SOURCE = ("EncDecAttention.k", "EncDecAttention.v", "encoder_attn.k_proj", "encoder_attn.v_proj")  # keys, values


class Mixed:
    """Puts the mixture of a configuration into a base model and tells its layers what they read beside inputs."""

    def __init__(self, config: MoloraConfig, base: PreTrainedModel) -> None:
        self.numbers: dict[str, Any] = config.molora
        self.spec: dict[str, Any] = self.numbers["adapter"]
        self.tasks: list[str] = [task["name"] for task in self.numbers["tasks"]]
        self.is_pair = self.numbers["kind"] == "encoder_decoder"
        self.reads_sequences = self.spec.get("router", {}).get("granularity") == "sequence"
        self.passes: list[Pass] = []
        self.writer = getattr(base, "decoder", None) if self.is_pair else None
        prefix = base.base_model_prefix + "."
        for site in self.numbers["sites"]:
            self.replace(base, site["path"].removeprefix(prefix), site)
        for layer in self.numbers["layers"]:
            self.add_router(base, layer["path"].removeprefix(prefix), layer)
        for stack in [base.encoder, getattr(base, "decoder", None)] if self.is_pair else [base]:
            if stack is not None:
                stack.register_forward_pre_hook(self.enter, with_kwargs=True)
                stack.register_forward_hook(self.leave, with_kwargs=True, always_call=True)

    def replace(self, base: nn.Module, path: str, site: dict[str, Any]) -> None:
        """Puts a mixture beside a linear layer, or beside a part of a fused one."""
        parent, _, name = path.rpartition(".")
        parts = FUSED.get(parent.rpartition(".")[2], ())
        own, is_part = name, name in parts
        if is_part:
            parent, _, name = parent.rpartition(".")
        if path.startswith("decoder.") and not hasattr(base, "decoder"):
            return  # an encoder alone, under heads
        module = base.get_submodule(parent)
        linear = getattr(module, name)
        if not isinstance(linear, MixtureLinear):
            reads_source = self.is_pair and path.endswith(OF_SOURCE)
            linear = MixtureLinear(linear, self.passes, reads_source)
            setattr(module, name, linear)
        (d_in, width), first, part = linear.matrix().shape, 0, "molora"
        if is_part:
            width //= len(parts)
            first, part = parts.index(own) * width, f"molora_{own}"
        mixture = Mixture(path, self.spec, site["experts"], d_in, width, len(self.tasks))
        linear.add(part, mixture, first, width)

    def add_router(self, base: nn.Module, path: str, layer: dict[str, Any]) -> None:
        """Gives a layer a router that reads the layer's input and serves all its sites."""
        module = base.get_submodule(path)
        bank = Bank(self.spec["bank"], layer["experts"], layer["width"], layer["width"], 0)
        numbers = (layer["width"], bank.choices, bank.groups, len(self.tasks))
        module.molora_router = Router(self.spec["router"], *numbers)
        module.register_forward_pre_hook(partial(self.decide, path), with_kwargs=True)

    def decide(self, path: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Takes the decision of a layer's router before the layer is computed."""
        now, router = self.passes[-1], layer.molora_router
        hidden = args[0] if args else kwargs["hidden_states"]
        if now.votes is not None:
            now.votes.append(router(hidden, now)[1])
        else:
            now.shared = decided(router, path, hidden, now)
            if self.spec["layer_rule"] == "first":
                now.labels = now.shared.squeeze(1)

    def enter(self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Opens a pass, with what its layers read; the base's own forward sees none of our arguments."""
        own = {name: kwargs.pop(name, None) for name in OWN}
        if self.passes and self.passes[-1].votes is not None:
            return args, kwargs  # of the pass of the base alone
        bound = inspect.signature(stack.forward).bind(*args, **kwargs).arguments
        given = bound | bound.get("kwargs", {})
        tokens = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
        if self.reads_sequences and "attention_instances" in given:
            raise ValueError("vLLM puts several texts into a row, and decisions for a sequence would mix them")
        is_decoder = self.numbers["kind"] == "decoder" or stack is self.writer
        cache = given.get("cache", given.get("past_key_values")) if is_decoder else None
        whole = self.whole_mask(given.get("attention_mask"), tokens, cache)
        mask = whole[:, -tokens.shape[1] :]
        now = self.guided(Pass(mask), own, mask)
        if is_decoder:
            now.kept = dict(getattr(cache, KEPT, {}))
            if self.is_pair:
                # Keys and values of the source are computed by its mask; what is written starts with one token.
                states = given["encoder_hidden_states"]
                source = self.whole_mask(given.get("encoder_attention_mask"), states, None)
                now.source = self.guided(Pass(source), own, source)
                own["prompt_length"] = 1
            elif given.get("position_ids") is None and "position_ids" in inspect.signature(stack.forward).parameters:
                # Positions count real tokens, wherever the padding is.
                kwargs["position_ids"] = (whole.long().cumsum(1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
            if own["prompt_length"] is not None:
                seen = torch.arange(whole.shape[1], device=whole.device) < own["prompt_length"]
                now.prompt = (whole & seen)[:, -tokens.shape[1] :]
        self.passes.append(now)
        if self.spec["layer_rule"] == "vote" and not now.kept:
            self.vote(stack, args, kwargs, now)
        return args, kwargs

    def leave(self, stack: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Closes a pass, and keeps its decisions with the cache."""
        if self.passes and self.passes[-1].votes is None:
            now = self.passes.pop()
            name = "cache" if hasattr(output, "cache") else "past_key_values"
            for cache in (kwargs.get("cache"), kwargs.get("past_key_values"), getattr(output, name, None)):
                if now.kept and cache is not None:
                    setattr(cache, KEPT, now.kept)

    def whole_mask(self, mask: Any, tokens: Tensor, cache: Any) -> Tensor:
        """True for real tokens, of those in the cache too, `[B, S]`."""
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return mask.bool()
        if mask is not None and self.reads_sequences and not getattr(cache, KEPT, None):
            raise ValueError("decisions for a sequence read an attention_mask of shape [batch, tokens]")
        seen = cache.get_seq_length() if cache is not None else 0
        return torch.ones(tokens.shape[0], int(seen) + tokens.shape[1], dtype=torch.bool, device=tokens.device)

    def vote(self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], now: Pass) -> None:
        """Labels by a vote of the layers' routers in a pass of the base alone (Mixture-of-LoRAs)."""
        without = {name: value for name, value in kwargs.items() if name not in ("cache", "past_key_values")}
        alone = Pass(now.mask, now.prompt, now.tasks, now.bias, now.clusters, now.similarities, votes=[])
        self.passes.append(alone)
        try:
            with torch.no_grad():
                stack(*args, **without)
        finally:
            self.passes.pop()
        logits = torch.cat(alone.votes, 1)
        votes = largest(logits, 1).sum(1)
        probs = logits.softmax(2).mean(1).masked_fill(votes < votes.amax(1, keepdim=True), -1)
        now.labels = largest(probs, 1).to(logits.dtype)

    def guided(self, now: Pass, own: dict[str, Any], mask: Tensor) -> Pass:
        """Puts into a pass what routers are told of each sequence."""
        ids = self.task_ids(own["task"], mask)
        count = len(self.tasks)
        if count:
            rows = torch.full((len(mask), count), 1 / count, device=mask.device)
            now.tasks = torch.where(ids.unsqueeze(1) < 0, rows, F.one_hot(ids.clamp_min(0), count).to(rows.dtype))
        clusters, instructions = self.numbers.get("clusters"), self.numbers.get("instructions")
        vectors, unknown = own["text_vectors"], ids.unsqueeze(1) < 0
        if vectors is None and (clusters or instructions and unknown.any()):
            encoder, more = (clusters or instructions)["encoder"], "" if clusters else ", or a task"
            raise ValueError(f"its routers go by what texts are about: give text_vectors by {encoder}{more}")
        if clusters:
            centroids = torch.tensor(clusters["centroids"], device=mask.device)
            nearest = (vectors.to(centroids).unsqueeze(1) - centroids).square().sum(2).argmin(1)
            now.clusters = F.one_hot(nearest, clusters["clusters"]).to(centroids.dtype)
            missing = clusters["clusters"] - len(centroids)
            now.similarities = F.pad(F.normalize(vectors.to(centroids), dim=1) @ centroids.T, (0, missing))
        if instructions:
            experts = torch.tensor(instructions["vectors"], device=mask.device)
            queries = experts[ids.clamp_min(0)]
            queries = queries if vectors is None else torch.where(unknown, vectors.to(experts), queries)
            now.bias = instructions["weight"] * (unit(queries, 1e-8) @ unit(experts, 1e-8).T)
        return now

    def task_ids(self, task: Any, mask: Tensor) -> Tensor:
        """The number of each row's task, -1 for an unknown one."""
        task = self.numbers.get("task") if task is None else task
        if not isinstance(task, Tensor):
            given = task if isinstance(task, (list, tuple)) else [task]
            task = torch.tensor([self.task_number(one) for one in given], device=mask.device)
        return task.to(mask.device).reshape(-1).expand(len(mask))

    def task_number(self, task: str | int | None) -> int:
        """The number of a task, -1 for None."""
        if isinstance(task, str):
            if task not in self.tasks:
                raise ValueError(f"there is no task {task}, expected one of {', '.join(self.tasks)}")
            return self.tasks.index(task)
        return -1 if task is None else int(task)


class MoloraPreTrainedModel(PreTrainedModel):
    """What all classes below have in common; an object is always of a class that `with_base` makes."""

    config_class = MoloraConfig
    _supports_attention_backend = True
    supports_gradient_checkpointing = False  # layers are told of their pass while it lasts
    # The class of transformers that finds the base's.
    auto: Any = AutoModel

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        if not isinstance(config, PretrainedConfig):
            config = MoloraConfig.from_pretrained(config or name)
        return super(MoloraPreTrainedModel, with_base(cls, type(config))).from_pretrained(
            name, *args, config=config, **kwargs
        )

    @classmethod
    def _from_config(cls, config: MoloraConfig, **kwargs: Any) -> Any:
        return super(MoloraPreTrainedModel, with_base(cls, type(config)))._from_config(config, **kwargs)

    @classmethod
    def base(cls, config_class: type) -> type:
        """The base's class that a class on it has beside this one."""
        return architecture(cls.auto, config_class)

    def __init__(self, config: MoloraConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.mixed = Mixed(config, self.base_model)


def architecture(auto: Any, config_class: type) -> type:
    """The class that one of transformers' `AutoModel` classes finds for a configuration."""
    found = auto._model_mapping[config_class.base_config_class]
    return found[0] if isinstance(found, (list, tuple)) else found


@lru_cache(maxsize=None)
def with_base(cls: type, config_class: type) -> type:
    """A class of this file on the base's own."""
    cls = cls.__dict__.get("without_base", cls)
    base = cls.base(config_class)
    forward = with_own(cls.forward if "forward" in cls.__dict__ else base.forward)
    members = {"__module__": __name__, "__doc__": cls.__doc__, "config_class": config_class}
    return type(cls.__name__, (cls, base), members | {"forward": forward, "without_base": cls})


def with_own(forward: Any) -> Any:
    """The same forward pass, whose signature names our arguments too: `generate` refuses others."""

    def forwarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        own = {name: kwargs.pop(name) for name in OWN if name in kwargs}
        return forward(self, *args, **kwargs, **{name: value for name, value in own.items() if value is not None})

    signature = inspect.signature(forward)
    *named, last = signature.parameters.values()
    named += [last] if last.kind is not inspect.Parameter.VAR_KEYWORD else []
    known = {parameter.name for parameter in named}
    own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in OWN if name not in known]
    rest = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
    forwarded.__signature__ = signature.replace(parameters=[*named, *own, rest])
    return forwarded


class MoloraModel(MoloraPreTrainedModel):
    """The base model with the mixture, without heads."""


class MoloraForCausalLM(MoloraPreTrainedModel, GenerationMixin):
    """A decoder that writes."""

    auto = AutoModelForCausalLM

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the base's; decisions for a sequence are those for its prompt, with and without a cache."""
        prompt = kwargs.get("input_ids", kwargs.get("inputs_embeds")) if inputs is None else inputs
        if prompt is not None and not self.config.is_encoder_decoder:
            kwargs.setdefault("prompt_length", prompt.shape[1])
        if isinstance(kwargs.get("task"), (list, tuple)):
            # Rows of tensors are repeated where there are several beams.
            kwargs["task"] = torch.tensor([self.mixed.task_number(task) for task in kwargs["task"]])
        return super().generate(inputs, *args, **kwargs)


class MoloraForSeq2SeqLM(MoloraForCausalLM):
    """A model that reads one text and writes another."""

    auto = AutoModelForSeq2SeqLM


class MoloraForSequenceClassification(MoloraPreTrainedModel):
    """Heads of tasks: scores of the classes of the `task` that a batch is of, or the one number that it asks for."""

    @classmethod
    def base(cls, config_class: type) -> type:
        return next(one for one in cls.body(config_class).__mro__[1:] if issubclass(one, PreTrainedModel))

    @staticmethod
    def body(config_class: type) -> type:
        """The class of the model under the heads; of an encoder-decoder the encoder's."""
        is_pair = config_class.base_config_class().is_encoder_decoder
        return architecture(AutoModelForTextEncoding if is_pair else AutoModel, config_class)

    def __init__(self, config: MoloraConfig) -> None:
        PreTrainedModel.__init__(self, config)
        body = self.body(type(config))
        more = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(body).parameters else {}
        setattr(self, self.base_model_prefix, body(config, **more))
        outputs = {str(number): task.get("head") for number, task in enumerate(config.molora["tasks"])}
        heads = {number: nn.Linear(config.hidden_size, size) for number, size in outputs.items() if size}
        self.heads = nn.ModuleDict(heads)
        self.mixed = Mixed(config, self.base_model)
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """Scores `[B, C]` from the mean state of an encoder's tokens, or a decoder's last one."""
        labels, task = kwargs.pop("labels", None), kwargs.get("task")
        number = self.head_number(task)
        if task is None:
            kwargs["task"] = number
        tokens = kwargs["inputs_embeds"] if input_ids is None else input_ids
        mask = torch.ones(tokens.shape[:2]) if attention_mask is None else attention_mask
        mask = mask.bool().to(tokens.device)
        kwargs["return_dict"] = True
        states = self.base_model(input_ids=input_ids, attention_mask=mask.long(), **kwargs).last_hidden_state
        pooled = masked_mean(states, last_only(mask) if self.config.molora["kind"] == "decoder" else mask).squeeze(1)
        logits = self.heads[str(number)](pooled)
        loss = None
        if labels is not None:
            loss = F.mse_loss(logits.squeeze(1), labels) if logits.shape[1] == 1 else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def head_number(self, task: Any) -> int:
        """The number of the task whose head answers; a batch is of one task."""
        task = self.config.molora.get("task") if task is None else task
        given = {self.mixed.task_number(one) for one in (task if isinstance(task, (list, tuple, Tensor)) else [task])}
        known = {number: self.mixed.tasks[int(number)] for number in self.heads}
        if given == {-1} and len(known) == 1:
            return int(next(iter(known)))
        if len(given) != 1 or str(next(iter(given))) not in known:
            raise ValueError(f"a batch is of one task with a head: give as task one of {', '.join(known.values())}")
        return given.pop()
