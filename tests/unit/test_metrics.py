"""Closed forms, with the arithmetic, and how often the intervals cover."""

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlad.evaluation.metrics import (
    FEW,
    accuracy_interval,
    average_interval,
    bootstrap_interval,
    equal_interval,
    mean_at_k,
    mean_interval,
    paired_difference,
    pass_at_k,
    sign_flip_p_value,
    wilson_interval,
)

Z = 1.959963984540054  # 97.5 % point of the normal distribution
T3 = 3.182446305284263  # of Student's t with 3 degrees of freedom
T1 = 12.706204736432095  # with 1: tan(0.475 pi)


def test_wilson_interval() -> None:
    # 8 of 10, z^2 = 3.8415: centre (8 + 1.9207) / 13.8415 = 0.716740,
    # half width 1.95996 / 13.8415 * sqrt(8 * 2 / 10 + 3.8415 / 4) = 0.141601 * 1.600114 = 0.226578
    centre = (8 + Z * Z / 2) / (10 + Z * Z)
    half = Z / (10 + Z * Z) * math.sqrt(8 * 2 / 10 + Z * Z / 4)
    assert wilson_interval(8, 10) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert wilson_interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    # 0 of n: from 0 to z^2 / (n + z^2) = 3.8415 / 103.8415 = 0.0369935; all of n is its mirror image
    assert wilson_interval(0, 100) == pytest.approx((0, 0.0369935), abs=1e-6)
    assert wilson_interval(100, 100) == pytest.approx((1 - 0.0369935, 1), abs=1e-6)
    # one half: symmetric about it
    low, high = wilson_interval(50, 100)
    assert low + high == pytest.approx(1)


def test_wilson_interval_at_another_confidence() -> None:
    z = 1.6448536269514722  # 95 % point: a 90 % interval
    assert wilson_interval(0, 10, 0.9)[1] == pytest.approx(z * z / (10 + z * z), abs=1e-12)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3), (0, 0)])
def test_wilson_interval_refuses(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="successes must be"):
        wilson_interval(successes, trials)


def test_mean_interval() -> None:
    # 1, 2, 3, 6: mean 3, squares 4 + 1 + 0 + 9 = 14, variance 14 / 3, error sqrt(14 / 3 / 4) = sqrt(7 / 6)
    half = T3 * math.sqrt(7 / 6)
    assert mean_interval([1, 2, 3, 6]) == pytest.approx((3, 3 - half, 3 + half), abs=1e-9)
    # 0, 1: variance 1 / 2, error sqrt(1 / 4) = 1 / 2
    assert mean_interval([0, 1]) == pytest.approx((0.5, 0.5 - T1 / 2, 0.5 + T1 / 2), abs=1e-9)
    # without spread, rounding aside, nothing is known of other values
    assert mean_interval([2, 2, 2]) == (2, -math.inf, math.inf)
    assert mean_interval([0.3, 0.1 + 0.2])[1:] == (-math.inf, math.inf)
    assert mean_interval([4]) == (4, -math.inf, math.inf)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


@pytest.mark.parametrize("values", [[math.nan], [math.nan, 1.0], [math.inf], [math.inf, 1.0]])
def test_a_mean_that_is_no_finite_number_has_no_limits(values: list[float]) -> None:
    for interval in (mean_interval, bootstrap_interval):
        mean, low, high = interval(values)
        assert not math.isfinite(mean) and math.isnan(low) and math.isnan(high)


def test_accuracy_interval() -> None:
    # all right or all wrong: Wilson's, over problems
    assert accuracy_interval([1, 0, 1, 1]) == (0.75, *wilson_interval(3, 4))
    assert accuracy_interval([1.0] * 20) == (1.0, *wilson_interval(20, 20))
    # shares between: the bootstrap's, never outside [0, 1]; one problem says nothing
    assert accuracy_interval([0.25, 0.5, 0.5, 0.75]) == bootstrap_interval([0.25, 0.5, 0.5, 0.75])
    assert accuracy_interval([0.5]) == (0.5, 0.0, 1.0)
    assert accuracy_interval([0.5] * 6) == equal_interval(0.5, 6, 0.0, 1.0)
    assert accuracy_interval([1, 1, 0.5])[2] == 1.0


