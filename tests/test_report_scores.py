import numpy as np
import pytest

from mtrl.report.scores import episode_interval, interquartile_mean, mean, scores, seed_interval, wilson_interval


def test_interquartile_mean_leaves_out_a_quarter_at_each_end():
    success = np.array([[0.0, 0.9], [0.1, 0.3], [0.5, 0.7], [0.2, 1.0]])  # sorted: 0 .1 | .2 .3 .5 .7 | .9 1
    assert interquartile_mean(success) == pytest.approx((0.2 + 0.3 + 0.5 + 0.7) / 4, abs=1e-15)


def test_interquartile_mean_rounds_the_quarter_down_as_scipy_does():
    """Ten entries: two are cut at each end, not two and a half (scipy.stats.trim_mean, which rliable calls)."""
    assert interquartile_mean(np.array([[0.0, 0, 1, 1, 1, 1, 1, 0, 0.4, 0.5]])) == pytest.approx(
        (0 + 0.4 + 0.5 + 3) / 6
    )


def test_interquartile_mean_of_fewer_than_four_entries_is_the_mean():
    assert interquartile_mean(np.array([[0.0, 0.5, 1.0]])) == 0.5


def test_statistics_work_on_many_matrices_at_once():
    many = np.random.default_rng(0).random((5, 3, 4))
    for statistic in (mean, interquartile_mean):
        np.testing.assert_allclose(statistic(many), [statistic(one) for one in many], rtol=1e-14)


def test_bootstrap_of_two_seeds_has_the_exact_quantiles():
    """One task, seeds 0 and 1: resamples give 0, 1/2, 1 with chances 1/4, 1/2, 1/4, so the interval is [0, 1]."""
    interval = seed_interval(np.array([[0.0], [1.0]]), mean, np.random.default_rng(0), resamples=2000)
    assert (interval.low, interval.high, interval.over) == (0.0, 1.0, "seeds")


def test_bootstrap_draws_seeds_for_each_task_by_itself():
    """Over 400 tasks with seeds 0 and 1 luck averages out; drawn together, whole resamples would be 0 or 1."""
    success = np.repeat([[0.0], [1.0]], 400, axis=1)
    interval = seed_interval(success, mean, np.random.default_rng(0), resamples=500)
    spread = 1.96 * np.sqrt(0.125 / 400)  # the mean of two fair draws has variance 1/8
    assert interval.low == pytest.approx(0.5 - spread, abs=0.01)
    assert interval.high == pytest.approx(0.5 + spread, abs=0.01)


def test_bootstrap_depends_on_its_generator_only():
    success = np.random.default_rng(1).random((4, 3))
    first, second = (seed_interval(success, mean, np.random.default_rng(7), resamples=300) for _ in range(2))
    assert first == second


def test_bootstrap_refuses_a_single_seed():
    with pytest.raises(ValueError, match=r"an interval over seeds needs at least 2 seeds, got 1"):
        seed_interval(np.ones((1, 3)), mean, np.random.default_rng(0))


def test_wilson_interval_against_a_hand_worked_case():
    """15 of 20: z = 1.959964, z² = 3.841459; centre (0.75 + z²/40) / (1 + z²/20), half width as in Wilson 1927."""
    interval = wilson_interval(15, 20)
    centre = (0.75 + 3.841459 / 40) / (1 + 3.841459 / 20)
    half = 1.959964 * np.sqrt(0.75 * 0.25 / 20 + 3.841459 / 1600) / (1 + 3.841459 / 20)
    assert interval.low == pytest.approx(centre - half, abs=1e-6)
    assert interval.high == pytest.approx(centre + half, abs=1e-6)
    assert interval.low == pytest.approx(0.5313, abs=1e-4)
    assert interval.high == pytest.approx(0.8881, abs=1e-4)


def test_wilson_interval_has_a_width_where_all_succeed_and_stays_within_bounds():
    interval = wilson_interval(50, 50)
    assert interval.low == pytest.approx(50 / (50 + 3.841459), abs=1e-6)  # n / (n + z²)
    assert interval.high == 1.0
    assert wilson_interval(0, 50).low == 0.0


@pytest.mark.parametrize(("successes", "episodes"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_interval_refuses_impossible_counts(successes, episodes):
    with pytest.raises(ValueError, match=f"{successes} successes in {episodes} episodes"):
        wilson_interval(successes, episodes)


def test_episode_interval_of_one_task_is_wilsons():
    one = episode_interval(np.array([15]), np.array([20]))
    assert (one.low, one.high) == pytest.approx((wilson_interval(15, 20).low, wilson_interval(15, 20).high), abs=1e-12)


def test_episode_interval_of_equal_tasks_shrinks_by_the_root_of_their_number():
    one = wilson_interval(15, 20)
    four = episode_interval(np.full(4, 15), np.full(4, 20))
    assert four.low == pytest.approx(0.75 - (0.75 - one.low) / 2, abs=1e-12)
    assert four.high == pytest.approx(0.75 + (one.high - 0.75) / 2, abs=1e-12)


def test_one_seed_gets_an_interval_over_episodes_and_none_for_the_iqm():
    found = scores(np.array([[10, 5]]), np.array([[10, 10]]), np.random.default_rng(0))
    assert found.mean == 0.75
    assert found.mean_interval.over == "episodes"
    assert found.iqm_interval is None
    np.testing.assert_array_equal(found.per_task, [1.0, 0.5])


def test_several_seeds_get_intervals_over_seeds():
    found = scores(np.array([[10, 5], [8, 5]]), np.full((2, 2), 10), np.random.default_rng(0))
    assert (found.mean, found.mean_interval.over) == (pytest.approx(0.7), "seeds")
    assert (found.mean_interval.low, found.mean_interval.high) == pytest.approx((0.65, 0.75))
    assert found.iqm_interval is not None
    assert [interval.over for interval in found.per_task_intervals] == ["episodes", "episodes"]
    assert found.per_task_intervals[0] == wilson_interval(18, 20)


def test_scores_refuse_counts_of_different_shapes():
    with pytest.raises(ValueError, match=r"expected two arrays \[seed, task\], got shapes \(1, 2\) and \(2, 1\)"):
        scores(np.ones((1, 2), int), np.ones((2, 1), int), np.random.default_rng(0))
