"""The PyTorch side of `text_encoders.py`: reads commands from standard input, answers with CPU seconds.

Runs in an environment of its own with `torch` and `transformers`.
"""

import json
import sys
import time

import torch
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel

torch.set_num_threads(1)
torch.manual_seed(0)


def build(config: dict) -> torch.nn.Module:
    sizes = dict(
        vocab_size=config["vocabulary_size"],
        num_hidden_layers=config["num_layers"],
        hidden_size=config["hidden_dim"],
        num_attention_heads=config["num_heads"],
        intermediate_size=config["intermediate_dim"],
        hidden_dropout_prob=config["dropout"],
        attention_probs_dropout_prob=config["dropout"],
    )
    if config["method"] == "bert":
        return BertModel(BertConfig(**sizes))
    return AlbertModel(AlbertConfig(**sizes, embedding_size=config["embedding_dim"]))


def main():
    config = json.loads(sys.stdin.readline())
    backbone = build(config)
    classifier = torch.nn.Linear(config["hidden_dim"], config["num_classes"])
    shape = (config["batch"], config["length"])
    ids, mask = torch.randint(1, config["vocabulary_size"], shape), torch.ones(shape, dtype=torch.int64)
    labels = torch.randint(0, config["num_classes"], shape[:1])
    print(json.dumps({"parameters": sum(p.numel() for p in backbone.parameters())}), flush=True)
    for line in sys.stdin:
        kind, count = json.loads(line)
        start = time.process_time()
        for _ in range(count):
            if kind == "inference":
                backbone.eval()
                with torch.no_grad():
                    backbone(input_ids=ids, attention_mask=mask)
            else:
                backbone.train()
                backbone.zero_grad()
                classifier.zero_grad()
                logits = classifier(backbone(input_ids=ids, attention_mask=mask).pooler_output)
                torch.nn.functional.cross_entropy(logits, labels).backward()
        print(json.dumps((time.process_time() - start) / count), flush=True)


if __name__ == "__main__":
    main()
