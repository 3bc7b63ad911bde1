"""The PyTorch side of `image_flows.py`: reads commands from standard input, answers with CPU seconds.

Runs in an environment of its own with `torch`, `nflows` and `normflows`.
"""

import json
import sys
import time

import torch

torch.set_num_threads(1)
torch.manual_seed(0)


class Convolutions(torch.nn.Module):
    """Convolutions of 3x3, 1x1 and 3x3 pixels, as in Glow's couplings."""

    def __init__(self, channels, outputs, filters):
        super().__init__()
        layers = [torch.nn.Conv2d(channels, filters, 3, padding=1), torch.nn.Conv2d(filters, filters, 1)]
        self.hidden = torch.nn.ModuleList(layers)
        self.last = torch.nn.Conv2d(filters, outputs, 3, padding=1)

    def forward(self, inputs, context=None):
        for layer in self.hidden:
            inputs = torch.relu(layer(inputs))
        return self.last(inputs)


def perceptron(inputs, outputs, hidden):
    from nflows.nn.nets import MLP

    class Conditioner(MLP):
        def forward(self, inputs, context=None):
            return super().forward(inputs)

    return Conditioner([inputs], [outputs], hidden)


def nflows_nice(config):
    from nflows import distributions, flows, transforms

    size, hidden = config["num_features"], [config["hidden_dim"]] * config["num_hidden_layers"]
    couplings = [
        transforms.AdditiveCouplingTransform(
            (torch.arange(size) + index) % 2, lambda inputs, outputs: perceptron(inputs, outputs, hidden)
        )
        for index in range(4)
    ]
    return flows.Flow(transforms.CompositeTransform(couplings), distributions.StandardNormal([size])), (size,)


def nflows_glow(config):
    from nflows import distributions, flows, transforms

    height, width, channels = config["image_shape"]
    parts = transforms.MultiscaleCompositeTransform(config["num_scales"])
    shape = (channels, height, width)
    for _ in range(config["num_scales"]):
        layers, count = [transforms.SqueezeTransform()], 4 * shape[0]
        for _ in range(config["num_steps"]):
            coupling = transforms.AffineCouplingTransform(
                torch.arange(count) % 2, lambda inputs, outputs: Convolutions(inputs, outputs, config["filters"])
            )
            layers += [transforms.ActNorm(count), transforms.OneByOneConvolution(count), coupling]
        shape = parts.add_transform(transforms.CompositeTransform(layers), (count, shape[1] // 2, shape[2] // 2))
    return flows.Flow(parts, distributions.StandardNormal([channels * height * width])), (channels, height, width)


def normflows_glow(config):
    import normflows

    height, width, channels = config["image_shape"]
    scales, bases, blocks, merges = config["num_scales"], [], [], []
    for index in range(scales):
        count = channels * 2 ** (scales + 1 - index)
        steps = [normflows.flows.GlowBlock(count, config["filters"]) for _ in range(config["num_steps"])]
        blocks.append([*steps, normflows.flows.Squeeze()])
        if index:
            merges.append(normflows.flows.Merge())
        factor = 2 ** (scales - index)
        latent = (channels * factor if index else 2 * channels * factor, height // factor, width // factor)
        bases.append(normflows.distributions.GlowBase(latent))
    return normflows.MultiscaleFlow(bases, blocks, merges, class_cond=False), (channels, height, width)


def main():
    config = json.loads(sys.stdin.readline())
    makers = {("nflows", "nice"): nflows_nice, ("nflows", "glow"): nflows_glow, ("normflows", "glow"): normflows_glow}
    model, shape = makers[config["peer"], config["method"]](config)
    images = torch.rand(config["batch_size"], *shape) - 0.5
    model.train()
    # normflows asks for labels even where it uses none
    labels = {"y": None} if config["peer"] == "normflows" else {}
    model.log_prob(images, **labels)  # sets the actnorm layers
    model.eval()
    print(json.dumps({"parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}), flush=True)
    for line in sys.stdin:
        kind, count = json.loads(line)
        start = time.process_time()
        with torch.no_grad():
            for _ in range(count):
                model.log_prob(images, **labels) if kind == "log_prob" else model.sample(config["batch_size"])
        print(json.dumps((time.process_time() - start) / count), flush=True)


if __name__ == "__main__":
    main()
