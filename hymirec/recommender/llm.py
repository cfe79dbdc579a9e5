"""The causal LM inside the recommender: a tiny Llama by config, or any Hugging Face model, through `inputs_embeds`.

The token embeddings are cut away (no text enters here), and the padded 4-D mask and position ids come from `masks`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, LlamaConfig, PreTrainedConfig, PreTrainedModel

from hymirec.config import LLMConfig
from hymirec.errors import ConfigError, ModelMissingError
from hymirec.pretrained import pretrained_dir

# What transformers writes into a config but does not take back, or what says nothing about the architecture.
# Layers of a Llama block whose output is added to the residual stream.
WRITERS = ("o_proj", "down_proj")
_NOT_ARCHITECTURE = frozenset({"transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype"})


def llm_architecture(config: LLMConfig) -> dict[str, Any]:
    """The Hugging Face config of the LLM as plain values (with `model_type`), before any weights are read.

    Raises ModelMissingError when the preset's files are not on this machine.
    """
    if config.preset == "tiny":
        made: PreTrainedConfig = LlamaConfig(
            vocab_size=1,
            hidden_size=config.hidden_size,
            intermediate_size=config.expansion * config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=4096,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            tie_word_embeddings=False,
        )
    else:
        made = _pretrained(AutoConfig, config).get_text_config()
    return {key: value for key, value in made.to_dict().items() if key not in _NOT_ARCHITECTURE}


def _pretrained(kind: Any, config: LLMConfig, **kwargs: Any) -> Any:
    source = pretrained_dir(config.preset, config.model)
    try:
        return kind.from_pretrained(source, trust_remote_code=False, **kwargs)
    except (OSError, ValueError) as e:
        raise ModelMissingError(
            f"{source} is neither a directory with a model nor in the Hugging Face cache, and could not be fetched; "
            "download it where there is a network; set recommender.llm.preset=custom, recommender.llm.model=DIRECTORY"
        ) from e


def empty_llm(architecture: dict[str, Any], gradient_checkpointing: bool) -> PreTrainedModel:
    """The LLM's blocks with fresh weights and without its token embeddings.

    Raises ConfigError for a model type that transformers does not know.
    """
    values = dict(architecture)
    kind = values.pop("model_type")
    try:
        config = AutoConfig.for_model(kind, **values)
    except ValueError as e:
        raise ConfigError(f"recommender.llm: transformers knows no model type {kind!r}; choose another model") from e
    config.use_cache = False
    model: PreTrainedModel = AutoModel.from_config(config, attn_implementation="sdpa")
    cut_tokens(model)
    if gradient_checkpointing:
        # transformers renamed it in 5.2x; the old name is a deprecated alias there.
        kwargs = {"use_reentrant": False}
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    return model


def start_blocks(model: PreTrainedModel) -> None:
    """Fresh weights for the blocks of `tiny`, from torch's current random state.

    What reads the residual stream starts at half of Glorot's size, what writes to it near zero: the untrained stack
    hardly changes the items that pass through.
    """
    for name, module in _linear(model):
        nn.init.normal_(module.weight, std=0.02 if name.endswith(WRITERS) else 0.5 * module.in_features**-0.5)


def drop_outputs(model: PreTrainedModel, share: float) -> None:
    """Dropout on what each block of a Llama adds to the residual stream; the Hugging Face blocks have none there."""
    for name, module in _linear(model):
        if name.endswith(WRITERS):
            module.register_forward_hook(partial(_dropped, share))


def _linear(model: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _dropped(share: float, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return nn.functional.dropout(output, share, module.training)


def cut_tokens(model: PreTrainedModel) -> None:
    """Replace the token embeddings: they would be the largest table of a small LM, and no token enters."""
    model.set_input_embeddings(nn.Identity())


def load_llm_weights(model: PreTrainedModel, config: LLMConfig) -> float:
    """Copy the pretrained weights of the preset into `model`; nothing to do for `tiny`.

    Returns the root mean square of a token embedding's entries, the size of input that the blocks are used to (1 for
    `tiny`). Raises ModelMissingError when the weights are not on this machine.
    """
    if config.preset == "tiny":
        return 1.0
    pretrained = _pretrained(AutoModel, config, dtype=torch.float32)
    with torch.no_grad():
        size = float(pretrained.get_input_embeddings().weight.square().mean().sqrt())
        cut_tokens(pretrained)
        weights = dict(pretrained.named_parameters())
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return size
