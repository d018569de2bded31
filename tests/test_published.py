"""The paper's printed figures: whole, and what equation 9 gives to the printed digit."""

from __future__ import annotations

import math

import pytest

from bunit_kernels import metrics
from bunit_kernels.models.paper_networks import PAPER_NETWORKS
from bunit_kernels.report.published import (
    LIGHT_NETWORKS,
    PAPER,
    PUBLISHED,
    SMALL_NETWORKS,
    TIMES,
)
from bunit_kernels.report.result import IMAGENET

#: Scores that the paper prints and equation 9 does not give: what it gives.
MISPRINTED_SCORES = {
    ("V", "MobileNetV2", "BUnit-Net", "tsa", 1, 1): 1.80,  # printed 1.88
    ("V", "MobileNetV2", "BUnit-Net", "tsa", 1, 4): 1.73,  # printed 1.80
    ("V", "MobileNetV2", "BUnit-Net", "tsa", 4, 1): 11.08,  # printed 13.0
    ("VI", "ResNet-34", "NISP", "tsa", 4, 1): 2.95,  # printed 2.98
}
#: The same of theoretical speedups, by the printed FLOPs saved.
MISPRINTED_SPEEDUPS = {
    ("IV", "MobileNetV2", "FLGC"): 1.15,  # printed 1.16
    ("VI", "VGG-19", "BUnit-Net"): 2.73,  # printed 2.80
    ("VI", "ResNet-34", "Taylor"): 1.29,  # printed 1.28
}
#: The same of accuracies lost, by the printed accuracies.
MISPRINTED_DROPS = {
    ("IV", "VGG-16", "PFEC"): 0.53,  # printed 0.56
    ("IV", "VGG-16", "DANL"): 0.24,  # printed 0.22
    ("IV", "MobileNetV2", "DualConv"): 1.28,  # printed 0.28
    ("V", "ResNet-20", "BUnit-Net"): 0.84,  # printed 0.83
    ("VI", "ResNet-34", "NISP"): 0.29,  # printed 0.28
    ("VI", "ResNet-50", "Taylor"): 0.67,  # printed 0.7
}

BY_EQUATION_9 = [result for result in PAPER if result.table != "III"]


def key(result):
    return result.table, result.network, result.method


def printed_as(value, printed):
    """Whether ``value`` is ``printed`` to its two places, a half either way."""
    return abs(value - printed) <= 0.005 + 1e-9


def scores():
    for result in BY_EQUATION_9:
        for score in result.scores:
            for name, saved in (("tca", result.flops_saved), ("tsa", result.parameters_saved)):
                if getattr(score, name) is not None:
                    yield result, name, saved, score


@pytest.mark.parametrize("unit", [1, 100], ids=["percent", "shares"])
def test_equation_9_gives_every_printed_score(unit):
    wrong = {}
    for result, name, saved, score in scores():
        accuracies = result.baseline / unit, result.accuracy / unit
        weights = {"w1": score.w1, "w2": score.w2}
        value = getattr(metrics, name)(*accuracies, 100, 100 - saved, **weights)
        if not printed_as(value, getattr(score, name)):
            wrong[(*key(result), name, score.w1, score.w2)] = round(value, 2)
    assert wrong == MISPRINTED_SCORES


def test_number_of_scores():
    """56 rows of tables IV to VI, three pairs of weights; what saves no known share of the
    parameters has no TSA."""
    without = sum(result.parameters_saved is None for result in BY_EQUATION_9)
    assert (len(BY_EQUATION_9), without) == (56, 12)
    assert sum(1 for _ in scores()) == 3 * (2 * 56 - without)


def test_printed_speedups_and_accuracies_lost():
    speedups, drops = {}, {}
    for result in BY_EQUATION_9:
        value = metrics.speedup(100, 100 - result.flops_saved)
        if not printed_as(value, result.speedup):
            speedups[key(result)] = round(value, 2)
        lost = result.baseline - result.accuracy
        if abs(lost - result.accuracy_drop) > 1e-9:
            drops[key(result)] = round(lost, 2)
    assert speedups == MISPRINTED_SPEEDUPS
    assert drops == MISPRINTED_DROPS


