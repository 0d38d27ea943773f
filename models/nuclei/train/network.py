"""The network: nnU-Net's PlainConvUNet with batch normalisation, in training and as it is in the package."""

import torch
from torch import nn

FEATURES = [16, 32, 48, 64, 96]
CONVOLUTIONS = [1, 2, 2, 2, 2]
# From the coarsest to the finest.
DECODER_CONVOLUTIONS = [2, 2, 1, 1]
SLOPE = 0.01
TILE, STEP, MPP = 256, 0.75, 0.5
CLASSES = [("background", (0, 0, 0)), ("nucleus", (230, 159, 0))]


class Block(nn.Module):
    """Convolution of 3 x 3 pixels, normalisation with statistics from training, leaky ReLU."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs, momentum=0.05)

    def forward(self, x):
        return nn.functional.leaky_relu(self.norm(self.conv(x)), SLOPE, inplace=True)


def blocks(inputs, outputs, count, stride):
    return nn.Sequential(*(Block(outputs if n else inputs, outputs, 1 if n else stride) for n in range(count)))


class Network(nn.Module):
    """What PlainConvUNet of dynamic-network-architectures is without deep supervision."""

    def __init__(self):
        super().__init__()
        inputs = [3, *FEATURES]
        self.encoder = nn.ModuleList(
            blocks(inputs[s], FEATURES[s], CONVOLUTIONS[s], 2 if s else 1) for s in range(len(FEATURES))
        )
        pairs = list(zip(FEATURES[::-1], FEATURES[-2::-1]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, at, 2, 2) for below, at in pairs)
        self.decoder = nn.ModuleList(
            blocks(2 * at, at, count, 1) for (_, at), count in zip(pairs, DECODER_CONVOLUTIONS)
        )
        self.logits = nn.Conv2d(FEATURES[0], len(CLASSES), 1)

    def forward(self, x):
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for up, stage in zip(self.up, self.decoder):
            x = stage(torch.cat((up(x), skips.pop()), 1))
        return self.logits(x)


def normalized(rgb):
    """Bytes as the network takes them: glass is near 0, which is also what lies around an image, and darkness near -1."""
    return (rgb.float() - 255.0) / 255.0


def folded(network):
    """The weights of the network by the names of PlainConvUNet, with each normalisation part of the convolution before it.

    Kernels are rounded to bf16, ties to even; biases stay f32. These are the weights of the package, as f32 tensors.
    """
    weights = {}

    def block(name, module):
        factor = module.norm.weight / torch.sqrt(module.norm.running_var + module.norm.eps)
        weights[f"{name}.conv.weight"] = module.conv.weight * factor[:, None, None, None]
        weights[f"{name}.conv.bias"] = module.norm.bias - module.norm.running_mean * factor

    for s, stage in enumerate(network.encoder):
        for j, module in enumerate(stage):
            block(f"encoder.stages.{s}.0.convs.{j}", module)
    for s, (up, stage) in enumerate(zip(network.up, network.decoder)):
        weights[f"decoder.transpconvs.{s}.weight"], weights[f"decoder.transpconvs.{s}.bias"] = up.weight, up.bias
        for j, module in enumerate(stage):
            block(f"decoder.stages.{s}.convs.{j}", module)
    last = len(network.up) - 1
    weights[f"decoder.seg_layers.{last}.weight"] = network.logits.weight
    weights[f"decoder.seg_layers.{last}.bias"] = network.logits.bias
    rounded = {name: w.detach().bfloat16().float() if w.dim() > 1 else w.detach().clone() for name, w in weights.items()}
    assert all(torch.isfinite(w).all() for w in rounded.values())
    return rounded


def forward(weights, x):
    """The network of a package: `weights` are those of `folded` or `load`, `x` is normalised, N x 3 x rows x columns."""
    conv = nn.functional.conv2d

    def block(name, x, stride=1):
        y = conv(x, weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"], stride, 1)
        return nn.functional.leaky_relu(y, SLOPE)

    skips = []
    for s, count in enumerate(CONVOLUTIONS):
        for j in range(count):
            x = block(f"encoder.stages.{s}.0.convs.{j}", x, 2 if s and not j else 1)
        skips.append(x)
    skips.pop()
    for s, count in enumerate(DECODER_CONVOLUTIONS):
        name = f"decoder.transpconvs.{s}"
        x = nn.functional.conv_transpose2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], 2)
        x = torch.cat((x, skips.pop()), 1)
        for j in range(count):
            x = block(f"decoder.stages.{s}.convs.{j}", x)
    last = f"decoder.seg_layers.{len(DECODER_CONVOLUTIONS) - 1}"
    return conv(x, weights[f"{last}.weight"], weights[f"{last}.bias"])
