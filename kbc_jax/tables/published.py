"""Numbers of the papers, for the tables that show ours beside them.

Sources: the authors' notebook of the NAACL submission (2_02_NAACL_plots_and_tables.ipynb) unless a row says otherwise;
docs/kbc.md says which were not checked.
"""

# Random split: accuracy, then F1 of the thirds from least to most novel. '+ GloVe': general text instead of OMCS vectors.
RANDOM = {
    "factorized": (0.822, 0.874, 0.812, 0.731),
    "dnn": (0.809, 0.883, 0.809, 0.725),
    "prototypical": (0.755, 0.866, 0.758, 0.674),
    "factorized + GloVe": (0.799, 0.869, 0.788, 0.669),
    "dnn + GloVe": (0.789, 0.868, 0.772, 0.695),
    "prototypical + GloVe": (0.756, 0.871, 0.734, 0.632),
}

# Official positives, reprinted as F1 by Davison et al. 2019; probably accuracy on redrawn negatives. From memory, unchecked.
REDRAWN = {"dnn": 0.892, "factorized": 0.890, "prototypical": 0.794}

# Official negatives: the authors' config comment (factorized), their Keras port (dnn), Li et al. 2016 from memory (bilinear).
OFFICIAL = {"factorized": 0.9196, "dnn": 0.906, "bilinear": 0.917}

# Mean human quality (0-4) of each model's best 100 mined from Wikipedia, by novelty under OMCS vectors (cuts 3.22, 4.31).
MINED = {"dnn": (2.47, 2.34, 1.41), "factorized": (2.57, 2.12, 2.24), "prototypical": (2.33, 2.24, 1.63)}

# The same of each model's best 100 at any novelty: the first study (two raters, Pearson 0.819, kappa 0.489), and the numbers
# that Davison et al. 2019 reprinted (from memory, unchecked).
MINED_FIRST = {"bilinear": 1.78, "factorized": 1.96, "prototypical": 2.00}
MINED_REPRINT = {"dnn": 2.50, "factorized": 2.61, "prototypical": 2.55}

# Mean novelty of the best K mined triples.
TOP_NOVELTY = {
    "prototypical": {100: 7.96, 1000: 6.91, 10_000: 6.01, 100_000: 5.34, 1_000_000: 5.86},
    "bilinear": {100: 6.56, 1000: 6.21, 10_000: 5.84, 100_000: 5.76, 1_000_000: 5.88},
}

# How novel true triples are, said by people: rows kept and sampled; shares of A (same relation, reworded) to F (none of the
# others, novel); mean on the scale 0 to 5, of all, of the near half and of the far half by computed novelty; Pearson with it.
HUMAN_NOVELTY = {
    "official test": (95, 100, (0.65, 0.22, 0.04, 0.04, 0.02, 0.02), 0.62, 0.49, 0.75, 0.22),
    "random train sample": (84, 100, (0.21, 0.10, 0.16, 0.03, 0.17, 0.29), 2.75, 2.17, 3.33, 0.30),
    "Wikipedia, 500 of Li et al.'s top 10,000": (34, 500, (0.14, 0.05, 0.17, 0.08, 0.08, 0.44), 3.24, 2.47, 4.00, 0.47),
}

# Link prediction, filtered, mean of both directions: MRR, Hits@1, Hits@3, Hits@10. From memory of the literature, not checked:
# Malaviya et al. 2020 (the first six), Wang et al. 2021 (InductivE), CPNC-I 2023 (rounded).
LINKS = {
    "DistMult (CN-100K)": (0.0897, 0.0451, 0.0976, 0.1744),
    "ComplEx (CN-100K)": (0.1140, 0.0742, 0.1245, 0.1901),
    "ConvE (CN-100K)": (0.2088, 0.1397, 0.2291, 0.3402),
    "ConvTransE (CN-100K)": (0.1868, 0.0787, 0.2387, 0.3895),
    "BERT+ConvTransE (CN-100K)": (0.4956, 0.3812, 0.555, 0.715),
    "SIM+GCN+BERT+ConvTransE (CN-100K)": (0.5111, 0.3942, 0.5958, 0.7359),
    "InductivE (CN-100K)": (0.5735, None, 0.6450, 0.7800),
    "CPNC-I (CN-100K)": (0.59, None, None, 0.80),
    "InductivE (CN-82K)": (0.2035, None, 0.2265, 0.3386),
}
