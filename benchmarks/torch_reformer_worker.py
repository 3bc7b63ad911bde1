"""The PyTorch side of `reformer_speed.py`: reads commands from standard input, answers with CPU seconds.

Runs in an environment of its own with `torch` and `transformers`.
"""

import json
import sys
import time

import torch
from transformers import ReformerConfig, ReformerModelWithLMHead

torch.set_num_threads(1)
torch.manual_seed(0)


def main():
    config = json.loads(sys.stdin.readline())
    layers = [config["attention_layers"][i % len(config["attention_layers"])] for i in range(config["num_layers"])]
    model = ReformerModelWithLMHead(
        ReformerConfig(
            vocab_size=config["vocabulary_size"],
            hidden_size=config["hidden_dim"],
            num_attention_heads=config["num_heads"],
            attention_head_size=config["hidden_dim"] // config["num_heads"],
            feed_forward_size=config["intermediate_dim"],
            attn_layers=layers,
            axial_pos_shape=config["axial_shape"],
            axial_pos_embds_dim=config["axial_dims"],
            lsh_attn_chunk_length=config["chunk_length"],
            local_attn_chunk_length=config["local_chunk_length"],
            num_hashes=config["num_rounds"],
            num_buckets=config["num_buckets"],
            max_position_embeddings=config["length"],
            hidden_dropout_prob=0.0,
            is_decoder=True,
        )
    )
    tokens = torch.randint(0, config["vocabulary_size"], (1, config["length"]))
    print(json.dumps({"parameters": sum(p.numel() for p in model.parameters())}), flush=True)
    for line in sys.stdin:
        kind, count = json.loads(line)
        start = time.process_time()
        for _ in range(count):
            if kind == "forward":
                model.eval()
                with torch.no_grad():
                    model(tokens, labels=tokens)
            else:
                model.train()
                model.zero_grad()
                model(tokens, labels=tokens).loss.backward()
        print(json.dumps((time.process_time() - start) / count), flush=True)


if __name__ == "__main__":
    main()
