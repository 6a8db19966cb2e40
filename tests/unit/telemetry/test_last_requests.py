from bitinglip.telemetry.last_requests import MOST, LastRequests


def test_last_requests_are_bounded_and_the_newest_come_first() -> None:
    kept = LastRequests()
    for number in range(MOST + 10):
        kept.add("/v1/x", (0.0, f"r{number}", "GET", "/v1/x", 200, 0.1, None, None, None))
    ids = [each.request_id for each in kept]
    assert (len(ids), ids[0], kept.total) == (MOST, f"r{MOST + 9}", MOST + 10)
