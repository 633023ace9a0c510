"""What all tests have in common: a cache folder that is not the user's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.caches import cache_with_kernels


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A cache folder of this session; compiled kernels are kept in pytest's cache from session to session."""
    kernels = Path(request.config.cache.mkdir("kernels")) if request.config.cache else None
    folder = tmp_path_factory.mktemp("cache")
    return cache_with_kernels(folder / "residency", kernels or folder / "kernels")


@pytest.fixture(scope="session", autouse=True)
def _no_users_cache(session_cache: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESIDENCY_CACHE", str(session_cache))
        yield
