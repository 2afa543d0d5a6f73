"""Helpers of the study's tables: the order of the arms, and numbers as text."""

import math

ORDER = (
    "fusion", "factorized", "dnn", "bilinear", "prototypical", "argsim_pp", "factorized_dense", "dnn_dense",
    "factorized_static", "factorized_static_dense",
)  # fmt: skip
REFERENCES = (
    "word PMI", "word PMI, no head-tail", "phrase PMI", "seen", "MaxArgSim", "MaxSim", "ArgSim (cosine)", "ArgSim (dot)",
    "minus novelty",
)  # fmt: skip
THIRDS = ("least novel", "middle", "most novel")


def arms(results: dict, split: str) -> list[str]:
    """Names of a split's arms: those of ORDER, then unlisted ones, then REFERENCES."""
    names = results[split]["arms"]
    ordered = [name for name in ORDER if name in names]
    unlisted = [name for name in names if name not in (*ORDER, *REFERENCES)]
    return [*ordered, *unlisted, *(name for name in REFERENCES if name in names)]


def trained_arms(results: dict, split: str) -> list[str]:
    """Names of a split's arms without the references."""
    return [name for name in arms(results, split) if name not in REFERENCES]


def show(value: dict, digits: int = 3) -> str:
    """Mean ± sd over seeds; the number alone where there is one seed."""
    spread = f" ± {value['sd']:.{digits}f}" if len(value["values"]) > 1 else ""
    return f"{value['mean']:.{digits}f}{spread}"


def interval(value: dict | None, digits: int = 3, sign: str = "") -> str | None:
    """An estimate with its interval as text; `sign` '+' for differences. None without a value."""
    if value is None or math.isnan(value["mean"]):
        return None
    mean, low, high = (f"{value[name]:{sign}.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def seed_note(results: dict, *splits: str) -> str:
    """Note for a caption if trained arms of a split differ in their number of seeds; else ''."""
    notes = []
    for split in splits:
        seeds = {name: results[split]["arms"][name]["seeds"] for name in trained_arms(results, split)}
        if len(set(seeds.values())) > 1:
            notes.append(f"{split}: " + ", ".join(f"{name} {n}" for name, n in seeds.items()))
    return f" Arms differ in seeds ({'; '.join(notes)})." if notes else ""
