# SPDX-License-Identifier: MIT OR Apache-2.0
# Copyright (c) The molora developers
"""Configuration of a model with a mixture of LoRA experts: that of its base, and the mixture in the field `molora`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, PretrainedConfig


class MoloraConfig(PretrainedConfig):
    """The base model's configuration with two fields more.

    `base_model_type` is the base's `model_type`. `molora` holds the mixture:

    - `kind`: `decoder`, `encoder` or `encoder_decoder`;
    - `adapter`: the specification, as in a run's `adapter_config.json`;
    - `sites`: path and number of experts of each linear layer with a mixture;
    - `layers`: the same of each layer with a router that serves all its sites;
    - `tasks`: name, labels and, with `head`, number of outputs of each task;
    - `task`: name of the task that inputs are of where none is given; unknown if null;
    - `clusters`, `instructions`: what texts' vectors are compared with, where routers go by that.
    """

    model_type = "molora"
    # The class of the base's configuration; set in the classes that `with_base` makes.
    base_config_class: ClassVar[type | None] = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration as an object that is one of the base's class too."""
        if cls.base_config_class is None:
            cls = with_base(config_dict["base_model_type"])
        return super(MoloraConfig, cls).from_dict(config_dict, **kwargs)


@lru_cache(maxsize=None)
def with_base(model_type: str) -> type[MoloraConfig]:
    """`MoloraConfig` on the configuration class of a base model."""
    base = CONFIG_MAPPING[model_type]
    members = {"__module__": __name__, "model_type": MoloraConfig.model_type, "base_config_class": base}
    return type(MoloraConfig.__name__, (base, MoloraConfig), members)
