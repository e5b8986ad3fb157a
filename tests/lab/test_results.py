"""Checking claims over seeds, the result file, and what makes it stale."""

from __future__ import annotations

import json
import os
import signal
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from anabranch.lab import (
    Claim,
    Lab,
    LabError,
    ProcessPool,
    Request,
    check,
    is_stale,
    list_runs,
    load_result,
    papers,
    result_verdicts,
)
from anabranch.lab.code import CodeWatch, code_hash, imported_modules
from anabranch.lab.places import checkout, results_folder
from anabranch.lab.results import result_schema, write_result
from anabranch.lab.runs import active_runs

ABOVE = Claim(name="above", says="a is above 2.", measure="a", at_least=2, origin="ours", same_setting=True)


def seeds_give(*values: float) -> Callable[[Lab, Any], None]:
    def experiment(lab: Lab, settings: Any) -> None:
        lab.measure("a", values[lab.seed], unit="x")

    return experiment


def test_a_result_holds_every_seed_and_fits_the_schema(register: Callable[..., Any], tmp_path: Path) -> None:
    register(seeds_give(3, 3.2, 2.8), claims=(ABOVE,))
    outcome = check("test-paper", write=tmp_path)
    result = json.loads((tmp_path / "test-paper.json").read_text())
    jsonschema.validate(result, result_schema())
    assert result == outcome.result
    assert result["measures"]["a"]["values"] == {"0": 3, "1": 3.2, "2": 2.8}
    assert result["seeds"] == [0, 1, 2]
    assert [run.id for run in list_runs()] == result["runs"]
    claim = result["claims"][0]
    assert (claim["verdict"], claim["n"]) == ("holds", 3)
    assert claim["interval"][0] < claim["value"] < claim["interval"][1]
    assert result_verdicts(result)["above"].outcome == "holds"
    assert not is_stale(result)
    assert outcome.exit_code(strict=True) == 0


def test_a_changed_threshold_makes_a_result_stale(register: Callable[..., Any], tmp_path: Path) -> None:
    register(seeds_give(3, 3, 3), claims=(ABOVE,))
    result = check("test-paper", write=tmp_path).result
    register(seeds_give(3, 3, 3), claims=(Claim(**{**ABOVE.__dict__, "at_least": 1}),))
    assert is_stale(result)


