"""How far the policy is from its reference, and controllers of the weight of the KL penalty.

Legend: N response tokens; leading axes (`...`) are free unless named.
"""

import jax
import jax.numpy as jnp

from training.errors import UserError


def control(
    kind: str,
    coefficient: jax.Array | float,
    kl: jax.Array | float,
    *,
    target: float | None = None,
    batch: int | None = None,
    horizon: int | None = None,
) -> jax.Array | float:
    """The KL weight after a rollout.

    'fixed'   stays.
    'rl4lms'  c (1 + 0.1 clip(kl / target - 1, -0.2, 0.2)), kl the mean over *tokens* (Ziegler et al. 2019, section 2.2, as in
              RL4LMs kl_controllers.py); without a target it stays. IMDB's targets, .5 and 1, are far above kl: c then falls by
              2 % each time, whatever kl is.
    'trl'     c (1 + clip(kl / target - 1, -0.2, 0.2) batch / horizon), kl the mean over *responses* of their sum over tokens,
              batch the number of responses (lm-human-preferences, trl 0.4).
    """
    if kind not in ("fixed", "rl4lms", "trl"):
        raise UserError(f"unknown KL controller {kind!r}: use 'fixed', 'rl4lms' or 'trl'")
    if kind == "fixed" or (kind == "rl4lms" and target is None):
        return coefficient
    if target is None or target <= 0:
        raise UserError(f"KL controller {kind!r} needs a target above 0, got {target}")
    error = jnp.clip(kl / target - 1, -0.2, 0.2)
    if kind == "rl4lms":
        return coefficient * (1 + 0.1 * error)
    if not batch or not horizon:
        raise UserError("KL controller 'trl' needs the batch size and a horizon (10000 in trl)")
    return coefficient * (1 + error * batch / horizon)
