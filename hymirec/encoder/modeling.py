"""The content encoder as a Hugging Face model.

U texts  L tokens  D width of the backbone
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, LlamaConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from hymirec.config import EncoderConfig
from hymirec.encoder.presets import build_backbone, build_tokenizer, drop_pooler
from hymirec.encoder.tokenizer import pad_rows, token_ids

# What a config says about the files it came from, not about the model.
_NOT_ARCHITECTURE = frozenset({"transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype"})

# What a tokenizer remembers about the place it was read from; saved again, it would differ from what was read.
_WHERE_READ = ("is_local", "local_files_only", "name_or_path")


class ContentEncoderConfig(PreTrainedConfig):
    """`backbone` is the config of the wrapped model, as plain values (with `model_type`)."""

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
    """Text -> last hidden state at the special token, less `center`.

    The special token is appended after the text is cut, so it is always there. `center` (D) is zero until `centered`
    has measured the mean embedding of a catalogue: hidden states of language models share one large direction, and
    without it cosines spread (MiniLM and SmolLM2 untrained: mean cosine of two products .90 and .94, then .00).
    """

    config_class = ContentEncoderConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    center: Tensor

    def __init__(self, config: ContentEncoderConfig) -> None:
        super().__init__(config)
        values = dict(config.backbone or LlamaConfig().to_dict())
        backbone = AutoConfig.for_model(values.pop("model_type"), **values)
        self.backbone = AutoModel.from_config(backbone)
        drop_pooler(self.backbone)
        self.register_buffer("center", torch.zeros(backbone.hidden_size))
        self.tokenizer: Any = None
        self._takes_positions = _takes_positions(self.backbone)
        self.post_init()

    @classmethod
    def build(
        cls, config: EncoderConfig, texts: Iterable[str], seed: int, tokenizer: Any | None = None
    ) -> ContentEncoder:
        """A new encoder in fp32: from config with a tokenizer trained on `texts` (`tiny`), or of pretrained weights.

        `tokenizer`, if given, is one that `build_tokenizer` made from the same config and texts.
        Raises ModelMissingError when weights are not on this machine and ConfigError when they do not fit the config.
        """
        tokenizer = build_tokenizer(config, texts) if tokenizer is None else tokenizer
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = build_backbone(config, tokenizer)
        backbone.config.use_cache = False
        plain = {key: value for key, value in backbone.config.to_dict().items() if key not in _NOT_ARCHITECTURE}
        with torch.device("meta"):
            encoder = cls(ContentEncoderConfig(plain, config.special_token, config.max_tokens))
        encoder.backbone = backbone
        encoder.center = torch.zeros(encoder.width)
        encoder.tokenizer = tokenizer
        encoder.eval()
        return encoder

    @property
    def width(self) -> int:
        """D, the length of an embedding."""
        return int(self.backbone.config.hidden_size)

    def tokenize(self, texts: Sequence[str | None]) -> dict[str, Tensor]:
        """Token ids and mask (U, L) on the CPU, right-padded; an empty or missing text becomes `FALLBACK_TEXT`."""
        rows = token_ids(self.tokenizer, texts, self.config.special_token, self.config.max_tokens)
        return pad_rows(rows, int(self.tokenizer.pad_token_id))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings (U, D) of tokens and mask (U, L); padding may stand on either side."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._takes_positions:
            inputs["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        hidden_ULD = self.backbone(**inputs).last_hidden_state
        # The last real token of a row is its special token.
        last = (attention_mask * torch.arange(1, attention_mask.shape[1] + 1, device=input_ids.device)).argmax(dim=1)
        picked: Tensor = hidden_ULD[torch.arange(len(last), device=input_ids.device), last]
        # DeepSpeed casts parameters and leaves buffers in fp32.
        return picked - self.center.to(picked.dtype)

    def encode(self, texts: Sequence[str | None]) -> Tensor:
        """Embeddings (U, D) of texts, on the model's device."""
        batch = self.tokenize(texts)
        result: Tensor = self(**{key: value.to(self.device) for key, value in batch.items()})
        return result

    def centered(self, texts: Sequence[str | None], batch: int) -> ContentEncoder:
        """Set `center` to the mean embedding of some texts of the catalogue; returns the encoder itself."""
        if texts:
            total = torch.zeros(self.width, dtype=torch.float64)
            with torch.no_grad():
                self.center.zero_()
                for start in range(0, len(texts), batch):
                    total += self.encode(texts[start : start + batch]).double().sum(dim=0).cpu()
                self.center.copy_(total / len(texts))
        return self

    def recompute_activations(self) -> None:
        """Trade compute for memory while training (gradient checkpointing)."""
        # Renamed in transformers 5.24; the old name warns there.
        enable = getattr(self, "activation_checkpointing_enable", None) or self.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def save_pretrained(self, save_directory: str | os.PathLike[Any], *args: Any, **kwargs: Any) -> None:
        """Weights, config and tokenizer in one directory."""
        super().save_pretrained(save_directory, *args, **kwargs)
        for key in _WHERE_READ:
            self.tokenizer.init_kwargs.pop(key, None)
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


def _takes_positions(backbone: nn.Module) -> bool:
    """Whether positions 0, 1, ... are to be given; RoBERTa and its kin count from the padding id, by themselves."""
    counts_itself = hasattr(getattr(backbone, "embeddings", None), "padding_idx")
    return "position_ids" in inspect.signature(backbone.forward).parameters and not counts_itself
