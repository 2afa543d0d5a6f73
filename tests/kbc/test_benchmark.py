"""What the benchmark quotes: like for like first."""

from benchmarks import kbc

ALL = {"yardstick": [0.1, 0.2, 0.3], "dense": [300.0, 200, 100], "lazy": [900.0, 700, 800], "torch": [100.0, 50, 100]}
MEDIAN = {"yardstick": 0.2, "dense": 200.0, "lazy": 800.0, "torch": 100.0, "novelty": 3.0}


def result(**more):
    facts = {"data": "synthetic", "cores": 2, "rounds": 3, "queries": 5, "training_triples": 7, "median": MEDIAN}
    return {**facts, "ratio": kbc.ratios(ALL), **more}


def test_the_headline_is_the_ratio_with_dense_l2_on_both_sides():
    assert kbc.ratios(ALL) == {"dense": 3, "lazy": 9}  # medians of the rounds' ratios: 3, 4, 1 and 9, 14, 8
    lines = kbc.table(result()).splitlines()
    assert lines[0] == "3.0 x naive PyTorch, both with dense L2 (9.0 x with ours lazy)"
    assert [line.split()[-2] for line in lines[3:6]] == ["100", "200", "800"]


def test_without_torch_there_is_no_ratio():
    median = {name: value for name, value in MEDIAN.items() if name != "torch"}
    lines = kbc.table(result(median=median, ratio=kbc.ratios({"dense": [1]}))).splitlines()
    assert lines[0].startswith("data: synthetic") and "skipped: no torch" in lines[2]
