"""Prioritised replay as a pytree on the device: one item a step, frames stored once, sampling by cumulative sums.

It lives in `TrainState.extra`, so it is saved with everything else, and donation makes writes free. Item t holds what was seen
before action a_t, the action, its reward, whether the episode ended with it, and whether o_t was an episode's first
observation. `observation` is a single uint8 frame [84, 84] (stacks are put together when sampling), or a feature vector.

Priorities are stored as p^alpha (Schaul et al. 2016). New items enter with 1 and can be drawn once `ahead` newer ones exist.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

BLOCK = 128  # items per partial sum


@flax.struct.dataclass
class Replay:
    """The buffer: N items and their priorities."""

    observation: jax.Array  # [N, ...]
    action: jax.Array  # int32 [N]
    reward: jax.Array  # float32 [N], clipped to -1, 0, 1
    done: jax.Array  # bool [N]
    start: jax.Array  # bool [N]
    priority: jax.Array  # float32 [N]
    count: jax.Array  # int32: items ever added; item i of them lies at i % N


class Transition(NamedTuple):
    """The batch of an ActorStream: T steps of play."""

    observation: jax.Array  # [T, ...]
    action: jax.Array  # int32 [T]
    reward: jax.Array  # float32 [T]
    done: jax.Array  # bool [T]
    start: jax.Array  # bool [T]


def create(capacity: int, shape: tuple[int, ...], dtype: jnp.dtype) -> Replay:
    """An empty buffer; the capacity is rounded up to whole blocks."""
    n = -(-capacity // BLOCK) * BLOCK
    return Replay(
        observation=jnp.zeros((n, *shape), dtype),
        action=jnp.zeros(n, jnp.int32),
        reward=jnp.zeros(n, jnp.float32),
        done=jnp.zeros(n, bool),
        start=jnp.zeros(n, bool),
        priority=jnp.zeros(n, jnp.float32),
        count=jnp.int32(0),
    )


def add(replay: Replay, new: Transition) -> Replay:
    """Append T items, over the oldest ones when full."""
    T, n = new.action.shape[0], replay.action.shape[0]
    where = (replay.count + jnp.arange(T)) % n

    def write(old: jax.Array, rows: jax.Array) -> jax.Array:
        if T == 1:  # an in-place slice; a scatter would not always be one
            return jax.lax.dynamic_update_slice_in_dim(old, rows.astype(old.dtype), where[0], 0)
        return old.at[where].set(rows.astype(old.dtype))

    return replay.replace(
        **{name: write(getattr(replay, name), rows) for name, rows in new._asdict().items()},
        priority=write(replay.priority, jnp.ones(T)),
        count=replay.count + T,
    )


def drawable(replay: Replay, *, ahead: int, behind: int) -> jax.Array:
    """Mask bool [N] of the items with `ahead` newer ones and, once old ones are overwritten, `behind` older ones."""
    n = replay.action.shape[0]
    newer = (replay.count - 1 - jnp.arange(n)) % n  # [N], the number of newer items
    return (newer < replay.count) & (newer >= ahead) & ((replay.count <= n) | (newer < n - behind))


def sample(replay: Replay, key: jax.Array, batch: int, *, ahead: int, behind: int) -> tuple[jax.Array, jax.Array]:
    """Slots [batch] drawn in proportion to their priority, with replacement, and those priorities [batch].

    The cumulative sum runs over sums of blocks, then within the drawn block: one pass over N numbers.
    """
    p = jnp.where(drawable(replay, ahead=ahead, behind=behind), replay.priority, 0).reshape(-1, BLOCK)
    totals = jnp.cumsum(p.sum(1))
    u = jax.random.uniform(key, (batch,)) * totals[-1]
    last = p.shape[0] - 1 - jnp.argmax(p.sum(1)[::-1] > 0)  # rounding can point past the last priority: into empty blocks,
    row = jnp.minimum(jnp.searchsorted(totals, u, side="right"), last)
    inside = u - jnp.where(row > 0, totals[row - 1], 0)
    cumulative = jnp.cumsum(p[row], 1)
    column = (cumulative <= inside[:, None]).sum(1)
    # or past the last item of the block.
    column = jnp.minimum(column, BLOCK - 1 - jnp.argmax(p[row][:, ::-1] > 0, 1))
    return row * BLOCK + column, p[row, column]


def at(replay: Replay, name: str, slots: jax.Array, offsets: range) -> jax.Array:
    """One field at slots + offsets: [B] -> [B, len(offsets), ...]."""
    return getattr(replay, name)[(slots[:, None] + jnp.array(offsets)) % replay.action.shape[0]]


def stacked_observations(replay: Replay, slots: jax.Array, steps: int, stack: int = 4) -> jax.Array:
    """Stacked observations of `steps` consecutive items: uint8 [B, steps, H, W, stack], oldest frame first.

    Frames from before the episode's start are black.
    """
    span = range(1 - stack, steps)
    frames = at(replay, "observation", slots, span)
    start = at(replay, "start", slots, span)
    # The very first items of a buffer that has not wrapped have nothing behind them but unwritten slots.
    start = start | ((slots[:, None] + jnp.array(span) == 0) & (replay.count <= replay.action.shape[0]))
    images = []
    for k in range(steps):
        visible = [jnp.ones(slots.shape, bool)]  # from the newest frame backwards: hidden once a start has been passed
        for j in range(stack - 1):
            visible.append(visible[-1] & ~start[:, k + stack - 1 - j])
        images.append(jnp.where(jnp.stack(visible[::-1], 1)[:, :, None, None], frames[:, k : k + stack], 0))
    return jnp.stack(images, 1).transpose(0, 1, 3, 4, 2)


def n_step(
    replay: Replay, slots: jax.Array, n: int | jax.Array, discount: float | jax.Array, longest: int
) -> tuple[jax.Array, jax.Array]:
    """The n-step returns sum_{i<n} discount^i r_{t+i} up to the episode's end, and discount^n, or 0 if it ended: each [B].

    n may be traced; it is at most `longest`.
    """
    alive, i = unbroken(replay, slots, longest), jnp.arange(longest)
    powers = jnp.where(i < n, discount**i, 0)
    return (at(replay, "reward", slots, range(longest)) * powers * alive[:, :-1]).sum(1), discount**n * alive[:, n]


def unbroken(replay: Replay, slots: jax.Array, steps: int) -> jax.Array:
    """Mask float32 [B, steps + 1]: entry k is 1 if no episode ended between items t and t + k."""
    done = at(replay, "done", slots, range(steps))
    alive = jnp.cumprod(1.0 - done, 1)
    return jnp.concatenate([jnp.ones_like(alive[:, :1]), alive], 1)


def reprioritise(replay: Replay, slots: jax.Array, priority: jax.Array) -> Replay:
    """Write p^alpha of the sampled items. Of a slot drawn twice either value may win (they are equal up to augmentation)."""
    return replay.replace(priority=replay.priority.at[slots].set(priority))
