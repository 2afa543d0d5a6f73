"""Numbers, times, ticks and escaping in reports."""

import numpy as np

from launch.report.markup import duration, exact, linear_ticks, log_ticks, short, spread, tag, tick_labels, unit


def test_numbers_as_people_read_them():
    cases = {0: "0", 7.25: "7.25", 1234: "1234", 12346: "12.35k", 4123456: "4.123M", 999.96: "1000", 0.012345: "0.01235"}
    assert {value: short(value) for value in cases} == cases
    assert [short(x) for x in (-3.2e9, 1.2e-5, float("nan"), float("-inf"))] == ["-3.2G", "1.2e-05", "NaN", "−∞"]
    assert [exact(x) for x in (2024, 12345, 0.5, 1 / 3, 12345.678)] == ["2024", "12,345", "0.5", "0.333333", "12,345.7"]
    assert [spread(*x) for x in ((20.923, 7.04), (1264.2, 210.0), (0.0001, 0.0))] == ["20.9 ± 7.0", "1264 ± 210", "0.0001 ± 0"]
    assert [duration(x) for x in (2.5, 200, 2540, 3900, 2e5, None)] == [
        "2.5 s",
        "3 min 20 s",
        "42 min",
        "1 h 05 min",
        "2 d 7 h",
        "–",
    ]
    assert [unit(x) for x in ("time/steps_per_second", "eval/episode_seconds", "x/flops_per_second", "train/loss")] == [
        "steps/s",
        "s",
        "FLOP/s",
        "",
    ]


def test_ticks():
    assert linear_ticks(0, 20_000, 4) == [0, 5000, 10_000, 15_000, 20_000]
    np.testing.assert_allclose(linear_ticks(-21.3, 4.9), [-20, -10, 0])
    assert log_ticks(0.008, 12) == [0.01, 0.1, 1, 10]
    assert len(log_ticks(1e-12, 1)) <= 7
    assert tick_labels([0, 5000, 10_000]) == ["0", "5k", "10k"]
    assert tick_labels([0, 0.25, 0.5]) == ["0", "0.25", "0.50"]
    assert tick_labels([1e-4, 2e-4]) == ["1e-4", "2e-4"]


def test_tags_escape_all_but_markup():
    assert tag("p", "<&>", tag("b", "x"), None, title='"', hidden=True, cls="a", data_x=0, open=False) == (
        '<p title="&quot;" hidden class="a" data-x="0">&lt;&amp;&gt;<b>x</b></p>'
    )
