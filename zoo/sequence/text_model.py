"""What models of text share that own a tokenizer."""

from collections.abc import Mapping
from typing import Any

from zoo.model import ZooModel
from zoo.sequence.tokenizer import load_tokenizer


class TextModel(ZooModel):
    """Base of models whose checkpoint holds a tokenizer. Subclasses set `vocabulary_size`."""

    vocabulary_size: int

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._tokenizer_json: bytes | None = None

    @property
    def assets(self) -> dict[str, bytes]:
        """The tokenizer, once the model has one."""
        return {"tokenizer.json": self._tokenizer_json} if self._tokenizer_json else {}

    def set_assets(self, assets: Mapping[str, bytes]) -> None:
        """Sets the tokenizer from `{"tokenizer.json": ...}`.

        Raises:
            ValueError: for other files, a malformed tokenizer, or one of another vocabulary size.
        """
        if set(assets) - {"tokenizer.json"}:
            raise ValueError(f"Only `tokenizer.json` belongs to a model of text. Received: {sorted(assets)}")
        if assets:
            size = load_tokenizer(assets["tokenizer.json"]).get_vocab_size()
            if size != self.vocabulary_size:
                raise ValueError(f"The tokenizer must have {self.vocabulary_size} tokens. Received: {size}")
            self._tokenizer_json = assets["tokenizer.json"]

    @property
    def tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` of the model.

        Raises:
            ValueError: if the model has none.
        """
        if self._tokenizer_json is None:
            raise ValueError(
                "This model has no tokenizer. Load trained weights (beside those of Hugging Face must lie tokenizer.json, "
                "vocab.txt or spiece.model), give it one by `set_assets`, or pass token ids instead of text."
            )
        return load_tokenizer(self._tokenizer_json)
