"""Layers that two or more methods share."""

from zoo.layers.adaptive_softmax import AdaptiveEmbedding, AdaptiveLogSoftmax
from zoo.layers.feed_forward import FeedForward
from zoo.layers.relative_attention import RelativeMultiHeadAttention
from zoo.layers.relative_transformer import RelativeTransformerLayer

__all__ = [
    "AdaptiveEmbedding",
    "AdaptiveLogSoftmax",
    "FeedForward",
    "RelativeMultiHeadAttention",
    "RelativeTransformerLayer",
]