def test_exit_codes(register: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anabranch.lab.results.results_folder", lambda: tmp_path)
    register(seeds_give(1, 1, 1), claims=(ABOVE,))
    outcome = check("test-paper", write=tmp_path)
    assert (outcome.exit_code(), outcome.exit_code(strict=True)) == (0, 1)
    register(seeds_give(3, 3, 3), claims=(ABOVE,))
    assert check("test-paper", write=tmp_path).exit_code() == 0
    register(seeds_give(1, 1, 1), claims=(ABOVE,))
    outcome = check("test-paper", write=tmp_path / "elsewhere")
    assert outcome.worse_than_committed == ["above"]
    assert outcome.exit_code() == 1


def test_a_crashed_seed_is_told_and_not_written_over_the_committed_result(
    register: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anabranch.lab.checking.results_folder", lambda: tmp_path)
    register(seeds_give(3, 3), claims=(ABOVE,))  # the third seed runs off the end
    outcome = check("test-paper")
    assert [run.seed for run in outcome.crashed] == [2]
    assert outcome.exit_code() == 1
    assert outcome.written is None
    assert not list(tmp_path.glob("*.json"))


def test_until_decided_adds_seeds_by_its_rule(register: Callable[..., Any], tmp_path: Path) -> None:
    register(seeds_give(1.9, 2.2, 2.3, 2.2, 2.25, 2.2, 2.2, 2.2), claims=(ABOVE,))
    outcome = check("test-paper", until_decided=8, write=tmp_path)
    assert outcome.verdicts[0].outcome == "holds"
    assert 3 < len(outcome.runs) <= 8
    assert outcome.result is not None
    assert outcome.result["seeds"] == list(range(len(outcome.runs)))
    assert "8 at most" in outcome.result["seeds_rule"]
    with pytest.raises(LabError, match="until_decided=2"):
        check("test-paper", until_decided=2)


def test_smoke_checks_do_not_touch_the_committed_results(
    register: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anabranch.lab.checking.results_folder", lambda: tmp_path / "committed")
    register(seeds_give(3, 3, 3), claims=(ABOVE,))
    for facts in ({"scale": "smoke"}, {"settings": {"size": "2"}}):
        outcome = check("test-paper", **facts)
        assert outcome.written is not None
        assert outcome.written.is_relative_to(outcome.runs[0].folder)
    assert check("test-paper").written == tmp_path / "committed" / "test-paper.json"


def test_a_pool_gives_the_same_measures_and_refuses_times(plugin: str, tmp_path: Path) -> None:
    pooled = check(plugin, scale="laptop", settings={"flips": "1000"}, executor=ProcessPool(2), write=tmp_path / "a")
    alone = check(plugin, scale="laptop", settings={"flips": "1000"}, write=tmp_path / "b")
    assert pooled.result is not None
    assert alone.result is not None
    assert pooled.result["measures"]["heads"] == alone.result["measures"]["heads"]
    found = result_verdicts(pooled.result)["vector-speed"]
    assert (found.outcome, found.reason) == ("not checked", "runs shared the machine")
    assert result_verdicts(alone.result)["vector-speed"].outcome == "holds"


def test_a_worker_that_dies_leaves_its_run_interrupted_and_no_other(plugin: str, tmp_path: Path) -> None:
    pids: dict[int, int] = {}

    def listener_for(request: Request) -> Callable[[dict[str, Any]], None]:
        def listen(event: dict[str, Any]) -> None:
            if event["type"] == "start":
                pids[request.seed] = event["pid"]
            if event["type"] == "series" and request.seed == 0 and 0 in pids:
                os.kill(pids.pop(0), signal.SIGKILL)

        return listen

    settings = {"pause_s": "0.1"}
    outcome = check(
        plugin, scale="smoke", settings=settings, executor=ProcessPool(2), write=tmp_path, listener_for=listener_for
    )
    assert [run.state for run in outcome.runs] == ["interrupted", "finished", "finished"]
    assert outcome.exit_code() == 1
    assert outcome.runs[0].series["heads"]


def test_a_pool_that_is_cancelled_stops_its_processes(plugin: str) -> None:
    runs = ProcessPool(2).run([Request(plugin, "smoke", seed, {"pause_s": 0.001}) for seed in range(3)])
    assert next(runs).state == "finished"
    runs.close()
    assert active_runs() == []


def test_an_unreadable_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(LabError, match=r"x\.json cannot be read"):
        load_result("x", folder=tmp_path)
    (tmp_path / "x.json").write_text('{"format": 99}')
    with pytest.raises(LabError, match="format 1"):
        load_result("x", folder=tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(LabError, match="cannot write the result"):
        write_result({"slug": "x"}, blocked / "deeper")


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "src" / "codehash_sample"
    root.mkdir(parents=True)
    (root / "__init__.py").write_text('"""A package."""\n')
    (root / "a.py").write_text("from codehash_sample import b\n\n\ndef f():\n    from . import c\n    return b.x, c\n")
    (root / "b.py").write_text("import json\nx = 1\n")
    (root / "c.py").write_text("import anabranch.lab.runs\n")
    (root / "d.py").write_text("y = 2\n")
    monkeypatch.syspath_prepend(root.parent)
    _forget()
    return root


def _forget() -> None:
    from anabranch.lab import code

    for function in (code.code_hash, code.imported_modules, code._source, code._root):
        function.cache_clear()


def test_the_code_hash_follows_imports_and_nothing_else(modules: Path) -> None:
    names = set(imported_modules("codehash_sample.a"))
    assert names == {f"codehash_sample{end}" for end in (".a", ".b", ".c")}  # the lab is not what is measured

    def changed(file: str, text: str) -> bool:
        before = code_hash("codehash_sample.a")
        path = modules / file
        kept = path.read_text()
        path.write_text(text)
        _forget()
        after = code_hash("codehash_sample.a")
        path.write_text(kept)
        _forget()
        return before != after

    assert changed("b.py", "import json\nx = 2\n")
    assert changed("c.py", "z = 1\n")
    assert not changed("d.py", "y = 3\n")
    assert not changed(
        "b.py",
        textwrap.dedent('''\
        """What b is."""
        import json

        # why x is one
        x = 1
        '''),
    )
    assert changed("b.py", "import json\nx = '''1\n'''\n")


def test_a_watch_sees_every_change_of_the_code(modules: Path) -> None:
    watch = CodeWatch(["codehash_sample.a"], every_s=0)
    found = watch.edition()
    assert watch.edition() == found
    hashes = {code_hash("codehash_sample.a")}

    def change(file: str, text: str) -> bool:
        """Whether it was seen, and the hash is that of the new code."""
        nonlocal found
        (modules / file).write_text(text)
        before, found = found, watch.edition()
        hashes.add(code_hash("codehash_sample.a"))
        return found != before

    assert change("b.py", "import json\nx = 3\n")  # as long as before
    assert len(hashes) == 2
    assert change("b.py", "from codehash_sample import e\nx = 3\n")  # a module that is not there yet
    assert change("e.py", "y = 1\n")
    assert len(hashes) == 4
    assert not change("d.py", "y = 9\n") or len(hashes) == 4  # nothing depends on it
    (modules / "e.py").unlink()
    assert watch.edition() != found
    hashes.add(code_hash("codehash_sample.a"))
    assert len(hashes) == 4  # as before there was an e
    found = watch.edition()
    with pytest.raises(SyntaxError):
        change("b.py", "def broken(:\n")
    assert change("b.py", "import json\nx = 1\n")


def test_a_watch_looks_no_oftener_than_it_is_told(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("anabranch.lab.code.time.monotonic", lambda: clock[0])
    watch = CodeWatch(["codehash_sample.a"], every_s=1.0)
    found = watch.edition()
    (modules / "b.py").write_text("x = 22\n")
    clock[0] += 0.9
    assert watch.edition() == found
    clock[0] += 0.2
    assert watch.edition() != found


def test_a_name_taken_from_a_package_leads_to_its_module_only(modules: Path) -> None:
    (modules / "face").mkdir()
    (modules / "face" / "__init__.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "from codehash_sample.face.one import first\nfrom .two import second as other\n"
        "if TYPE_CHECKING:\n    from .three import third\nLIST = [first]\n"
    )
    for name, word in (("one", "first"), ("two", "second"), ("three", "third"), ("four", "fourth")):
        (modules / "face" / f"{name}.py").write_text(f"def {word}():\n    pass\n")

    def of(text: str) -> set[str]:
        (modules / "d.py").write_text(text)
        _forget()
        return {name.removeprefix("codehash_sample.") for name in imported_modules("codehash_sample.d")} - {"d"}

    assert of("from codehash_sample.face import first") == {"face.one"}
    assert of("from codehash_sample.face import other, third") == {"face.two", "face.three"}
    assert of("import codehash_sample.face as f\nf.first()") == {"face.one"}
    assert of("from codehash_sample import face as f\nf.other()") == {"face.two"}
    assert of("from codehash_sample.face import four\nfour.fourth()") == {"face.four"}
    assert of("from codehash_sample.face.four import fourth") == {"face.four"}
    # what the face itself defines, or what cannot be told, takes it whole
    whole = {"face", "face.one", "face.two", "face.three"}
    assert of("from codehash_sample.face import LIST") == whole
    assert of("import codehash_sample.face as f\nprint(f)") == whole
    assert of("import codehash_sample.face\ncodehash_sample.face.first()") == whole
    assert of("from codehash_sample.face import *") == whole


@pytest.mark.parametrize("path", sorted(results_folder().glob("*.json")), ids=lambda path: path.stem)
def test_committed_results_fit_the_schema_and_their_paper(path: Path) -> None:
    result = json.loads(path.read_text())
    jsonschema.validate(result, result_schema())
    assert path.stem == result["slug"]
    paper = next(paper for paper in papers() if paper.slug == path.stem)
    assert {claim["name"] for claim in result["claims"]} <= {claim.name for claim in paper.claims}
    assert result["scale"] != "smoke"
    assert not result["dirty"]
    assert checkout() is not None