def wilson_by_hand(rate: float, n: int) -> tuple[float, float]:
    """The roots of (rate - p)^2 = z^2 p (1 - p) / n."""
    a, b, c = 1 + Z * Z / n, -(2 * rate + Z * Z / n), rate * rate
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def test_a_set_of_which_few_problems_differ_is_as_wide_as_wilson_s_at_least() -> None:
    # of 30 problems one is right in 1 of 16 samples: resamples of it reach 0.0104 = 5 / 480 at most; all wrong: 0.1135
    mean, low, high = accuracy_interval([0.0] * 29 + [1 / 16])
    assert (mean, low) == (pytest.approx(1 / 480), 0.0)
    assert high == pytest.approx(wilson_by_hand(1 / 480, 30)[1], abs=1e-12) and high > 0.1135
    # neither limit comes closer than the bootstrap's
    skewed = [0.0] * 29 + [0.9]
    found, plain, wilson = accuracy_interval(skewed), bootstrap_interval(skewed), wilson_by_hand(0.03, 30)
    assert found[1:] == pytest.approx((min(plain[1], wilson[0]), max(plain[2], wilson[1])), abs=1e-12)


def test_from_all_wrong_to_one_right_the_upper_limit_rises() -> None:
    limits = [accuracy_interval([0.0] * 29 + [right / 16])[2] for right in (0, 1, 2, 4, 8, 15, 16)]
    assert (
        limits == sorted(limits) and limits[0] == wilson_interval(0, 30)[1] and limits[-1] == wilson_interval(1, 30)[1]
    )


@pytest.mark.parametrize("others", [[1 / 16], [1 / 16, 1.0, 0.5]])
def test_mostly_right_is_the_mirror_image_of_mostly_wrong(others: list[float]) -> None:
    mean, low, high = accuracy_interval([0.0] * 27 + others)
    assert accuracy_interval([1.0] * 27 + [1 - each for each in others]) == pytest.approx((1 - mean, 1 - high, 1 - low))


def test_where_many_problems_differ_the_bootstrap_stays_as_it_was() -> None:
    def many(n: int, others: int) -> list[float]:
        return [0.0] * (n - others) + [(1 + i % 3) / 16 for i in range(others)]

    for values in (many(60, FEW), many(60, 40), many(20, 10), many(2 * FEW - 2, FEW - 1)):
        assert accuracy_interval(values) == bootstrap_interval(values)
    assert accuracy_interval(many(60, FEW - 1))[2] > bootstrap_interval(many(60, FEW - 1))[2]
    assert accuracy_interval(many(2 * FEW - 1, FEW - 1))[2] > bootstrap_interval(many(2 * FEW - 1, FEW - 1))[2]


def test_bootstrap_interval_is_bca_worked_out_by_hand() -> None:
    """Efron's formulas (1987) on the distribution of all 4^4 resamples of four values, which 9,999 draws approach."""
    values = [0.0, 0.1, 0.2, 0.9]
    mean = sum(values) / 4
    means = sorted(sum(draw) / 4 for draw in itertools.product(values, repeat=4))
    normal = statistics.NormalDist()
    below = sum(m < mean - 1e-12 for m in means) + 0.5 * sum(abs(m - mean) < 1e-12 for m in means)
    bias = normal.inv_cdf(below / len(means))
    # the jackknife's means are (sum - x) / 3: they deviate by (x - mean) / 3
    pulls = [(x - mean) / 3 for x in values]
    acceleration = sum(p**3 for p in pulls) / (6 * sum(p**2 for p in pulls) ** 1.5)

    def limit(z: float) -> float:
        shifted = normal.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
        return means[min(int(shifted * len(means)), len(means) - 1)]

    found = bootstrap_interval(values)
    assert found[0] == pytest.approx(mean)
    assert found[1:] == pytest.approx((limit(-Z), limit(Z)), abs=0.03)
    percentile = (means[6], means[249])  # what the plain percentile interval would be
    assert abs(found[1] - percentile[0]) > 0.02 or abs(found[2] - percentile[1]) > 0.02


def test_bootstrap_intervals_without_spread_and_without_chance() -> None:
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, -math.inf, math.inf)
    assert bootstrap_interval([0.5]) == (0.5, -math.inf, math.inf)
    values = [0.0, 0.25, 0.5, 1.0, 1.0, 0.75]
    assert bootstrap_interval(values) == bootstrap_interval(values)  # its seed is fixed
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])


