"""Defines encoders: observations → features, in terms of torch.

Frames are height × width × channel uint8 as environments give them, which is already the
channels-last order that fast convolutions want. An image encoder also lists its convolutions as
`stages`, for executors that compute several of them in one pass over the images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rl_bench.nets.layers import Conv, Dense, PixelConv


@dataclass(frozen=True)
class ConvStep:
    """One convolution of a stage and what surrounds it.

    `relu_before` and `relu` put ReLUs before and behind it; `residual` adds the input of the step
    before to its output; `pooled` takes the maximum over 3 × 3 pixels around every second one.
    """

    conv: Conv
    relu: bool = False
    relu_before: bool = False
    residual: bool = False
    pooled: bool = False


class ImageEncoder(Protocol):
    """Frames [N, H, W, C] → features [N, F], through stages of convolutions and a dense layer."""

    default_hidden_size: int
    minimum_side: int
    stages: list[list[ConvStep]]
    relu_before_dense: bool
    dense: Dense

    def __call__(self, frames: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Encode frames, uint8 or floats in [0, 1], computing in `dtype`."""


def flatten_channels_last(x: torch.Tensor) -> torch.Tensor:
    """Flatten [N, C, H, W] in channels-last memory to [N, H·W·C] without a copy."""
    return x.permute(0, 2, 3, 1).flatten(1)


class NatureEncoder(nn.Module):
    """Three strided convolutions (32, 64, 64 filters) and a dense layer.

    Source: Mnih et al. 2015, "Human-level control through deep reinforcement learning", methods.
    """

    default_hidden_size = 512
    minimum_side = 36
    relu_before_dense = False

    def __init__(self, frame_shape: tuple[int, ...], hidden_size: int) -> None:
        super().__init__()
        height, width, channels = frame_shape
        self.conv1 = PixelConv(channels, 32, 8, stride=4)
        self.conv2 = Conv(32, 64, 4, stride=2)
        self.conv3 = Conv(64, 64, 3, stride=1)
        side = [(((n - 8) // 4 + 1) - 4) // 2 + 1 - 2 for n in (height, width)]
        self.dense = Dense(64 * side[0] * side[1], hidden_size)

    def forward(self, frames: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        x = self.conv1(frames, dtype, relu=True)
        x = self.conv2(x, relu=True)
        x = self.conv3(x, relu=True)
        return self.dense(flatten_channels_last(x), relu=True)

    @property
    def stages(self) -> list[list[ConvStep]]:
        return [[ConvStep(conv, relu=True) for conv in (self.conv1, self.conv2, self.conv3)]]


class ResidualBlock(nn.Module):
    """Two convolutions with a ReLU before each, whose output is added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, 3, padding=1)
        self.conv2 = Conv(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.conv1(F.relu(x), relu=True)) + x

    def steps(self) -> tuple[ConvStep, ConvStep]:
        return (
            ConvStep(self.conv1, relu_before=True, relu=True),
            ConvStep(self.conv2, residual=True),
        )


class ImpalaEncoder(nn.Module):
    """Three stages (16, 32, 32 filters) of convolution, max-pool and two residual blocks.

    Source: Espeholt et al. 2018 (arXiv 1802.01561), figure 3 right, without the LSTM, as in the
    Procgen paper.
    """

    default_hidden_size = 256
    minimum_side = 8
    relu_before_dense = True

    def __init__(self, frame_shape: tuple[int, ...], hidden_size: int) -> None:
        super().__init__()
        height, width, channels = frame_shape
        convs = [
            PixelConv(channels, 16, 3, padding=1),
            Conv(16, 32, 3, padding=1),
            Conv(32, 32, 3, padding=1),
        ]
        blocks = [[ResidualBlock(c), ResidualBlock(c)] for c in (16, 32, 32)]
        self.convs = nn.ModuleList(convs)
        self.blocks = nn.ModuleList(map(nn.ModuleList, blocks))
        for _ in self.convs:
            height, width = (height + 1) // 2, (width + 1) // 2
        self.dense = Dense(32 * height * width, hidden_size)

    def forward(self, frames: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        x = self.convs[0](frames, dtype)
        for stage, blocks in enumerate(self.blocks):
            x = self.convs[stage](x) if stage else x
            x = F.max_pool2d(x, 3, stride=2, padding=1)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
        return self.dense(flatten_channels_last(F.relu(x)), relu=True)

    @property
    def stages(self) -> list[list[ConvStep]]:
        return [
            [ConvStep(conv, pooled=True), *(step for block in pair for step in block.steps())]  # type: ignore
            for conv, pair in zip(self.convs, self.blocks, strict=True)
        ]


IMAGE_ENCODERS: dict[str, type[NatureEncoder] | type[ImpalaEncoder]] = {
    "nature": NatureEncoder,
    "impala": ImpalaEncoder,
}


class MlpEncoder(nn.Module):
    """Two tanh layers, for vectors."""

    default_hidden_size = 64

    def __init__(self, size: int, hidden_size: int) -> None:
        super().__init__()
        self.dense1 = Dense(size, hidden_size)
        self.dense2 = Dense(hidden_size, hidden_size)

    def forward(self, vectors: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        x = vectors.flatten(1).to(dtype)
        return torch.tanh(self.dense2(torch.tanh(self.dense1(x))))


def is_image(space: gymnasium.Space) -> bool:
    """Tell if observations are pictures: height × width × channels."""
    return len(space.shape or ()) == 3


def make_encoder(space: gymnasium.Space, encoder: str, hidden_size: int | None) -> nn.Module:
    """Make the encoder that fits a checked observation space."""
    shape = space.shape or ()
    if is_image(space):
        kind = IMAGE_ENCODERS[encoder]
        return kind(shape, hidden_size or kind.default_hidden_size)
    return MlpEncoder(int(np.prod(shape)), hidden_size or MlpEncoder.default_hidden_size)
