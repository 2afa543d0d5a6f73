"""Layers of the SGI networks: PyTorch-style initialisation, NHWC layouts, fp32 parameters.

Legend: B batch, H height, W width, I input channels, O output channels, C channels.

No grouped convolution ever runs on the CPU (XLA:CPU takes ten times as long over one): 1x1 convolutions and patch
convolutions are matrix products, and the depthwise 3x3 convolution has a CPU form of its own.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def uniform_init(fan_in: int):
    """PyTorch's default for weights and biases of linear and convolution layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def kernel_init(std: float | None, fan_in: int):
    """Initialiser N(0, std^2), or PyTorch's default where `std` is None."""
    return uniform_init(fan_in) if std is None else nn.initializers.normal(std)


def inits(xavier: bool, fan_in: int):
    """Initialisers of kernel and bias: PyTorch's default, or Xavier's uniform and 0 (Dopamine)."""
    return (nn.initializers.xavier_uniform(), nn.initializers.zeros) if xavier else (uniform_init(fan_in),) * 2


def at_least_fp32(x):
    """Cast bfloat16 and integers to float32; float64 stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def minmax(x, eps: float = 1e-5):
    """Scale each sample to [0, 1] over all its entries: (x - min) / (max - min + eps). x [B, ...] -> fp32, same shape.

    The extremes are taken by position. The gradient of `x.max()` compares x with its maximum, and under jit a fused x may
    be rounded differently the second time: no entry matches and 0/0 gives NaN.
    """
    flat = at_least_fp32(x).reshape(x.shape[0], -1)
    low = jnp.take_along_axis(flat, flat.argmin(1, keepdims=True), 1)
    high = jnp.take_along_axis(flat, flat.argmax(1, keepdims=True), 1)
    return ((flat - low) / (high - low + eps)).reshape(x.shape)


def scale_gradient(x, factor: float):
    """The identity, whose gradient is multiplied by `factor`."""
    still = lax.stop_gradient(x)
    return still + factor * (x - still)


def _depthwise_by_shifts(x_BHWC, w, stride: int):
    """The convolution as nine shifted multiply-adds."""
    seen = _taps(x_BHWC, stride)
    return sum(seen[i][j] * w[i, j, 0] for i in range(3) for j in range(3))


def _taps(x_BHWC, stride: int):
    """The pixels under each of the 3 x 3 weights, nine times [B, ceil(H/stride), ceil(W/stride), C]."""
    height, width = ((n - 1) // stride + 1 for n in x_BHWC.shape[1:3])
    padded = jnp.pad(x_BHWC, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = [slice(i, i + (height - 1) * stride + 1, stride) for i in range(3)]
    columns = [slice(j, j + (width - 1) * stride + 1, stride) for j in range(3)]
    return [[padded[:, row, column] for column in columns] for row in rows]


def _depthwise_by_groups(x_BHWC, w, stride: int):
    """One grouped convolution."""
    return lax.conv_general_dilated(
        x_BHWC,
        w,
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x_BHWC.shape[-1],
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise3x3(x_BHWC, w, stride: int):
    """Depthwise 3x3 convolution, padding 1. x [B, H, W, C], w [3, 3, 1, C] -> [B, ceil(H/stride), ceil(W/stride), C].

    A grouped convolution, except on the CPU. The choice is made when the program is lowered, so a TPU program holds none
    of the CPU form. Forward and backward choose separately: differentiating through the choice would keep the
    intermediate results of both forms.
    """
    return lax.platform_dependent(
        x_BHWC,
        w,
        cpu=partial(_depthwise_by_shifts, stride=stride),
        default=partial(_depthwise_by_groups, stride=stride),
    )


def _depthwise_forward(x_BHWC, w, stride):
    return depthwise3x3(x_BHWC, w, stride), (x_BHWC, w)


def _shifted_gradients(x_BHWC, w, g_BHWC, stride: int):
    """Gradients of `_depthwise_by_shifts`, in the same form: its transpose by XLA would be nine padded arrays for dx."""
    height, width = x_BHWC.shape[1:3]
    rows, columns = g_BHWC.shape[1:3]
    padded = jnp.pad(x_BHWC, ((0, 0), (1, 1), (1, 1), (0, 0)))
    dw = [
        (padded[:, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride] * g_BHWC).sum(
            (0, 1, 2)
        )
        for i in range(3)
        for j in range(3)
    ]
    edges = [(1, n - (m - 1) * stride, stride - 1) for n, m in ((height, rows), (width, columns))]
    spread = lax.pad(g_BHWC, jnp.zeros((), g_BHWC.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    dx = sum(spread[:, 2 - i : 2 - i + height, 2 - j : 2 - j + width] * w[i, j, 0] for i in range(3) for j in range(3))
    return dx, jnp.stack(dw).reshape(w.shape)


def _depthwise_backward(stride, saved, g):
    def convolve(x, w, g):
        return jax.vjp(partial(_depthwise_by_groups, stride=stride), x, w)[1](g)

    return lax.platform_dependent(*saved, g, cpu=partial(_shifted_gradients, stride=stride), default=convolve)


depthwise3x3.defvjp(_depthwise_forward, _depthwise_backward)


class Dense(nn.Module):
    """Linear layer on the last axis, x [..., I] -> [..., O]; on images it is the 1x1 convolution. kernel [I, O], bias [O].

    std: of a normal kernel, in place of the uniform one. xavier: Xavier's uniform kernel, and a bias of 0.
    """

    features: int
    std: float | None = None
    dtype: Any = jnp.float32
    xavier: bool = False

    @nn.compact
    def __call__(self, x):
        fan_in = x.shape[-1]
        weights, biases = inits(self.xavier, fan_in)
        if self.std is not None:
            weights = nn.initializers.normal(self.std)
        kernel = self.param("kernel", weights, (fan_in, self.features))
        bias = self.param("bias", biases, (self.features,))
        flat = x.reshape(-1, fan_in).astype(self.dtype)  # a product with more axes has a far slower backward pass on the CPU
        return (flat @ kernel.astype(self.dtype) + bias.astype(self.dtype)).reshape(*x.shape[:-1], self.features)


class Conv(nn.Module):
    """Square convolution, x [B, H, W, I] -> [B, H', W', O]. kernel [size, size, I, O], bias [O]. padding: pixels, or 'SAME'."""

    features: int
    size: int
    stride: int = 1
    padding: int | str = 0
    dtype: Any = jnp.float32
    xavier: bool = False

    @nn.compact
    def __call__(self, x):
        weights, biases = inits(self.xavier, self.size**2 * x.shape[-1])
        kernel = self.param("kernel", weights, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", biases, (self.features,))
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            self.padding if isinstance(self.padding, str) else ((self.padding, self.padding),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + bias.astype(self.dtype)


class PatchConv(nn.Module):
    """Convolution of non-overlapping s x s patches (stride s, no padding): space to depth, then a matrix product.

    x [B, H, W, I], H and W divisible by s, -> [B, H/s, W/s, O]. kernel [s, s, I, O], bias [O].
    """

    features: int
    size: int
    std: float | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        s, (batch, height, width, channels) = self.size, x.shape
        fan_in = s * s * channels
        kernel = self.param("kernel", kernel_init(self.std, fan_in), (s, s, channels, self.features))
        bias = self.param("bias", uniform_init(fan_in), (self.features,))
        patches = x.astype(self.dtype).reshape(batch, height // s, s, width // s, s, channels).transpose(0, 1, 3, 2, 4, 5)
        y = patches.reshape(-1, fan_in) @ kernel.astype(self.dtype).reshape(fan_in, self.features) + bias.astype(self.dtype)
        return y.reshape(batch, height // s, width // s, self.features)


class DepthwiseConv(nn.Module):
    """Depthwise 3x3 convolution, padding 1, x [B, H, W, C]. kernel [3, 3, 1, C], bias [C]."""

    stride: int = 1
    std: float | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        kernel = self.param("kernel", kernel_init(self.std, 9), (3, 3, 1, channels))
        bias = self.param("bias", uniform_init(9), (channels,))
        return depthwise3x3(x.astype(self.dtype), kernel.astype(self.dtype), self.stride) + bias.astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation over every axis but the last, statistics in fp32, as PyTorch's BatchNorm2d.

    train=True normalises by the (biased) batch statistics and, where the caller made 'batch_stats' mutable, moves the
    running ones: running <- 0.9 running + 0.1 batch, with the *unbiased* batch variance. train=False uses the running ones.
    """

    scale: float = 1.0
    momentum: float = 0.9
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x, train: bool):
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.constant(self.scale), (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        x32 = at_least_fp32(x)
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = x32.mean(axes)
            var = jnp.square(x32 - mean).mean(axes)
            if self.is_mutable_collection("batch_stats"):
                count = x.size // channels
                moved = ((running_mean, mean), (running_var, var * (count / max(count - 1, 1))))
                for running, batch in moved:
                    running.value = self.momentum * running.value + (1 - self.momentum) * lax.stop_gradient(batch)
        else:
            mean, var = running_mean.value, running_var.value
        return ((x32 - mean) * (lax.rsqrt(var + self.eps) * scale) + bias).astype(x.dtype)


class NoisyDense(nn.Module):
    """Linear layer with factorised Gaussian noise (NoisyNet, Fortunato et al. 2018, section 3), x [..., I] -> [..., O].

    W = kernel + kernel_sigma * (f(e_in) f(e_out)^T), b = bias + bias_sigma * f(e_out), f(e) = sign(e) sqrt(|e|), with
    e ~ N(0, I) drawn from `key`, once for the whole batch. key None uses the means. sigma starts at std/sqrt(I) for the
    kernel and at std/sqrt(O) for the bias.

    dopamine: as its networks have it. The bias's sigma starts at std/sqrt(I); with std 0 this is a plain layer, from Xavier's
    uniform, and `key` changes nothing.
    """

    features: int
    std: float
    dtype: Any = jnp.float32
    dopamine: bool = False

    @nn.compact
    def __call__(self, x, key=None):
        fan_in, features = x.shape[-1], self.features
        constant = nn.initializers.constant
        plain = self.dopamine and not self.std
        weights, biases = inits(plain, fan_in)
        kernel = self.param("kernel", weights, (fan_in, features))
        bias = self.param("bias", biases, (features,))
        if plain:
            return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)
        kernel_sigma = self.param("kernel_sigma", constant(self.std * fan_in**-0.5), (fan_in, features))
        fan_bias = fan_in if self.dopamine else features
        bias_sigma = self.param("bias_sigma", constant(self.std * fan_bias**-0.5), (features,))
        if key is not None:
            e_in, e_out = (jax.random.normal(k, (n,)) for k, n in zip(jax.random.split(key), (fan_in, features), strict=True))
            f_in, f_out = (jnp.sign(e) * jnp.sqrt(jnp.abs(e)) for e in (e_in, e_out))
            kernel = kernel + kernel_sigma * jnp.outer(f_in, f_out)
            bias = bias + bias_sigma * f_out
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)
