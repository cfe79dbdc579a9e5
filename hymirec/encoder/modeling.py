"""The content encoder as a Hugging Face model.

U texts  L tokens  D width of the backbone
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from hymirec.config import EncoderConfig
from hymirec.encoder.tokenizer import train_tokenizer
from hymirec.errors import ModelMissingError
from hymirec.pretrained import pretrained_dir

# What an item without any text is encoded as.
FALLBACK_TEXT = "unknown item"


class ContentEncoderConfig(PretrainedConfig):
    """`backbone` is the config of the wrapped model, as plain values."""

    model_type = "hymirec_content_encoder"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        special_token: str = "<|item|>",
        max_tokens: int = 32,
        **kwargs: Any,
    ) -> None:
        self.backbone = backbone
        self.special_token = special_token
        self.max_tokens = max_tokens
        super().__init__(**kwargs)


class ContentEncoder(PreTrainedModel):
    """Text -> last hidden state at the special token, which is appended after truncation and so is always there."""

    config_class = ContentEncoderConfig
    base_model_prefix = "backbone"
    _supports_sdpa = True

    def __init__(self, config: ContentEncoderConfig) -> None:
        super().__init__(config)
        values = dict(config.backbone or LlamaConfig().to_dict())
        backbone = AutoConfig.for_model(values.pop("model_type"), **values)
        self.backbone = AutoModel.from_config(backbone)
        self.tokenizer: Any = None
        self.post_init()

    @classmethod
    def build(cls, config: EncoderConfig, texts: Iterable[str], seed: int) -> ContentEncoder:
        """A new encoder: from config with a tokenizer trained on `texts` (`tiny`), or around pretrained weights.

        Raises ModelMissingError when the weights are not on this machine.
        """
        torch.manual_seed(seed)
        if config.preset == "tiny":
            return cls._tiny(config, texts)
        source = pretrained_dir(config.preset, config.model)
        try:
            backbone = AutoModel.from_pretrained(source, trust_remote_code=False, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except OSError as e:
            raise ModelMissingError(
                f"{source} is neither a local directory nor in the Hugging Face cache, and could not be fetched; "
                "download it where there is a network and set encoder.preset=custom, encoder.model=DIRECTORY"
            ) from e
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.add_special_tokens({"additional_special_tokens": [config.special_token]})
        if len(tokenizer) > backbone.get_input_embeddings().num_embeddings:
            backbone.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        embeddings = backbone.get_input_embeddings().weight
        token = tokenizer.convert_tokens_to_ids(config.special_token)
        with torch.no_grad():
            embeddings[token] = embeddings[:token].mean(dim=0)
        wrapped = cls(ContentEncoderConfig(backbone.config.to_dict(), config.special_token, config.max_tokens))
        wrapped.backbone.load_state_dict(backbone.state_dict())
        wrapped.tokenizer = tokenizer
        wrapped.eval()
        return wrapped

    @classmethod
    def _tiny(cls, config: EncoderConfig, texts: Iterable[str]) -> ContentEncoder:
        tokenizer = train_tokenizer((text or FALLBACK_TEXT for text in texts), config.vocab_size, config.special_token)
        backbone = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=2 * config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=max(64, config.max_tokens),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )
        encoder = cls(ContentEncoderConfig(backbone.to_dict(), config.special_token, config.max_tokens))
        encoder.tokenizer = tokenizer
        encoder.eval()
        return encoder

    @property
    def width(self) -> int:
        """D, the length of an embedding."""
        return int(self.backbone.config.hidden_size)

    def tokenize(self, texts: Sequence[str | None]) -> dict[str, Tensor]:
        """Token ids and mask (U, L) on the CPU, right-padded; an empty or missing text becomes `FALLBACK_TEXT`."""
        item = self.tokenizer.convert_tokens_to_ids(self.config.special_token)
        cleaned = [text if text and text.strip() else FALLBACK_TEXT for text in texts]
        ids = self.tokenizer(cleaned, add_special_tokens=False, truncation=True, max_length=self.config.max_tokens - 1)[
            "input_ids"
        ]
        longest = max((len(row) for row in ids), default=0) + 1
        tokens = torch.full((len(ids), longest), self.tokenizer.pad_token_id, dtype=torch.int64)
        mask = torch.zeros((len(ids), longest), dtype=torch.int64)
        for row, values in enumerate(ids):
            tokens[row, : len(values) + 1] = torch.tensor([*values, item])
            mask[row, : len(values) + 1] = 1
        return {"input_ids": tokens, "attention_mask": mask}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings (U, D) of tokens and mask (U, L); padding may stand on either side."""
        position = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        hidden_ULD = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position
        ).last_hidden_state
        # The last real token of a row is its special token.
        last = (attention_mask * torch.arange(1, attention_mask.shape[1] + 1, device=input_ids.device)).argmax(dim=1)
        picked: Tensor = hidden_ULD[torch.arange(len(last), device=input_ids.device), last]
        return picked

    def encode(self, texts: Sequence[str | None]) -> Tensor:
        """Embeddings (U, D) of texts, on the model's device."""
        batch = self.tokenize(texts)
        result: Tensor = self(**{key: value.to(self.device) for key, value in batch.items()})
        return result

    def save_pretrained(self, save_directory: str | os.PathLike[Any], *args: Any, **kwargs: Any) -> None:
        """Weights, config and tokenizer in one directory."""
        super().save_pretrained(save_directory, *args, **kwargs)
        self.tokenizer.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Read what `save_pretrained` wrote."""
        model = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        encoder = model[0] if isinstance(model, tuple) else model
        # The class itself: AutoTokenizer would look for a model type that only this project knows.
        encoder.tokenizer = PreTrainedTokenizerFast.from_pretrained(Path(pretrained_model_name_or_path))
        return model

    def _init_weights(self, module: nn.Module) -> None:
        """The backbone initialises itself."""
