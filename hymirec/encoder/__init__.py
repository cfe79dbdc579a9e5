"""Item text -> embedding: a Hugging Face model whose last hidden state at one appended special token is the item."""

from hymirec.encoder.encode import EncodeStats, encode_part
from hymirec.encoder.modeling import ContentEncoder, ContentEncoderConfig
from hymirec.encoder.task import Stage1Task

__all__ = ["ContentEncoder", "ContentEncoderConfig", "EncodeStats", "Stage1Task", "encode_part"]
