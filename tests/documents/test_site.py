"""The site: it builds without a warning, loads nothing from elsewhere, and its figures follow from the code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval.bundle.manifest import INDEX, VECTORS, read_manifest
from service.settings import Settings
from tests.support.pages import ROOT

sys.path.insert(0, str(ROOT / "docs" / "generating"))
import capacity

PROJECT = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")


def build(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(folder)
    assert built.returncode == 0, built.stderr[-4000:]
    return folder


def test_it_builds_without_a_warning(site: Path) -> None:
    """If this failed, a link or an anchor of the site would be broken, or a page would be missing from its menu."""
    assert (site / "index.html").is_file()
    assert (site / "benchmarks" / "results" / "keywords" / "index.html").is_file()


def test_a_wrong_link_is_a_warning(tmp_path: Path) -> None:
    """If this failed, the build would accept a link to a heading that does not exist."""
    pages = tmp_path / "docs"
    pages.mkdir()
    (pages / "index.md").write_text("# One\n\n[two](other.md#not-there)\n")
    (pages / "other.md").write_text("# Other\n")
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    checks = config[config.index("validation:") : config.index("not_in_nav:")]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\nstrict: true\n{checks}")
    built = build(tmp_path / "site", "--config-file", str(tmp_path / "mkdocs.yml"))
    assert built.returncode != 0
    assert "not-there" in built.stderr


def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    """If this failed, readers' browsers would send requests to other servers."""
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]+src=\"?(https?:)?//|<link[^>]+rel=\"?stylesheet[^>]+href=\"?(https?:)?//"
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    assert [page for page in pages if loaded.search(page.read_text(encoding="utf-8"))] == []


def test_every_setting_is_documented(site: Path) -> None:
    """If this failed, a setting would be missing from the documentation."""
    shown = (site / "reference" / "settings" / "index.html").read_text(encoding="utf-8")
    assert [name for name in Settings.model_fields if f"DIPTYCH_{name.upper()}" not in shown] == []


@pytest.mark.parametrize("name", PROJECT)
def test_links_of_the_repository_exist(name: str) -> None:
    """If this failed, a page in the repository would have a broken link."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / name).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_capacity_formula_is_that_of_real_bundles(made: Path) -> None:
    """If this failed, the capacity table would not match real bundles."""
    manifest = read_manifest(made / "store" / "bundles" / "one")
    labels = manifest.labels.count
    expected = capacity.index_bytes(labels, manifest.index_dim, manifest.index.m)
    assert manifest.files[INDEX].bytes == pytest.approx(expected, rel=0.01)
    number = 1 if manifest.vectors == "int8" else 4
    assert manifest.files[VECTORS].bytes == pytest.approx(labels * number * manifest.model.dim, rel=0.01)
