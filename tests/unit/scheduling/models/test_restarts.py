from bitinglip.scheduling.models.restarts import RestartBudget


def test_failures_within_the_window_count_and_older_ones_do_not() -> None:
    budget = RestartBudget(2, 10)
    assert budget.spend(0)
    assert budget.spend(1)
    assert not budget.spend(2)
    assert budget.spend(11.5)


def test_the_pause_grows_and_is_bounded() -> None:
    budget = RestartBudget(100, 1000)
    pauses = []
    for now in range(7):
        pauses.append(budget.pause(now))
        budget.spend(now)
    assert pauses == [0, 0, 1, 2, 4, 8, 8]


def test_a_reset_forgives() -> None:
    budget = RestartBudget(1, 10)
    budget.spend(0)
    budget.reset()
    assert budget.spend(1)
