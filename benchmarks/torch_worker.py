"""The PyTorch side of `language_models.py`: reads commands from standard input, answers with CPU seconds.

Runs in an environment of its own with `torch` and `compressive-transformer-pytorch` or `x-transformers`.
"""

import json
import sys
import time

import torch
from torch.nn import functional

torch.set_num_threads(1)
torch.manual_seed(0)


def compressive(config):
    from compressive_transformer_pytorch import AutoregressiveWrapper, CompressiveTransformer

    model = CompressiveTransformer(
        num_tokens=config["vocabulary_size"],
        dim=config["hidden_dim"],
        depth=config["num_layers"],
        heads=config["num_heads"],
        seq_len=config["window_length"],
        mem_len=config["memory_length"],
        cmem_len=config["compressed_memory_length"],
        cmem_ratio=config["compression_rate"],
        gru_gated_residual=False,
        reconstruction_loss_weight=1.0,
    )

    def step(tokens, targets, memories):
        logits, memories, auxiliary = model(tokens, memories=memories)
        return functional.cross_entropy(logits.transpose(1, 2), targets) + auxiliary, memories

    return model, step, AutoregressiveWrapper(model).generate


def recurrent(config):
    from x_transformers import Decoder, TransformerWrapper, XLAutoregressiveWrapper

    model = TransformerWrapper(
        num_tokens=config["vocabulary_size"],
        max_seq_len=config["window_length"],
        max_mem_len=config["memory_length"],
        tie_embedding=True,
        use_abs_pos_emb=False,
        attn_layers=Decoder(
            dim=config["hidden_dim"],
            depth=config["num_layers"],
            heads=config["num_heads"],
            attn_dim_head=config["hidden_dim"] // config["num_heads"],
            ff_mult=config["intermediate_dim"] / config["hidden_dim"],
            rel_pos_bias=True,
        ),
    )

    def step(tokens, targets, memories):
        logits, memories = model(tokens, mems=memories, return_mems=True)
        return functional.cross_entropy(logits.transpose(1, 2), targets), [m.detach() for m in memories]

    return model, step, XLAutoregressiveWrapper(model).generate


def main():
    config = json.loads(sys.stdin.readline())
    model, step, generate = {"compressive_transformer": compressive, "transformer_xl": recurrent}[config["method"]](
        config
    )
    optimizer = torch.optim.Adam(model.parameters())
    shape = (config["batch_size"], config["window_length"])
    tokens, targets = (torch.randint(0, config["vocabulary_size"], shape) for _ in range(2))
    print(json.dumps({"parameters": sum(p.numel() for p in model.parameters())}), flush=True)
    memories = None
    for line in sys.stdin:
        kind, count = json.loads(line)
        start = time.process_time()
        if kind == "train":
            for _ in range(count):
                optimizer.zero_grad()
                loss, memories = step(tokens, targets, memories)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
                optimizer.step()
        else:
            generate(tokens[:1], count)
        print(json.dumps((time.process_time() - start) / count), flush=True)


if __name__ == "__main__":
    main()
