"""The networks of SGI (Schwarzer et al. 2021): encoder, transition model, heads, predictor, inverse model, as one module.

    net = SGINet(num_actions=6, encoder='M')
    variables = net.init(key, x_BHWC, action_B, method='init_all')
    z = net.apply(variables, x_BHWC, train=False, method='encode')

Legend: B batch, H = W = 7 latent pixels (84 for images; 11 for encoders with padding), C latent channels, D = H*W*C, A actions,
N atoms, P width of the projection.
Latents are NHWC and flatten in that order. Parameters, BatchNorm statistics, min-max scaling and softmax are fp32; `dtype`
is the precision of the products in between.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sgi.nets.layers import BatchNorm, Conv, Dense, DepthwiseConv, NoisyDense, PatchConv, at_least_fp32, minmax, scale_gradient
from training.errors import UserError

INVERSE_HIDDEN = 256
ENCODER_GRADIENT_SCALE = 2**-0.5  # of the Q heads (dueling networks, Wang et al. 2016)
NATURE_CHANNELS = (32, 64, 64)
IMPALA_CHANNELS, IMPALA_BLOCKS = (16, 32, 32), 2
RESNETS = {"M": ((32, 64, 64), 3, 2), "L": ((48, 96, 96), 5, 4)}  # group channels, blocks per group, expansion
ENCODERS = ("S", "S-bn", "S-same", "impala", *RESNETS)
DOPAMINE = ("S-same", "impala")  # no BatchNorm, Xavier's uniform
HEADS = ("dueling", "shared")


def scale_channels(channels: tuple[int, ...], width: float) -> tuple[int, ...]:
    """Channel counts times `width`, rounded down."""
    return tuple(int(c * width + 1e-6) for c in channels)  # 1e-6: 96 * (19/96) must not become 18


def flatten(z):
    """Flattened rows: [B, ...] -> [B, D]."""
    return z.reshape(z.shape[0], -1)


class Nature(nn.Module):
    """Nature CNN (Mnih et al. 2015): x [B, 84, 84, 4] -> [B, 7, 7, C]; `norm` puts BatchNorm before each ReLU.

    same: every convolution is padded (Dopamine): [B, 11, 11, C].
    """

    channels: tuple[int, ...]
    norm: bool
    dtype: Any = jnp.float32
    same: bool = False
    xavier: bool = False

    @nn.compact
    def __call__(self, x, train: bool):
        for i, (features, size, stride) in enumerate(zip(self.channels, (8, 4, 3), (4, 2, 1), strict=True)):
            padding = "SAME" if self.same else 0
            x = Conv(features, size, stride, padding, self.dtype, self.xavier, name=f"conv_{i}")(x)
            if self.norm:
                x = BatchNorm(name=f"norm_{i}")(x, train)
            x = nn.relu(x)
        return x


class Impala(nn.Module):
    """Encoder of IMPALA (Espeholt et al. 2018), four times as wide in BBF: x [B, 84, 84, 4] -> [B, 11, 11, C]."""

    channels: tuple[int, ...]
    dtype: Any = jnp.float32
    xavier: bool = True

    @nn.compact
    def __call__(self, x, train: bool):
        for stage, features in enumerate(self.channels):
            conv = partial(Conv, features, 3, 1, 1, self.dtype, self.xavier)
            x = conv(name=f"stage{stage}_conv")(x)
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            for block in range(IMPALA_BLOCKS):
                y = conv(name=f"stage{stage}_block{block}_1")(nn.relu(x))
                x = x + conv(name=f"stage{stage}_block{block}_2")(nn.relu(y))
        return nn.relu(x)


class InvertedResidual(nn.Module):
    """MobileNetV2-style block: x [B, H, W, I] -> [B, H/stride, W/stride, O], no activation after the sum.

    `depth` is the number of blocks of the whole encoder: the branch starts smaller in a deeper one (Fixup, Zhang et al.
    2019), and its last BatchNorm starts at scale 0, so that the block starts as its skip connection.
    """

    features: int
    stride: int
    expansion: int
    depth: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        hidden = round(x.shape[-1] * self.expansion)
        shrink = self.depth**-0.25
        y = Dense(hidden, shrink * (2 / hidden) ** 0.5, self.dtype, name="expand")(x)
        y = nn.relu(BatchNorm(name="expand_norm")(y, train))
        y = DepthwiseConv(self.stride, shrink * (2 / (9 * hidden)) ** 0.5, self.dtype, name="depthwise")(y)
        y = nn.relu(BatchNorm(name="depthwise_norm")(y, train))
        y = Dense(self.features, shrink * (2 / self.features) ** 0.5, self.dtype, name="project")(y)
        y = BatchNorm(scale=0.0, name="project_norm")(y, train)
        if self.stride == 1:
            return x + y
        std = (2 / (self.features * self.stride**2)) ** 0.5
        return PatchConv(self.features, self.stride, std, self.dtype, name="skip")(x) + y


class ResNet(nn.Module):
    """Three groups of inverted-residual blocks: x [B, 84, 84, 4] -> [B, 7, 7, C], signed."""

    channels: tuple[int, ...]
    blocks: int
    expansion: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        depth = len(self.channels) * self.blocks
        for group, (features, stride) in enumerate(zip(self.channels, (3, 2, 2), strict=True)):
            for block in range(self.blocks):
                name = f"group{group}_block{block}"
                step = stride if block == 0 else 1
                x = InvertedResidual(features, step, self.expansion, depth, self.dtype, name=name)(x, train)
        return x


class Transition(nn.Module):
    """One step in latent space, z [B, H, W, C] and action [B] int -> [B, H, W, C] before min-max scaling."""

    num_actions: int
    dtype: Any = jnp.float32
    norm: bool = True
    xavier: bool = False

    @nn.compact
    def __call__(self, z, action, train: bool):
        channels = z.shape[-1]
        one_hot = jax.nn.one_hot(action, self.num_actions, dtype=z.dtype)
        tiled = jnp.broadcast_to(one_hot[:, None, None], (*z.shape[:3], self.num_actions))
        conv = partial(Conv, channels, 3, 1, 1, self.dtype, self.xavier)
        y = nn.relu(conv(name="conv_1")(jnp.concatenate([z, tiled], -1)))
        if self.norm:
            y = BatchNorm(name="norm")(y, train)
        return nn.relu(conv(name="conv_2")(y))


class Conditioner(nn.Module):
    """FiLM coefficients of a goal: [B, 7, 7, C] -> [B, 2 (advantage, value), 2 (bias, scale), hidden]."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, goal):
        features = 2 * goal.shape[-1]
        y = nn.relu(Conv(features, 3, padding=1, dtype=self.dtype, name="conv_1")(goal))
        y = nn.relu(Conv(features, 3, padding=1, dtype=self.dtype, name="conv_2")(y))
        return Dense(4 * self.hidden, dtype=self.dtype, name="linear")(flatten(y)).reshape(-1, 2, 2, self.hidden)