def test_table_3_has_scores_of_another_formula():
    """(f_b / f_n) exp(-(a_b - a_n) / a_b), of the sizes as it prints them."""
    (mlp,) = [result for result in PAPER if result.table == "III"]
    kept = math.exp(-(mlp.baseline - mlp.accuracy) / mlp.baseline)
    assert mlp.scores[0].tca == round(1.09 / 0.03 * kept, 2) == 36.06
    assert mlp.scores[0].tsa == round(0.55 / 0.02 * kept, 2) == 27.29
    by_equation_9 = metrics.tca(mlp.baseline, mlp.accuracy, 1.09, 0.03)
    assert by_equation_9 == pytest.approx(2.62, abs=0.005)


def test_the_papers_own_results():
    """Accuracy of the baseline and of BUnit-Net, FLOPs and parameters saved."""
    own = {
        (result.data, result.network, result.method): (
            result.baseline, result.accuracy, result.flops_saved, result.parameters_saved
        )
        for result in PAPER
        if result.is_bunit
    }  # fmt: skip
    assert own == {
        ("MNIST", "MLP", "BUnit-Net"): (92.65, 91.95, 97, 96),
        ("CIFAR-10", "VGG-16", "BUnit-Net"): (93.25, 92.82, 79.87, 72.90),
        ("CIFAR-10", "ResNet-20", "BUnit-Net"): (95.10, 94.52, 55.02, 49.35),
        ("CIFAR-10", "ResNet-20", "BUnit-Net r"): (95.10, 94.87, 40.34, 32.67),
        ("CIFAR-10", "MobileNetV2", "BUnit-Net"): (92.20, 91.58, 38.56, 36.81),
        ("CIFAR-100", "VGG-16", "BUnit-Net"): (73.55, 72.51, 73.05, 70.26),
        ("CIFAR-100", "ResNet-20", "BUnit-Net"): (77.32, 76.48, 57.46, 62.56),
        ("CIFAR-100", "MobileNetV2", "BUnit-Net"): (72.58, 71.54, 62.61, 60.48),
        ("Tiny-ImageNet", "VGG-19", "BUnit-Net"): (55.65, 53.54, 63.42, 54.63),
        ("ImageNet", "ResNet-34", "BUnit-Net"): (73.31, 71.51, 42.05, 35.31),
        ("ImageNet", "ResNet-50", "BUnit-Net"): (77.09, 75.33, 43.80, 43.67),
        ("ImageNet", "ResNet-50", "BUnit-Net r"): (77.09, 77.0, 25.0, 15.54),
    }
    top5 = [(r.baseline_top5, r.top5) for r in PAPER if r.is_bunit and r.data == IMAGENET]
    assert top5 == [(91.45, 90.54), (93.38, 93.45), (93.38, 92.60)]


def test_small_and_light_networks_and_times():
    assert [network.table for network in SMALL_NETWORKS] == ["I"] * 6 + ["II"] * 10
    for network in SMALL_NETWORKS:
        assert [sum(counts) for counts in network.stacked] == [20, 20] * (network.table == "II")
        assert (network.accuracy_std is None) == (network.table == "II")
    assert SMALL_NETWORKS[6].describe_units() == (
        "3 A, 3 B, 2 C, 3 D, 5 E, 4 F; 4 A, 7 B, 2 C, 4 E, 3 F"
    )
    assert [light.method for light in LIGHT_NETWORKS].count("BUnit-Net") == 3
    for time in TIMES:
        assert printed_as(time.dense_ms / time.ms, time.speedup)
    assert len(TIMES) == 4


def test_all_published_figures_are_whole():
    for result in PUBLISHED:
        assert 50 < result.accuracy < 100
        assert result.baseline is None or abs(result.accuracy - result.baseline) < 5
        for saved in (result.flops_saved, result.parameters_saved):
            assert saved is None or 0 < saved < 100
        assert result.flops_saved is not None and result.source.address.startswith("https")
    assert len(set(PUBLISHED)) == len(PUBLISHED)


def millions(printed: str) -> float:
    return float(printed[:-1]) * {"M": 1, "G": 1000}[printed[-1]]


def test_networks_are_counted_against_the_printed_figures():
    """``models.paper_networks`` holds them once more, a network each."""
    printed = {
        (r.network + r.method.removeprefix("BUnit-Net"), r.data): (
            (millions(r.baseline_flops), millions(r.baseline_parameters)),
            (r.flops_saved, r.parameters_saved),
        )
        for r in PAPER
        if r.method.startswith("BUnit-Net")
    }
    held = {tuple(n.name.split(", ")): (n.printed, n.saved) for n in PAPER_NETWORKS}
    light = {n.network for n in LIGHT_NETWORKS}
    assert {k: v for k, v in held.items() if k[0] not in light} == printed
