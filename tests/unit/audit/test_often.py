"""Actions that any key may repeat cost few entries, and push no other key's out."""

from bitinglip.audit.entry import Action, Actor, Entry
from bitinglip.audit.often import OFTEN, Often
from bitinglip.audit.refusals import BURST, SECONDS_EACH, SUMMARY_SECONDS

DAY = 86_400


class Keys:
    """Makes tokens with keys, by a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.entries: list[Entry] = []
        self.often = Often(self.entries.append, clock=lambda: self.now)

    def act(self, key: str = "k", action: Action = Action.TOKEN_ISSUE, times: int = 1) -> int:
        """Return how many entries were taken."""
        return sum(self.often.takes(Entry(action, Actor(key, "name"))) for _ in range(times))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.often.tick()


def test_audit_budget_counts_further_tokens_of_a_key_by_the_hour() -> None:
    keys = Keys()
    assert keys.act(times=BURST + 300) == BURST
    assert keys.act(action=Action.TOKEN_REVOKE, times=7) == 0  # one budget for all it may do
    assert keys.act("other", times=BURST) == BURST  # and one for each key
    keys.pass_time(SUMMARY_SECONDS - 1)
    assert keys.entries == []
    keys.pass_time(1)
    told = [(each.action, each.actor.id, each.after) for each in keys.entries]
    assert told == [
        (Action.TOKEN_ISSUE, "k", {"count": 300, "seconds": 3600}),
        (Action.TOKEN_REVOKE, "k", {"count": 7, "seconds": 3600}),
    ]
    keys.pass_time(SUMMARY_SECONDS)
    assert len(keys.entries) == 2


def test_audit_budget_of_a_key_takes_years_to_fill_the_log() -> None:
    keys, taken = Keys(), 0
    for _ in range(DAY // 60):
        taken += keys.act(times=30)  # more than its budget gives back
        keys.pass_time(60)
    assert taken + len(keys.entries) <= BURST + DAY // SECONDS_EACH + 25


def test_audit_budget_forgets_keys_that_have_it_whole_again() -> None:
    keys = Keys()
    for number in range(1000):
        keys.act(str(number))
    assert len(keys.often) == 1000
    keys.pass_time(max(SUMMARY_SECONDS, SECONDS_EACH))
    assert len(keys.often) == 0


def test_audit_budget_always_takes_entries_about_scopes() -> None:
    keys = Keys()
    for action in Action:
        if action not in OFTEN:
            assert keys.act(action=action, times=BURST + 10) == BURST + 10