class DuelingHead(nn.Module):
    """Distributional dueling head of noisy layers; with `conditioned`, FiLM by a goal after the hidden layers.

    advantage_1 and value_1 are also the projection of the self-prediction loss.
    """

    num_actions: int
    hidden: int
    atoms: int
    noisy_std: float
    conditioned: bool = False
    quirks: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        def noisy(features):
            return NoisyDense(features, self.noisy_std, self.dtype)

        self.advantage_1, self.value_1 = noisy(self.hidden), noisy(self.hidden)
        self.advantage_2, self.value_2 = noisy(self.num_actions * self.atoms), noisy(self.atoms)
        if self.conditioned:
            self.conditioner = Conditioner(self.hidden, self.dtype)

    def project(self, z):
        """Both hidden layers before their ReLU, mean weights, advantage first: z [B, 7, 7, C] -> [B, P]."""
        x = flatten(z)
        return jnp.concatenate([self.advantage_1(x), self.value_1(x)], -1)

    @nn.compact
    def __call__(self, z, goal=None, key=None):
        """Log-probabilities fp32 [B, A, N] of z (and goal) [B, 7, 7, C]; key None switches the noise off."""
        keys = [None] * 4 if key is None else jax.random.split(key, 4)
        x = flatten(scale_gradient(z, ENCODER_GRADIENT_SCALE))
        advantage = nn.relu(self.advantage_1(x, keys[0]))
        value = nn.relu(self.value_1(x, keys[1]))
        if self.conditioned:
            film = self.conditioner(goal)
            advantage = advantage * film[:, 0, 1] + film[:, 0, 0]
            # The reference modulates the advantage stream a second time here and drops the value stream's hidden layer.
            value = (advantage if self.quirks else value) * film[:, 1, 1] + film[:, 1, 0]
        advantage = at_least_fp32(self.advantage_2(advantage, keys[2])).reshape(-1, self.num_actions, self.atoms)
        value = at_least_fp32(self.value_2(value, keys[3]))[:, None]
        advantage = advantage + self.param("bias", nn.initializers.zeros, (self.atoms,))
        return dueling(value, advantage)


