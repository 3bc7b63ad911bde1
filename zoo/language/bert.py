"""BERT: a Transformer encoder that learns from both sides of a gap.

Devlin, Chang, Lee, Toutanova, NAACL 2019, https://arxiv.org/abs/1810.04805.

15 % of the tokens are predicted from all others; of these, 80 % are replaced by a mask, 10 % by a random token and 10 % stay.
Two segments, and whether the second one followed the first in the text, are a second task. What is learned serves as the
start of classifiers of texts and of tokens, and of readers that find an answer.

    h_0 = LayerNorm(token + segment + position)
    a   = LayerNorm(h + MultiHead(h));   h' = LayerNorm(a + W2 gelu(W1 a))        in each of L layers
    pooled = tanh(W h_L[CLS])

Differs from the paper: data of fixed length are made anew in each pass, rather than ten times beforehand.
"""

from __future__ import annotations

from typing import Any

import keras

from zoo.language.backbone import TextBackbone
from zoo.language.text_encoder import TextEncoder


@keras.saving.register_keras_serializable(package="zoo")
class Bert(TextEncoder):
    """BERT with a head.

    Args:
        vocabulary_size: int.
        num_layers: int.
        hidden_dim: int.
        num_heads: int. Divides `hidden_dim`.
        intermediate_dim: int. Width inside the feed-forward networks.
        max_sequence_length: int. Positions that are learned. Defaults to 512.
        num_segments: int. Defaults to 2.
        dropout: float. Defaults to 0.1.
        attention_dropout: float. Rate on attention probabilities. Defaults to 0.1.
        activation: str. `"gelu"`, the exact one, `"gelu_tanh"`, `"relu"` or `"silu"`.
        layer_norm_epsilon: float.
        initializer_stddev: float. Kernels and tables start from a normal distribution cut at two of these.
        use_pooler: bool. Whether there is a pooler, which text classification and sentence losses need.
        head: str or None. See `TextEncoder`, as for the rest.
        sentence_loss: str. Defaults to `"nsp"`.
        **kwargs: further arguments of `TextEncoder`.

    Example:

    ```python
    model = zoo.get("bert", weights="path/to/bert-base-uncased").with_head("classification", num_classes=3)
    model.compile("adam", metrics=["accuracy"])
    model.fit(model.text_inputs(texts), labels)
    ```

    Reference:
        Devlin et al. 2019.
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        max_sequence_length: int = 512,
        num_segments: int = 2,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation: str = "gelu",
        layer_norm_epsilon: float = 1e-12,
        initializer_stddev: float = 0.02,
        use_pooler: bool = True,
        head: str | None = None,
        sentence_loss: str = "nsp",
        **kwargs: Any,
    ) -> None:
        super().__init__(head, sentence_loss, **kwargs)
        self.set_backbone(
            TextBackbone(
                vocabulary_size,
                num_layers,
                hidden_dim,
                num_heads,
                intermediate_dim,
                max_sequence_length=max_sequence_length,
                num_segments=num_segments,
                dropout=dropout,
                attention_dropout=attention_dropout,
                activation=activation,
                layer_norm_epsilon=layer_norm_epsilon,
                initializer_stddev=initializer_stddev,
                use_pooler=use_pooler,
                dtype=self.dtype_policy,
                name="backbone",
            )
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        config = super().get_config()
        return {name: value for name, value in config.items() if name not in ("embedding_dim", "order")}
