import pytest

from bitinglip.results.cache.control import ANY, CacheControl, cache_control


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        ("no-store", CacheControl(store=False)),
        ("No-Cache", CacheControl(read=False)),
        ("max-age=30", CacheControl(max_age=30)),
        ('max-age="5", max-age=9', CacheControl(max_age=5)),
        ("max-age=" + "9" * 400, CacheControl(max_age=1e9)),
        ("max-age=-1, max-age=x, max-age=\u00b2, foo", ANY),
        ("no-cache,no-store", CacheControl(store=False, read=False)),
        ("", ANY),
    ],
)
def test_cache_control_is_read(value: str, asked: CacheControl) -> None:
    assert cache_control([(b"cache-control", value.encode("latin-1"))]) == asked


def test_cache_control_of_several_headers_is_one_list() -> None:
    given = [(b"cache-control", b"no-cache"), (b"x", b"y"), (b"cache-control", b"max-age=1")]
    assert cache_control(given) == CacheControl(read=False, max_age=1)
    assert cache_control([]) is ANY
