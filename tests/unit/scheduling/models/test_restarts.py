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


def test_restart_budget_takes_back_what_was_not_the_models_fault() -> None:
    budget = RestartBudget(2, 10)
    budget.spend(0)
    budget.spend(1)
    budget.give_back(1)
    assert budget.spend(2)
    assert not budget.spend(3)
    budget.give_back(99)
    assert budget.spend(4)


def test_rest_doubles_while_failures_go_on_and_is_bounded() -> None:
    budget = RestartBudget(3, 60)
    now, rests = 0.0, []
    for _ in range(7):
        rests.append(budget.rest(now))
        now += rests[-1] + 30  # it came back, and failed again
    assert rests == [60, 120, 240, 480, 900, 900, 900]
    assert budget.rest(now + 10_000) == 60  # it had been well for long
    budget.reset()
    assert budget.rest(now + 10_001) == 60


def test_rest_is_never_nothing_and_never_shorter_than_the_window() -> None:
    assert RestartBudget(0, 0).rest(0) == 1
    budget = RestartBudget(0, 3600)
    assert [budget.rest(0), budget.rest(3600)] == [3600, 3600]