class SharedHead(nn.Module):
    """Dueling head on one hidden layer, which is the projection too (Dopamine; BBF): interface of `DuelingHead`."""

    num_actions: int
    hidden: int
    atoms: int
    noisy_std: float
    dtype: Any = jnp.float32

    def setup(self):
        def layer(features):
            return NoisyDense(features, self.noisy_std, self.dtype, dopamine=True)

        self.hidden_1, self.advantage_2 = layer(self.hidden), layer(self.num_actions * self.atoms)
        self.value_2 = layer(self.atoms)

    def project(self, z):
        """The hidden layer before its ReLU, mean weights: z [B, H, W, C] -> [B, P]."""
        return self.hidden_1(flatten(z))

    def __call__(self, z, key=None):
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        y = nn.relu(self.hidden_1(flatten(z), keys[0]))
        advantage = at_least_fp32(self.advantage_2(y, keys[1])).reshape(-1, self.num_actions, self.atoms)
        return dueling(at_least_fp32(self.value_2(y, keys[2]))[:, None], advantage)


def dueling(value, advantage):
    """Log-probabilities [B, A, N] of C51 from streams [B, 1, N] and [B, A, N]; with one atom the values themselves."""
    out = value + advantage - advantage.mean(1, keepdims=True)
    return jax.nn.log_softmax(out) if out.shape[-1] > 1 else out


class InverseModel(nn.Module):
    """Logits [..., A] of the action from two projections [..., 2 P]."""

    num_actions: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, y):
        hidden = nn.relu(Dense(INVERSE_HIDDEN, dtype=self.dtype, name="linear_1")(y))
        return Dense(self.num_actions, dtype=self.dtype, name="linear_2")(hidden)


