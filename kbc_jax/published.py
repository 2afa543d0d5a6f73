"""Numbers of the papers, for the tables that show ours beside them. Sources: the authors' notebook of the NAACL submission
(2_02_NAACL_plots_and_tables.ipynb) unless a row says otherwise."""

# Random split: accuracy, then F1 of the thirds from least to most novel.
RANDOM = {
    "factorized": (0.822, 0.874, 0.812, 0.731),
    "dnn": (0.809, 0.883, 0.809, 0.725),
    "prototypical": (0.755, 0.866, 0.758, 0.674),
}

# Official positives, reprinted as F1 by Davison et al. 2019; probably accuracy on the redrawn negatives.
REDRAWN = {"dnn": 0.892, "factorized": 0.890, "prototypical": 0.794}

# Official negatives: the authors' config comment (factorized), their Keras port (dnn), Li et al. 2016 from memory (bilinear).
OFFICIAL = {"factorized": 0.9196, "dnn": 0.906, "bilinear": 0.917}

# Mean human quality (0-4) of each model's best 100 mined from Wikipedia, by novelty under OMCS vectors (cuts 3.22, 4.31).
MINED = {"dnn": (2.47, 2.34, 1.41), "factorized": (2.57, 2.12, 2.24), "prototypical": (2.33, 2.24, 1.63)}

# Mean novelty of the best K mined triples.
TOP_NOVELTY = {
    "prototypical": {100: 7.96, 1000: 6.91, 10_000: 6.01, 100_000: 5.34, 1_000_000: 5.86},
    "bilinear": {100: 6.56, 1000: 6.21, 10_000: 5.84, 100_000: 5.76, 1_000_000: 5.88},
}

# Link prediction, filtered, mean of both directions: MRR, Hits@1, Hits@3, Hits@10. From memory of the literature, not checked:
# Malaviya et al. 2020 (the first three), Wang et al. 2021 (InductivE).
LINKS = {
    "DistMult (CN-100K)": (0.0897, 0.0451, 0.0976, 0.1744),
    "ConvE (CN-100K)": (0.2088, 0.1397, 0.2291, 0.3402),
    "SIM+GCN+BERT+ConvTransE (CN-100K)": (0.5111, 0.3942, 0.5958, 0.7359),
    "InductivE (CN-100K)": (0.5735, None, 0.6450, 0.7800),
    "InductivE (CN-82K)": (0.2035, None, 0.2265, 0.3386),
}
