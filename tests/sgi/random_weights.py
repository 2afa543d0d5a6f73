"""Random network variables without compiling the initialisers: for tests of networks and of their conversion."""

import jax
import numpy as np

from sgi.reference.state_dict import variable_shapes


def random_variables(net, seed=0):
    """Every array of the net perturbed, so that what starts at zero acts too."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key.startswith("kernel"):
            return noise * np.float32(np.prod(leaf.shape[:-1]) ** -0.5)
        return noise * np.float32(0.1) + (path[-1].key in ("scale", "var"))

    return jax.tree_util.tree_map_with_path(draw, variable_shapes(net))