class SGINet(nn.Module):
    """The network of SGI, with all its heads; each method is applied on its own: `net.apply(variables, ..., method='encode')`.

    encoder    'S' Nature CNN, 'S-bn' the same with BatchNorm, 'M' and 'L' the inverted-residual encoders of the paper;
               'S-same' and 'impala' as in Dopamine and BBF, whose transition model has no BatchNorm and whose weights start
               from Xavier's uniform
    width      multiplies the channel counts of the encoder (and so of the latents)
    head       'dueling': two hidden layers, together the projection, P = 2 * hidden; 'shared': one, P = hidden
    hidden     width of the hidden layers of the Q heads
    atoms      of the return distribution; 1: plain values
    noisy_std  initial standard deviation of the NoisyNet noise; 0: none, as in pretraining
    goal, inverse, bc   which optional heads exist: goal-conditioned Q, inverse dynamics, linear behaviour cloning
    quirks     as the reference code: no epsilon in min-max scaling (a constant latent gives NaN), and the goal head's value
               stream computed from the modulated advantage stream
    """

    num_actions: int
    encoder: str = "M"
    width: float = 1.0
    head: str = "dueling"
    hidden: int = 512
    atoms: int = 51
    noisy_std: float = 0.5
    goal: bool = True
    inverse: bool = True
    bc: bool = False
    quirks: bool = False
    renormalise: bool = True
    dtype: Any = jnp.float32

    def setup(self):
        if self.head not in HEADS:
            raise UserError(f"head is {self.head!r}: choose one of {', '.join(HEADS)}")
        dopamine = self.encoder in DOPAMINE
        if self.encoder == "impala":
            self.trunk = Impala(scale_channels(IMPALA_CHANNELS, self.width), self.dtype, name="encoder")
        elif self.encoder in RESNETS:
            channels, blocks, expansion = RESNETS[self.encoder]
            self.trunk = ResNet(scale_channels(channels, self.width), blocks, expansion, self.dtype, name="encoder")
        elif self.encoder in ENCODERS:
            channels = scale_channels(NATURE_CHANNELS, self.width)
            self.trunk = Nature(channels, self.encoder == "S-bn", self.dtype, dopamine, dopamine, name="encoder")
        else:
            raise UserError(f"encoder is {self.encoder!r}: choose one of {', '.join(ENCODERS)}")
        self.transition = Transition(self.num_actions, self.dtype, not dopamine, dopamine, name="dynamics")
        shape = self.num_actions, self.hidden, self.atoms, self.noisy_std
        shared = self.head == "shared"
        self.reward_head = (SharedHead if shared else DuelingHead)(*shape, dtype=self.dtype)
        if self.goal:
            self.goal_head = DuelingHead(*shape, conditioned=True, quirks=self.quirks, dtype=self.dtype)
        self.predictor = Dense(self.hidden if shared else 2 * self.hidden, dtype=self.dtype, xavier=dopamine)
        if self.inverse:
            self.inverse_model = InverseModel(self.num_actions, self.dtype, name="inverse")
        if self.bc:
            self.bc_linear = Dense(self.num_actions, dtype=self.dtype, name="bc")

    def encode(self, x_BHWC, train: bool):
        """Images in about [0, 1], float [B, 84, 84, 4] -> latents [B, 7, 7, C] float32, scaled if `renormalise`."""
        return self._renormalise(self.trunk(x_BHWC, train))

    def dynamics(self, z, action_B, train: bool):
        """The latent after `action_B` (int32): z [B, 7, 7, C] -> float32, scaled if `renormalise`."""
        return self._renormalise(self.transition(z, action_B, train))

    def rollout(self, z, actions_KB, train: bool):
        """Latents [K + 1, B, 7, 7, C]: z [B, 7, 7, C] itself, then those of K steps of `dynamics`.

        With 'batch_stats' mutable, every step moves the running statistics. Unrolled: a convolution inside a scan is ten
        times slower on the CPU.
        """
        latents = [z]
        for action_B in actions_KB:
            latents.append(self.dynamics(latents[-1], action_B, train))
        return jnp.stack(latents)

    def project(self, z, head: str = "goal"):
        """First layers of the 'goal' or the 'reward' head, mean weights, no ReLU: z [B, 7, 7, C] -> y [B, P]."""
        return at_least_fp32(getattr(self, f"{head}_head").project(z))

    def predict(self, y):
        """The predictor of the self-prediction loss: y [..., P] -> [..., P] float32."""
        return at_least_fp32(self.predictor(y))

    def inverse_logits(self, y, y_next):
        """Logits [..., A] float32 of the action that led from y to y_next, both [..., P]."""
        return at_least_fp32(self.inverse_model(jnp.concatenate([y, y_next], -1)))

    def bc_logits(self, y):
        """Linear behaviour-cloning head, y [..., P] -> logits [..., A] float32."""
        return at_least_fp32(self.bc_linear(nn.relu(y)))

    def q_log_probs(self, z, key=None):
        """Return distributions of the reward head: z [B, 7, 7, C] -> log-probabilities [B, A, N] float32.

        `key` draws the NoisyNet noise, once for the batch and apart for every layer; None means the mean weights.
        """
        return self.reward_head(z, key=key)

    def goal_q_log_probs(self, z, goal_BD, key=None):
        """Return distributions of the goal head, as `q_log_probs`; goal_BD: flattened latents (H, W, C), min-max scaled."""
        key = None if key is None else jax.random.fold_in(key, 1)  # not the noise of the reward head
        return self.goal_head(z, goal_BD.reshape(z.shape), key)

    def init_all(self, x_BHWC, action_B):
        """Touch every parameter once, for `init`."""
        z = self.encode(x_BHWC, train=False)
        self.q_log_probs(z)
        if self.goal:
            self.goal_q_log_probs(z, flatten(z))
        y = self.predict(self.project(self.dynamics(z, action_B, train=False), "reward"))
        if self.inverse:
            self.inverse_logits(y, y)
        if self.bc:
            self.bc_logits(y)

    def _renormalise(self, z):
        return minmax(z, eps=0.0 if self.quirks else 1e-5) if self.renormalise else at_least_fp32(z)
