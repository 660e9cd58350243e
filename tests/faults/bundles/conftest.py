"""A store with two bundles, and a copy that a test may damage."""

import shutil
from pathlib import Path

import pytest

from tests.support.bundles import make_store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the bundles one and two, which no test changes."""
    return make_store(tmp_path_factory.mktemp("stores") / "store", "one", "two").path


@pytest.fixture
def there(made: Path, tmp_path: Path) -> Path:
    """A copy of the store."""
    return Path(shutil.copytree(made, tmp_path / "there"))
