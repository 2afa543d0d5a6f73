"""Image augmentation of SPR and SGI (Schwarzer et al. 2021): random shift, then intensity, drawn once for each frame stack."""

import jax
import jax.numpy as jnp


def prepare(x_uint8):
    """Pixels as float32 in [0, 1], of uint8, any shape."""
    return x_uint8.astype(jnp.float32) / 255


def random_shift(key, x_NHWC, pad: int = 4):
    """Pad by `pad` replicated pixels and crop back at offsets from {0, ..., 2 pad}, a pair for each of the N stacks."""
    count, height, width, frames = x_NHWC.shape
    offsets = jax.random.randint(key, (count, 2), 0, 2 * pad + 1)
    padded = jnp.pad(x_NHWC, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="edge")

    def crop(stack, offset):
        return jax.lax.dynamic_slice(stack, (offset[0], offset[1], 0), (height, width, frames))

    return jax.vmap(crop)(padded, offsets)


def augment(key, x_uint8, shift: int = 4, intensity: float = 0.05):
    """Shift and dim stacks of frames, uint8 [..., H, W, frames] -> float32 of that shape, in about [0, 1] (not clamped).

    Each stack (index into the leading axes) is shifted by up to `shift` pixels each way and multiplied by
    1 + intensity * clip(N(0, 1), -2, 2); its frames share both draws. 0 switches either off.
    """
    shift_key, intensity_key = jax.random.split(key)
    x = x_uint8.reshape(-1, *x_uint8.shape[-3:])
    x = prepare(random_shift(shift_key, x, shift))  # shifted as uint8: a quarter of the memory traffic
    factor = 1 + intensity * jnp.clip(jax.random.normal(intensity_key, (x.shape[0], 1, 1, 1)), -2, 2)
    return (x * factor).reshape(x_uint8.shape)
