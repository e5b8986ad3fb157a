"""The catalogue as open files: nothing is lost in JSON, and the others are read by their own tools."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from datetime import date
from pathlib import Path

import pytest

from anabranch.hub import Catalogue, Entry
from anabranch.hub.export import export
from anabranch.hub.views import catalogue_path
from anabranch.hub.votes import Votes
from anabranch.lab import LabError, papers
from anabranch.lab.results import load_result
from support import CommandLine

ODD = Entry(
    title="=SUM(A1) & {braces} 50% of $x_1$ — «rivières» 河",
    authors=("Ada Ünal", "B & C"),
    n_authors=5,
    arxiv="2601.00001",
    published=date(2026, 1, 2),
    listed=date(2026, 1, 3),
    abstract='One line.\nAnother, with a comma; and "quotes".',
    raw='{"paper": {"id": "2601.00001", "upvotes": 3}}',
)


@pytest.fixture
def catalogue(home: Path) -> Catalogue:
    with Catalogue(catalogue_path(), papers()) as found:
        found.add(ODD)
        found.add(Entry(title=ODD.title, published=date(2020, 5, 5)))
        yield found


def test_json_loses_nothing(catalogue: Catalogue, tmp_path: Path) -> None:
    votes = Votes(sqlite3.connect(catalogue_path(), isolation_level=None))
    row = catalogue.get("2601.00001")
    votes.toggle(row.id, "a")
    votes.toggle(row.id, "b")
    path = tmp_path / "all.json"
    text = export(catalogue, path=path)
    assert path.read_text() == text
    found = json.loads(text)
    assert found["format"] == 1
    assert len(found["papers"]) == len(papers()) + 2
    odd = next(p for p in found["papers"] if p["arxiv"] == "2601.00001")
    assert (odd["title"], odd["abstract"], odd["authors"]) == (ODD.title, ODD.abstract, list(ODD.authors))
    assert (odd["published"], odd["listed"], odd["n_authors"]) == ("2026-01-02", "2026-01-03", 5)
    assert odd["raw"] == {"paper": {"id": "2601.00001", "upvotes": 3}}
    assert (odd["votes"], odd["anabranch"]) == (2, None)
    for paper in papers():
        ours = next(p for p in found["papers"] if p["slug"] == paper.slug)["anabranch"]
        assert [claim["says"] for claim in ours["claims"]] == [claim.says for claim in paper.claims]
        assert ours["result"] == load_result(paper.slug)
        for claim in ours["claims"]:
            if claim["measured"]:
                assert claim["measured"]["name"] == claim["name"]


def test_csv_is_a_table_and_no_formula(catalogue: Catalogue) -> None:
    rows = list(csv.DictReader(io.StringIO(export(catalogue, "csv"))))
    assert len(rows) == len(papers()) + 2
    odd = next(row for row in rows if row["arxiv"] == "2601.00001")
    assert odd["title"] == "'" + ODD.title
    assert odd["authors"] == "Ada Ünal; B & C"
    ours = next(row for row in rows if row["slug"] == "flow-splitting")
    assert ours["holds"] == "8"


def test_bibtex_has_a_key_for_each_and_escapes(catalogue: Catalogue) -> None:
    text = export(catalogue, "bibtex")
    keys = [line.removeprefix("@misc{").rstrip(",") for line in text.splitlines() if line.startswith("@misc{")]
    assert len(keys) == len(set(keys)) == len(papers()) + 2
    assert "flow-splitting" in keys
    assert r"title = {{=SUM(A1) \& \{braces\} 50\% of \$x\_1\$ — «rivières» 河}}" in text
    assert r"author = {Ada Ünal and B \& C and others}" in text
    depth = 0
    for before, c in zip(" " + text, text, strict=False):
        depth += (c == "{") - (c == "}") if before != "\\" else 0
    assert depth == 0


def test_from_the_command_line(home: Path, anabranch: CommandLine, tmp_path: Path) -> None:
    done = anabranch("export")  # where nothing was imported: our own papers, and nothing is written
    assert done.returncode == 0, done.stderr
    assert {p["slug"] for p in json.loads(done.stdout)["papers"]} == {p.slug for p in papers()}
    assert not catalogue_path().exists()
    done = anabranch("export", "-o", str(tmp_path / "x.csv"), "--format", "csv")
    assert f"{len(papers())} papers in" in done.stdout
    assert (tmp_path / "x.csv").read_text().startswith("slug,arxiv,title")
    done = anabranch("export", "--format", "pdf")
    assert (done.returncode, "--format pdf" in done.stderr) == (2, True)
    done = anabranch("export", "-o", str(tmp_path / "no" / "x.json"))
    assert done.returncode == 2
    assert "cannot write" in done.stderr


def test_a_folder_that_cannot_be_written_is_said(catalogue: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="cannot write"):
        export(catalogue, path=tmp_path / "no" / "x.json")
