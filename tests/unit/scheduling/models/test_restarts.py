from bitinglip.scheduling.models.restarts import RestartBudget


def test_restart_budget_counts_failures_within_the_window_only() -> None:
    budget = RestartBudget(2, 10)
    assert budget.spend(0)
    assert budget.spend(1)
    assert not budget.spend(2)
    assert budget.spend(11.5)


def test_restart_delay_grows_and_is_bounded() -> None:
    budget = RestartBudget(100, 1000)
    pauses = []
    for now in range(7):
        pauses.append(budget.pause(now))
        budget.spend(now)
    assert pauses == [0, 0, 1, 2, 4, 8, 8]


def test_restart_budget_is_full_after_a_reset() -> None:
    budget = RestartBudget(1, 10)
    budget.spend(0)
    budget.reset()
    assert budget.spend(1)
