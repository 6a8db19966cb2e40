"""All engines\047 tests share one fixture."""

from tests.support.frozen_imports import frozen_imports

__all__ = ["frozen_imports"]
