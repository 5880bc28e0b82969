"""Networks: encoders and ActorCritic. The only place that picks a dtype; `layers.py` scales pixels.

Weights are float32 masters; each layer casts them to the network's compute dtype (bfloat16 or
float32) on the way in, so the same modules serve the learner (gradients arrive in float32) and
the acting copies, whose weights are cast once. Logits and values are always computed in float32.
Frames are height × width × channel uint8 as the environment gives them, which is already the
channels-last order that the fast convolutions want.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Discrete
from torch import nn

from rl_bench.errors import ConfigError
from rl_bench.native import dense
from rl_bench.native.method import method_of
from rl_bench.nets.heads import CategoricalHead, make_head
from rl_bench.nets.layers import Conv, Dense, Link, PixelConv, can_pack, convolve, packable
from rl_bench.nets.native_gradient import Features, Kept, Learning, LearningOutputs, as_taken
from rl_bench.nets.native_inference import Acting

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def flatten_channels_last(x: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] in channels-last memory → [N, H·W·C] without a copy."""
    return x.permute(0, 2, 3, 1).flatten(1)


class ImageEncoder(nn.Module):
    """Frames through stages of convolutions and a dense layer; `rectified`: a ReLU between."""

    default_hidden_size: int
    minimum_side: int
    stages: list[list[Link]]
    rectified = False
    dense: Dense

    def __init__(self, frame_shape: tuple[int, ...], hidden_size: int) -> None:
        super().__init__()
        self._kept = Kept()

    def forward(
        self, frames: torch.Tensor, dtype: torch.dtype, chosen: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Features of the frames, or of those at the indices `chosen`."""
        first, _ = self.stages[0][0]
        if first.native and not first.packs and torch.is_grad_enabled():
            frames, chosen = as_taken(frames, chosen, dtype)
            rows = len(frames if chosen is None else chosen)
            kind = frames.shape[1:], frames.dtype, dtype
            learning = self._kept.take(kind, rows, lambda: self.learning(frames, dtype, rows))
            return Features.apply(frames, chosen, self._kept, learning, *learning.parameters)
        # Whole frames are copied; indexing with [] would go pixel by pixel (4 × slower).
        x = frames if chosen is None else frames.index_select(0, chosen)
        for stage in self.stages:
            x = convolve(x, *stage, dtype=dtype)
        x = F.relu(x) if self.rectified else x
        return self.dense(flatten_channels_last(x).to(dtype), relu=True)

    def learning(self, frames: torch.Tensor, dtype: torch.dtype, room: int) -> Learning:
        """Made ready for up to `room` frames like these; of native layers."""
        return Learning(
            self.stages, self.dense, frames, rectified=self.rectified, dtype=dtype, room=room
        )


class NatureEncoder(ImageEncoder):
    """Three strided convolutions (32, 64, 64 filters) and a dense layer.

    Source: Mnih et al. 2015, "Human-level control through deep reinforcement learning", methods.
    """

    default_hidden_size = 512
    minimum_side = 36

    def __init__(self, frame_shape: tuple[int, ...], hidden_size: int) -> None:
        super().__init__(frame_shape, hidden_size)
        height, width, channels = frame_shape
        self.conv1 = PixelConv(channels, 32, 8, stride=4)
        self.conv2 = Conv(32, 64, 4, stride=2)
        self.conv3 = Conv(64, 64, 3, stride=1)
        self.stages = [[conv.link(relu=True) for conv in (self.conv1, self.conv2, self.conv3)]]
        side = [(((n - 8) // 4 + 1) - 4) // 2 + 1 - 2 for n in (height, width)]
        self.dense = Dense(64 * side[0] * side[1], hidden_size)


class ResidualBlock(nn.Module):
    """Two convolutions with a ReLU before each, whose outputs are added to what they take."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, 3, padding=1)
        self.conv2 = Conv(channels, channels, 3, padding=1)

    def links(self) -> tuple[Link, Link]:
        return self.conv1.link(rectified=True, relu=True), self.conv2.link(residual=True)


class ImpalaEncoder(ImageEncoder):
    """Three stages (16, 32, 32 filters) of convolution, max-pool and two residual blocks.

    Source: Espeholt et al. 2018 (arXiv 1802.01561), figure 3 right, without the LSTM, as in the
    Procgen paper.
    """

    default_hidden_size = 256
    minimum_side = 8
    rectified = True

    def __init__(self, frame_shape: tuple[int, ...], hidden_size: int) -> None:
        super().__init__(frame_shape, hidden_size)
        height, width, channels = frame_shape
        convs = [
            PixelConv(channels, 16, 3, padding=1),
            Conv(16, 32, 3, padding=1),
            Conv(32, 32, 3, padding=1),
        ]
        blocks = [[ResidualBlock(c), ResidualBlock(c)] for c in (16, 32, 32)]
        self.convs = nn.ModuleList(convs)
        self.blocks = nn.ModuleList(map(nn.ModuleList, blocks))
        self.stages = [
            [conv.link(pooled=True), *(link for block in pair for link in block.links())]
            for conv, pair in zip(convs, blocks, strict=True)
        ]
        for _ in self.convs:
            height, width = (height + 1) // 2, (width + 1) // 2
        self.dense = Dense(32 * height * width, hidden_size)


IMAGE_ENCODERS: dict[str, type[ImageEncoder]] = {
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

    def forward(
        self, vectors: torch.Tensor, dtype: torch.dtype, chosen: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Features of the vectors, or of those at the indices `chosen`."""
        vectors = vectors if chosen is None else vectors.index_select(0, chosen)
        x = vectors.flatten(1).to(dtype)
        return torch.tanh(self.dense2(torch.tanh(self.dense1(x))))


class ActorCritic(nn.Module):
    """Policy and value of an observation; images share one encoder, vectors have one each.

    Spaces choose the network: image → `nature` or `impala`, vector → MLP; Discrete → categorical,
    Box → diagonal Gaussian. `kernels` says who computes layers, losses, Adam's step and the choice
    of actions: torch, or, for images, native code.
    Raises: ConfigError for spaces it has no network for.
    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        encoder: str = "nature",
        hidden_size: int | None = None,
        precision: str = "fp32",
        kernels: str = "torch",
    ) -> None:
        super().__init__()
        assert kernels in ("native", "torch"), "auto is settled before"
        check_spaces(observation_space, action_space, encoder)
        self.dtype = DTYPES[precision]
        self.encoder = make_encoder(observation_space, encoder, hidden_size)
        shared = not isinstance(self.encoder, MlpEncoder)
        # On vectors the value's large gradients would swamp a shared two-layer encoder.
        self.value_encoder = (
            None if shared else make_encoder(observation_space, encoder, hidden_size)
        )
        features = _last_layer_size(self.encoder)
        self.head = make_head(action_space, features)
        self.value = Dense(features, 1)
        self._kept = Kept()
        self._acting: tuple[tuple[Any, ...], Acting] | None = None
        self._initialise()
        self.kernels = kernels if shared else "torch"
        # Whether `rl_bench.native` can choose its actions.
        self.acts_natively = self.kernels == "native" and isinstance(self.head, CategoricalHead)
        # Whether it has `forward_to_learn` and `backward`.
        self.learns_natively = self.acts_natively and features % dense.INPUTS == 0
        if self.kernels == "native":
            for layer in packable(self):
                layer.use_native()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self, obs: torch.Tensor, chosen: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Policy parameters [N, …] and values [N], float32, for observations [N, *].

        Or for those of them at the indices `chosen` [N], of which native layers copy no bytes.
        """
        features = self.encoder(obs, self.dtype, chosen).float()
        value_features = features
        if self.value_encoder is not None:
            value_features = self.value_encoder(obs, self.dtype, chosen).float()
        return self.head(features), self.value(value_features).squeeze(-1)

    def forward_to_learn(
        self, obs: torch.Tensor, chosen: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `forward` gives, without autograd: good until the next time, and for `backward`."""
        frames, rows = as_taken(obs, chosen, self.dtype)
        kind = frames.shape[1:], frames.dtype

        def make() -> LearningOutputs:
            assert isinstance(self.encoder, ImageEncoder)
            encoder = self.encoder.learning(frames, self.dtype, len(chosen))
            return LearningOutputs(encoder, self.head.dense, self.value)

        ready: LearningOutputs = self._kept.get(kind, len(chosen), make)
        return ready.forward(frames, rows)

    def backward(self, dpolicy: torch.Tensor, dvalues: torch.Tensor) -> None:
        """Add the gradient of what `forward_to_learn` gave last to those of the parameters.

        Of its first M rows, [M, A] and [M]; of what nobody learns from there is none.
        """
        self._kept.ready.backward(dpolicy, dvalues)

    def act(
        self, obs: torch.Tensor, noise: torch.Tensor, out: Sequence[torch.Tensor] | None = None
    ) -> Sequence[torch.Tensor]:
        """Sampled actions [N, *], their log-probabilities [N] and values [N], for `noise` [N, A].

        To be called of an acting copy, in inference mode. They are written into `out`; without it,
        what it returns is good until the next call.
        """
        if self.acts_natively:
            assert not self.training, "the weights of an acting copy change with load_weights only"
            frames = obs if obs.dtype == torch.uint8 else obs.to(method_of(self.dtype).values)
            return self._acting_on(frames)(frames, noise, out)
        policy, values = self(obs)
        actions = self.head.sample(policy, noise)
        choice = actions, self.head.log_prob(policy, actions), values
        if out is None:
            return choice
        for place, chosen in zip(out, choice, strict=True):
            place.copy_(chosen)
        return out

    def _acting_on(self, frames: torch.Tensor) -> Acting:
        """Made ready for this many of them."""
        kind = *frames.shape, frames.dtype, torch.get_num_threads()
        if self._acting is None or self._acting[0] != kind:
            assert isinstance(self.encoder, ImageEncoder)
            self.encoder(frames, self.dtype)  # packs what is not yet
            weight = torch.cat([self.head.dense.weight, self.value.weight])
            bias = torch.cat([self.head.dense.bias, self.value.bias])
            self._acting = kind, Acting(
                self.encoder.stages, self.encoder.dense, dense.pack(weight, bias, torch.float32),
                rows=len(frames), rectified=self.encoder.rectified,
            )  # fmt: skip
        return self._acting[1]

    def acting_copy(self) -> ActorCritic:
        """A copy for inference: encoders cast once to the compute dtype, no gradients.

        Native layers are packed, and encoders of images in bfloat16.
        """
        policy = copy.deepcopy(self).requires_grad_(False)
        for layer in packable(policy):
            layer.packs = layer.native
        packs = policy.value_encoder is None and can_pack()
        for encoder in (policy.encoder, policy.value_encoder):
            for layer in packable(encoder) if encoder is not None else ():
                if layer.native and (isinstance(layer, Conv) or dense.computes(self.dtype)):
                    continue  # its weights are cast when they are packed
                if self.dtype == torch.bfloat16:
                    layer.packs = packs
                # PixelConv stays: its weights are divided by 255 first, and would be rounded twice.
                if not isinstance(layer, PixelConv):
                    layer.to(self.dtype)
        return policy.eval()

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take published weights in place, cast to this copy's dtypes."""
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                tensor.copy_(weights[name])
        self._acting = None
        for layer in packable(self):
            layer.repack()

    def _initialise(self) -> None:
        """Orthogonal everywhere: gain √2 in encoders, 0.01 for the policy, 0.1 for the value.

        A first value that is nearly 0 everywhere keeps the first updates, in which hardly a reward
        was seen, from following its noise.
        """
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.orthogonal_(module.weight, math.sqrt(2))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.orthogonal_(self.head.dense.weight, 0.01)
        nn.init.orthogonal_(self.value.weight, 0.1)


def check_spaces(observations: gymnasium.Space, actions: gymnasium.Space, encoder: str) -> None:
    """Raises: ConfigError for spaces that no network here fits."""
    if not isinstance(observations, Box) or not np.issubdtype(observations.dtype, np.number):
        raise ConfigError(
            f"observations of the kind {observations} have no network here: Box is supported"
        )
    if len(observations.shape) == 3:
        side, minimum = min(observations.shape[:2]), IMAGE_ENCODERS[encoder].minimum_side
        if side < minimum:
            raise ConfigError(
                f"frames of {observations.shape[0]} × {observations.shape[1]} pixels are too small "
                f"for the {encoder} encoder: it needs at least {minimum} a side"
            )
    if not isinstance(actions, Discrete) and not (
        isinstance(actions, Box) and len(actions.shape) == 1
    ):
        raise ConfigError(
            f"actions of the kind {actions} have no policy here: "
            "Discrete and one-dimensional Box are supported"
        )


def make_encoder(space: gymnasium.Space, encoder: str, hidden_size: int | None) -> nn.Module:
    """The encoder that fits a checked observation space."""
    shape = space.shape or ()
    if len(shape) == 3:
        kind = IMAGE_ENCODERS[encoder]
        return kind(shape, hidden_size or kind.default_hidden_size)
    return MlpEncoder(int(np.prod(shape)), hidden_size or MlpEncoder.default_hidden_size)


def _last_layer_size(encoder: nn.Module) -> int:
    layers = [m for m in encoder.modules() if isinstance(m, nn.Linear)]
    return layers[-1].out_features
