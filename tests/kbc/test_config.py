"""Variants of the completion config: what each changes, against the plain one."""

import pytest

from configs.kbc.complete import VARIANTS, get_config


def differing(a: str, b: str) -> set[str]:
    """Dotted names of the values in which two variants differ."""

    def flat(config, prefix="") -> dict:
        return {
            k: v
            for key, value in config.items()
            for k, v in (flat(value, f"{prefix}{key}.") if hasattr(value, "items") else {f"{prefix}{key}": value}).items()
        }

    one, other = flat(get_config(a)), flat(get_config(b))
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


@pytest.mark.parametrize(
    "variant, base, names",
    [
        ("factorized_dense", "factorized", {"l2.mode"}), ("dnn_dense_random", "dnn_random", {"l2.mode"}),
        ("factorized_static", "factorized", {"words.kind", "words.normalise"}),
        ("factorized_static_dense", "factorized_static", {"l2.mode"}),
        ("prototypical", "factorized", {"net.terms"}), ("argsim_pp_random", "factorized_random", {"net.terms"}),
        ("factorized_random", "factorized", {"data.splits"}), ("fusion_cn82k", "fusion", {"data.splits"}),
    ],
)  # fmt: skip
def test_a_variant_changes_what_its_name_says(variant, base, names):
    assert differing(variant, base) == names


def test_static_arms_start_from_unit_vectors_of_general_text():
    words = get_config("factorized_static").words
    assert words.kind == "static" and words.normalise and get_config("factorized_static_dense").l2.mode == "dense"


def test_every_variant_can_be_had_and_others_not():
    assert all(get_config(variant).method == "kbc_jax.complete" for variant in VARIANTS)
    for wrong in ("dnn_static", "static", "factorized_dense_static"):
        with pytest.raises(ValueError, match="no variant"):
            get_config(wrong)