def test_bootstrap_intervals_cover_about_as_often_as_they_claim() -> None:
    """Means of 8 samples on 40 problems whose difficulties vary as Beta(.5, 1), with mean 1 / 3."""
    rng = random.Random(0)
    runs, covered = 300, 0
    for _ in range(runs):
        chances = [rng.betavariate(0.5, 1) for _ in range(40)]
        _, low, high = accuracy_interval([sum(rng.random() < p for _ in range(8)) / 8 for p in chances])
        covered += low <= 1 / 3 <= high
    # 95 % of 300 is 285, with a standard deviation of 3.8
    assert 271 <= covered <= 297


def test_intervals_of_mostly_wrong_sets_cover_what_they_claim() -> None:
    """16 samples of 30 problems, of which 5 % have the rate .9 and the others .02: the mean is .064."""
    rng = random.Random(0)
    runs, covered = 300, 0
    for _ in range(runs):
        chances = [0.9 if rng.random() < 0.05 else 0.02 for _ in range(30)]
        _, low, high = accuracy_interval([sum(rng.random() < p for _ in range(16)) / 16 for p in chances])
        covered += low <= 0.064 <= high
    assert covered >= 277  # 95 % of 300 less two standard deviations; the bootstrap alone: 234


def enumerated(differences: list[float]) -> float:
    """The share of all 2^n choices of signs whose sum is as far from 0."""
    observed = abs(sum(differences))
    signs = list(itertools.product((1, -1), repeat=len(differences)))
    reached = [abs(sum(s * d for s, d in zip(each, differences, strict=True))) >= observed - 1e-9 for each in signs]
    return sum(reached) / len(signs)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10))
def test_sign_flips_are_enumerated(quarters: list[int]) -> None:
    differences = [each / 4 for each in quarters]
    assert sign_flip_p_value(differences) == pytest.approx(enumerated(differences), abs=1e-12)


def test_sign_flip_p_values() -> None:
    # one size: 5 up, 1 down of 6: 2 * (C(6, 0) + C(6, 1)) / 2^6 = 14 / 64; where nothing moved, as in the 40, no vote
    assert sign_flip_p_value([1.0] * 5 + [-1.0] + [0.0] * 40) == pytest.approx(14 / 64)
    assert sign_flip_p_value([0.0, 0.0]) == 1.0 == sign_flip_p_value([])
    assert sign_flip_p_value([1.0] * 30) == pytest.approx(2 / 2**30)  # exact for any n, where all have one size
    # drawn: at most as small as 2 / 10,000, near the normal approximation, and the same each time
    drawn = [0.25, 0.5, 1.0, -0.25, -0.5] * 12
    z = sum(drawn) / math.sqrt(sum(d * d for d in drawn))
    normal = 2 * (1 - statistics.NormalDist().cdf(z))
    assert sign_flip_p_value(drawn) == pytest.approx(normal, abs=0.01) and normal < 0.05
    assert sign_flip_p_value(drawn) == sign_flip_p_value(drawn) == sign_flip_p_value([-d for d in drawn])
    assert sign_flip_p_value([0.5, 1.0] * 50) == pytest.approx(2 / 10_000)


def test_average_interval() -> None:
    # one group keeps its interval
    assert average_interval([(0.5, 0.3, 0.6)]) == pytest.approx((0.5, 0.3, 0.6))
    # (.5 + .9) / 2 = .7; below sqrt(.3^2 + .4^2) / 2 = .25; above sqrt(.05^2 + .12^2) / 2 = .065
    assert average_interval([(0.5, 0.2, 0.55), (0.9, 0.5, 1.02)]) == pytest.approx((0.7, 0.45, 0.765))
    # four groups alike: half the width of one
    assert average_interval([(0.5, 0.4, 0.6)] * 4) == pytest.approx((0.5, 0.45, 0.55))
    with pytest.raises(ValueError, match="no groups"):
        average_interval([])


def test_paired_difference() -> None:
    # differences 1, 0, 1, 0: mean .5, squares 4 * .25 = 1, error sqrt(1 / 3 / 4) = sqrt(1 / 12)
    half = T3 * math.sqrt(1 / 12)
    assert paired_difference([0, 1, 0, 0], [1, 1, 1, 0]) == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-9)
    # a difference that is the same on every problem: z^2 / (3 + z^2) = .56149 may be others, from -1 to 1
    others = Z * Z / (3 + Z * Z)
    expected = (0.25, 0.25 - others * 1.25, 0.25 + others * 0.75)
    assert paired_difference([0.0, 0.5, 0.25], [0.25, 0.75, 0.5]) == pytest.approx(expected)
    # two problems that turned say little: 1 - 2 * 3.8415 / 5.8415 < 0; a hundred say much
    assert paired_difference([0, 0], [1, 1])[1] == pytest.approx(-0.31524, abs=1e-5)
    assert paired_difference([0] * 100, [1] * 100)[1:] == pytest.approx((1 - 2 * 0.0369935, 1), abs=1e-6)
    with pytest.raises(ValueError, match="the same problems"):
        paired_difference([1], [1, 0])


