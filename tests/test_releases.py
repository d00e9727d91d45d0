"""What a release needs: one version, its changes, a citation, a security policy."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest
import release

import cospec

ROOT = Path(__file__).resolve().parents[1]
VERSION = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def test_the_version_is_written_in_one_place_of_the_code():
    (version,) = VERSION
    assert cospec.__version__ == version
    rooms = ("runtime", "export", "models", "calibration")
    sources = [ROOT / "__init__.py", *(p for room in rooms for p in (ROOT / room).rglob("*.py"))]
    assert [path for path in sources if f'"{version}"' in path.read_text(encoding="utf-8")] == []


def test_the_citation_is_of_this_version_and_can_be_read():
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == VERSION[0]
    assert cited["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(cited), "what CFF requires"
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {cited['version']} - {cited['date-released']}" in changes
    assert isinstance(cited["date-released"], date)


def test_a_release_without_its_changes_is_refused(monkeypatch, tmp_path):
    assert release.release_version() == VERSION[0]
    (tmp_path / "pyproject.toml").write_text('version = "9.9.9"\n')
    (tmp_path / "CHANGELOG.md").write_text("## Unreleased\n\n## 9.9.8 - 2026-01-01\n")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=r"no section '## 9\.9\.9"):
        release.release_version()


def test_the_security_policy_leads_to_the_page():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    (page,) = set(re.findall(r"\]\((\S+)\)", text))
    assert (ROOT / page).is_file()
