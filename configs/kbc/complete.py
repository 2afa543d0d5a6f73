"""Commonsense knowledge-base completion on ConceptNet-100k (Jastrzębski et al. 2018; Li et al. 2016).

    python -m launch.train --config configs/kbc/complete.py:factorized --config.population=5 --workdir runs/kbc/factorized
    results/kbc/run.sh runs/kbc          every variant below that has a score, a run a seed

batch = triples of an update, step = an epoch

Variants, with the test accuracy to expect on the official, the redrawn and the random split: means of 5 seeds (static: 3), sd
.002 to .006, from results/kbc/1-completion.table.json. A plain variant trains once and is selected twice, on the official
negatives and on those drawn anew; <variant>_random trains on the random split.
    factorized        .915  .886  .802    the paper's baseline
    prototypical      .817  .777  .763    without the head-tail term
    argsim_pp         not run             with that term alone
    dnn, bilinear     .911  .882  .818 and .898  .867  .789    Li et al. 2016
    fusion            .923  .892  .834    strong model: pairs + three-way product + hidden layer on words and MiniLM sentences
    factorized_dense  .913  .885  .803    L2 on the whole word table, as in the authors' code
    dnn_dense         not run             the same for DNN
    factorized_static, factorized_static_dense    .910  .884 and .905  .878    words start from vectors of general text, so that
                      also those without a training triple have one of their own, which dense L2 takes from them
    <model>_cn82k     trained on CN-82K: factorized_cn82k has a link-prediction MRR of .016 (factorized on CN-100K: .045),
                      3 seeds, results/kbc/9-links.table.json; the others: not run
    tiny, tiny_dnn, tiny_bilinear, tiny_dense    tests

One seed takes 2-5 minutes on 2 cores, the whole of run.sh 80 minutes with 2 workers on 2 idle cores (docs/kbc.md). Without a
data directory every variant runs on embedded toy facts.
"""

from ml_collections import ConfigDict

from training.config import base

MODELS = ("factorized", "prototypical", "argsim_pp", "dnn", "bilinear", "fusion")
SPLITS = {"": ("official", "redrawn"), "_random": ("random",), "_cn82k": ("cn82k",)}
DENSE = ("factorized_dense", "dnn_dense", "factorized_dense_random", "dnn_dense_random")
STATIC = ("factorized_static", "factorized_static_dense")
TINY = ("tiny", "tiny_dnn", "tiny_bilinear", "tiny_dense")
VARIANTS = (*(model + split for split in SPLITS for model in MODELS), *DENSE, *STATIC, *TINY)


def get_config(variant: str = "factorized") -> ConfigDict:
    c = base("kbc_jax.complete", batch=200)  # train_factorized.py
    c.steps = 30  # epochs
    c.updates = 0  # updates an epoch; 0: as many as the training triples fill (500)
    c.data = {"dir": "", "splits": SPLITS[""], "seed": 0, "width": 8}
    # 0: the size of the data
    c.data.sizes = {"words": 0, "phrases": 0, "train": 0, "dev1": (), "dev2": (), "vector": 0, "sentence": 0}
    c.words = {
        "kind": "skipgram",  # or 'static', 'minilm', 'random', 'text:PATH'
        "normalise": False,  # scale rows to length 1: for 'static', whose mean length is 8.6
        "trainable": True,
        "mask_pad": True,  # False: padding leaks into the means, as in the authors' MaskAvg
        "sentences": False,  # add MiniLM sentence vectors of whole phrases
    }
    c.negatives = {"kind": "rand", "each": 1, "allow_self": True, "threshold": 1.5, "tries": 16}
    c.loss = {"kind": "bce", "scale": 1.0}
    c.l2 = {"mode": "lazy", "words": 1e-6, "net": {}}  # 'dense': all words, the authors' code; docs/kbc.md compares them
    c.optim = {"lr": 0.01, "plateau": {"patience": 10, "factor": 0.1}}
    c.log.every = 1
    c.checkpoint.update({"every": 10, "keep_last": 1})
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}")
    if variant.startswith("tiny"):
        tiny(c, variant.removeprefix("tiny").removeprefix("_"))
    else:
        split = next((s for s in SPLITS if s and variant.endswith(s)), "")
        c.data.splits = SPLITS[split]
        model(c, variant.removesuffix(split).removesuffix("_dense").removesuffix("_static"))
    if variant in STATIC:
        c.words.update({"kind": "static", "normalise": True})
    if "dense" in variant:
        c.l2.mode = "dense"
    return c.lock()


def model(c: ConfigDict, name: str) -> None:
    """Set the network, loss and L2 of one of MODELS."""
    if name in ("factorized", "prototypical", "argsim_pp"):
        terms = {"factorized": ("ht", "hr", "rt"), "prototypical": ("hr", "rt"), "argsim_pp": ("ht",)}[name]
        c.net = {"kind": "factorized", "bn": True, "hidden": 1000, "terms": terms, "share": 1, "merge": "add"}
        c.net.update({"normalise": True, "weighted": False, "scale": 1.0, "shift": None})
        c.l2.net = {"relations": 1e-6, "w": 1e-6}  # l2_a; l2_b = 0 leaves the maps alone
    elif name == "dnn":
        c.net = {"kind": "dnn", "bn": False, "hidden": 1000, "relation_width": 200, "std": 0.05, "dropout": 0.0}
        c.l2.net = {"relations": 1e-6, "w2": 1e-6}
    elif name == "bilinear":
        c.net = {"kind": "bilinear", "bn": False, "hidden": 150}
        c.loss.scale = 1000.0
        c.negatives.allow_self = False
        c.l2.update({"words": 1e-3, "net": {"map/kernel": 1e-3, "map/bias": 1e-3, "matrices": 1e-3}})
    else:
        c.net = {"kind": "fusion", "bn": False, "hidden": 500, "product": 200, "dropout": 0.3}
        c.words.sentences = True
        c.steps = 15
        c.l2.net = {}


def tiny(c: ConfigDict, kind: str) -> None:
    """Set the sizes of a test on toy facts; `kind`: 'dnn' or 'bilinear', else Factorized."""
    model(c, kind if kind in ("dnn", "bilinear") else "factorized")
    c.net.hidden = 16
    c.words.kind, c.data.dir = "random", "toy"
    c.update({"batch": 16, "updates": 4, "steps": 6})
    c.optim.lr = 1e-3  # Adagrad's first step is +-lr even where the gradient is a rounding error: tests compare meshes
    c.mesh.min_shard = 256
    c.checkpoint.every = 3
