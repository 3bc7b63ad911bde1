"""Makes `text_encoders/`: small Hugging Face BERTs and ALBERTs as they save them, and what they give for a padded batch.

Run once, in an environment of its own: `pip install torch transformers==5.24.0 sentencepiece==0.2.3`, then
`python tests/golden/make_text_encoders.py`. The tests that read the files need none of these.

Beside the models lie `vocab.txt` and `spiece.model`, with the ids that transformers' BertTokenizer and SentencePiece give.
"""

import io
import json
import unicodedata
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import transformers as hf
from transformers import AlbertConfig, BertConfig

FOLDER = Path(__file__).with_name("text_encoders")
VOCABULARY = 97
BERT = dict(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=20,
)  # fmt: skip
SMALL = {**BERT, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
ALBERT = dict(
    vocab_size=VOCABULARY, embedding_size=8, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=64, max_position_embeddings=20,
)  # fmt: skip
GROUPS = {**ALBERT, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}
LABELS = dict(id2label={0: "bad", 1: "so so", 2: "good"}, label2id={"bad": 0, "so so": 1, "good": 2})
MODELS = {
    "bert_pretraining": (hf.BertForPreTraining, BertConfig(**BERT)),
    "bert_model": (hf.BertModel, BertConfig(**SMALL, hidden_act="relu")),
    "bert_masked_lm": (hf.BertForMaskedLM, BertConfig(**SMALL)),
    "bert_classification": (hf.BertForSequenceClassification, BertConfig(**SMALL, **LABELS)),
    "bert_tokens": (hf.BertForTokenClassification, BertConfig(**SMALL, num_labels=4)),
    "bert_questions": (hf.BertForQuestionAnswering, BertConfig(**SMALL)),
    "albert_pretraining": (hf.AlbertForPreTraining, AlbertConfig(**ALBERT)),
    "albert_model": (hf.AlbertModel, AlbertConfig(**ALBERT)),
    "albert_groups": (hf.AlbertModel, AlbertConfig(**GROUPS)),
    "albert_masked_lm": (hf.AlbertForMaskedLM, AlbertConfig(**ALBERT)),
    "albert_classification": (hf.AlbertForSequenceClassification, AlbertConfig(**ALBERT, **LABELS)),
    "albert_tokens": (hf.AlbertForTokenClassification, AlbertConfig(**ALBERT, num_labels=4)),
    "albert_questions": (hf.AlbertForQuestionAnswering, AlbertConfig(**ALBERT)),
}
OUTPUTS = {
    "prediction_logits": "masked_lm_logits",
    "seq_relationship_logits": "sentence_logits",
    "sop_logits": "sentence_logits",
    "logits": "logits",
    "start_logits": "start_logits",
    "end_logits": "end_logits",
    "pooler_output": "pooled_output",
}
TEXTS = [
    "The mean of x, along an axis.",
    "Returns the unravellable ÉTUDE's 12,5 values",
    "mean mean meaning! xyzzy 数学 of (the) axes",
    "  spaces   and\ttabs\n``quoted''",
]
CORPUS = (Path(__file__).parents[2] / "LICENSE").read_text().lower().splitlines()


def inputs(vocabulary: int):
    tokens = torch.randint(5, vocabulary, (4, 15))
    segments = (torch.arange(15) >= 7).int().repeat(4, 1)
    mask = (torch.arange(15)[None] < torch.tensor([15, 11, 7, 3])[:, None]).int()
    return tokens, segments, mask


def make_models() -> None:
    for name, (model_class, config) in MODELS.items():
        torch.manual_seed(len(name))
        config._attn_implementation = "eager"
        model = model_class(config).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                norm = "norm" in key.lower() and key.endswith("weight")
                parameter.normal_(1.0 if norm else 0.0, 0.3)
        model.save_pretrained(FOLDER / name)
        tokens, segments, mask = inputs(config.vocab_size)
        with torch.no_grad():
            found = model(
                input_ids=tokens, token_type_ids=segments.long(), attention_mask=mask, output_hidden_states=True
            )
        arrays = {"token_ids": tokens.int().numpy(), "segment_ids": segments.numpy(), "padding_mask": mask.numpy()}
        arrays["hidden_states"] = torch.stack(found.hidden_states).numpy()
        for theirs, ours in OUTPUTS.items():
            if theirs in found:
                ours = "masked_lm_logits" if theirs == "logits" and "masked_lm" in name else ours
                arrays[ours] = found[theirs].numpy()
        np.savez_compressed(FOLDER / f"{name}.npz", **arrays)


def make_vocabulary() -> None:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz0123456789.,!()'",
        "the",
        "mean",
        "of",
    ]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] + ["##ing", "axis", "returns", "数", "and"]
    words += [f"[unused{index}]" for index in range(VOCABULARY)]
    path = FOLDER / "bert_pretraining" / "vocab.txt"
    path.write_text("\n".join(words[:VOCABULARY]) + "\n")
    tokenizer = hf.BertTokenizer(str(path))
    (FOLDER / "wordpiece_ids.json").write_text(
        json.dumps({text: tokenizer(text)["input_ids"] for text in TEXTS}) + "\n"
    )


def make_sentencepiece() -> None:
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=stream, model_type="unigram", vocab_size=VOCABULARY, pad_id=0,
        unk_id=1, bos_id=-1, eos_id=-1, control_symbols=["[CLS]", "[SEP]", "[MASK]"], character_coverage=0.99995,
        normalization_rule_name="nmt_nfkc", minloglevel=2,
    )  # fmt: skip
    content = stream.getvalue()
    (FOLDER / "albert_pretraining" / "spiece.model").write_bytes(content)
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)

    # Lower-cased, without accents, and with plain quotes, as ALBERT's tokenizer does beforehand
    def cleaned(text: str) -> str:
        text = unicodedata.normalize("NFKD", text.replace("``", '"').replace("''", '"'))
        return "".join(c for c in text if not unicodedata.combining(c)).lower()

    ids = {
        text: [processor.piece_to_id("[CLS]"), *processor.encode(cleaned(text)), processor.piece_to_id("[SEP]")]
        for text in TEXTS
    }
    (FOLDER / "sentencepiece_ids.json").write_text(json.dumps(ids) + "\n")


make_models()
make_vocabulary()
make_sentencepiece()