def test_equal_values_have_wilson_s_interval_at_the_limits() -> None:
    assert equal_interval(1.0, 20, 0.0, 1.0) == pytest.approx((1.0, *wilson_interval(20, 20)))
    assert equal_interval(0.0, 20, 0.0, 1.0) == pytest.approx((0.0, *wilson_interval(0, 20)))


@pytest.mark.parametrize(
    ("low", "p_value", "said"),
    # Five problems that all turned: 1 - 2 * 3.8415 / 8.8415 = .131, and p = 2 / 2^5 = .0625.
    [(0.131, 0.0625, False), (0.1, 0.01, True), (0.1, None, True), (0.0, 0.01, False)],
)
def test_a_handful_of_problems_is_no_improvement(low: float, p_value: float | None, said: bool) -> None:
    from rlad.trainer.session import better

    row = {"low": low} | ({} if p_value is None else {"p_value": p_value})
    assert better({"gain": [{"low": 0.5, "p_value": 0.9}, row]}) is said
    assert better({})


def test_mean_at_k() -> None:
    assert mean_at_k([True, False, False, True]) == 0.5
    with pytest.raises(ValueError, match="at least one"):
        mean_at_k([])


def test_pass_at_k() -> None:
    # 4 samples, 1 right, k = 2: of C(4, 2) = 6 pairs, C(3, 2) = 3 hold no right one: 1 - 3/6
    assert pass_at_k(4, 1, 2) == 0.5
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(8, 0, 8) == 0
    assert pass_at_k(8, 1, 8) == 1
    assert pass_at_k(5, 3, 3) == 1  # only 2 are wrong, so any 3 hold a right one
    assert pass_at_k(100_000, 1, 50_000) == 0.5  # whole numbers: nothing overflows
    for bad in ((4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)):
        with pytest.raises(ValueError, match="pass@k needs"):
            pass_at_k(*bad)


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(samples: int) -> None:
    for correct in range(samples + 1):
        right = [True] * correct + [False] * (samples - correct)
        for k in range(1, samples + 1):
            subsets = [any(subset) for subset in itertools.combinations(right, k)]
            assert pass_at_k(samples, correct, k) == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 100))
def test_pass_at_k_is_unbiased(samples: int, k: int, percent: int) -> None:
    """Its expectation over the number of right samples is 1 - (1 - p)^k, exactly."""
    if k > samples:
        return
    p = percent / 100
    expected = sum(
        math.comb(samples, c) * p**c * (1 - p) ** (samples - c) * pass_at_k(samples, c, k) for c in range(samples + 1)
    )
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_wilson_intervals_cover_what_they_claim() -> None:
    """By summing over all outcomes: near 95 % on average over p, and never far below."""
    n = 100
    intervals = [wilson_interval(k, n) for k in range(n + 1)]
    covers = [
        sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k, (low, high) in enumerate(intervals) if low <= p <= high)
        for p in (i / 50 for i in range(1, 50))
    ]
    assert 0.94 < sum(covers) / len(covers) < 0.96
    assert min(covers) > 0.9


def test_paired_and_averaged_intervals_cover_about_as_often_as_they_claim() -> None:
    rng = random.Random(0)
    runs, paired, averaged = 400, 0, 0
    for _ in range(runs):
        before = [float(rng.random() < 0.3) for _ in range(100)]
        after = [b if rng.random() < 0.7 else float(rng.random() < 0.8) for b in before]
        # E[after - before] = .3 * (.8 - .3) = .15
        _, low, high = paired_difference(before, after)
        paired += low <= 0.15 <= high
        groups = [accuracy_interval([float(rng.random() < p) for _ in range(50)]) for p in (0.9, 0.5, 0.1)]
        _, low, high = average_interval(groups)
        averaged += low <= 0.5 <= high
    # 95 % of 400 is 380, with a standard deviation of sqrt(400 * .95 * .05) = 4.4
    assert 360 <= paired <= 396
    assert 360 <= averaged <= 398
