"""The real command line, in processes of its own: what a user types, reads and gets wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from anabranch.cli import TOP_LEVEL, app, package_commands
from support import ROOT, CommandLine


def test_the_top_level_is_frozen(anabranch: CommandLine) -> None:
    from typer.main import get_group

    own = set(get_group(app).commands)
    assert own <= set(TOP_LEVEL)
    assert set(TOP_LEVEL) - own <= {"serve", "digest"}  # these come with the page
    listed = anabranch("--help").stdout
    assert all(name in listed for name in [*own, *package_commands()])


def test_help_of_every_command(anabranch: CommandLine) -> None:
    from typer.main import get_group

    for name in get_group(app).commands:
        result = anabranch(name, "--help")
        assert result.returncode == 0, result.stderr
        assert "Usage" in result.stdout


def test_run_takes_exactly_its_options() -> None:
    from typer.main import get_group

    options = {option for parameter in get_group(app).commands["run"].params for option in parameter.opts}
    wanted = {"--scale", "--seed", "--set", "--on", "--device", "--dry-run", "--resume"}
    assert {option for option in options if option.startswith("--")} - {"--help"} == wanted


@pytest.mark.parametrize("command", [("papers", "flow"), ("papers", "--json"), ("show", "gpipe")])
def test_listing_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    code = (
        "import sys; from anabranch.cli import main\n"
        "sys.argv = ['anabranch', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        "bad = {'torch', 'numpy', 'scipy', 'numba', 'matplotlib'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    result = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_importing_the_lab_loads_no_torch() -> None:
    code = "import sys, anabranch.lab; assert not {'torch', 'numpy', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_whole_tour(anabranch: CommandLine, plugin: str, tmp_path: Path) -> None:
    done = anabranch("run", plugin, "--scale", "smoke", "--set", "flips=2000")
    assert done.returncode == 0, done.stderr
    assert "at scale smoke, seed 0, about 2 s; data: none needed" in done.stdout
    assert "finished in" in done.stdout
    assert "\x1b" not in done.stdout  # a pipe gets plain lines
    done = anabranch("check", plugin, "--seeds", "3", "--write", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    assert [claim["verdict"] for claim in json.loads(done.stdout)[0]["claims"]] == ["holds"] * 3
    runs = json.loads(anabranch("runs", "--json").stdout)
    assert [run["state"] for run in runs] == ["finished"] * 4
    assert runs[0]["measures"]["counted"] == 1
    assert "coin-flips" in anabranch("runs").stdout
    report = tmp_path / "deep" / "report.html"
    assert anabranch("report", runs[0]["id"], "--output", str(report)).returncode == 0
    html = report.read_text()
    assert "A Coin Is Fair" in html
    assert "anabranch run coin-flips --scale smoke --seed 0 --set flips=2000" in html
    compared = json.loads(anabranch("compare", runs[0]["id"], runs[1]["id"], "--json").stdout)
    assert compared["settings"] == {"flips": [2000, 1_000_000]}
    assert "setting flips" in anabranch("compare", runs[0]["id"], runs[1]["id"]).stdout
    shown = json.loads(anabranch("show", plugin, "--json").stdout)
    assert shown["runnable"]
    assert "all-counted" in {claim["name"] for claim in shown["claims"]}


def test_a_dry_run_makes_nothing(anabranch: CommandLine, plugin: str, home: Path) -> None:
    done = anabranch("run", plugin, "--scale", "laptop", "--dry-run")
    assert done.returncode == 0
    assert "flips = 1000000" in done.stdout
    assert not (home / "runs").exists()


def test_an_interrupted_run_is_started_again_as_it_was(anabranch: CommandLine, plugin: str) -> None:
    from anabranch.lab import find_run
    from anabranch.lab.execution import Request, header_for
    from anabranch.lab.runs import RunFolder

    with RunFolder.create(header_for(Request(plugin, "smoke", 7, {"flips": "123"}))) as folder:
        folder.log.write("start")
    done = anabranch("run", "--resume", folder.folder.name)
    assert done.returncode == 0, done.stderr
    run = find_run("latest")
    assert (run.slug, run.scale, run.seed, run.header["settings"]["flips"]) == (plugin, "smoke", 7, 123)
    assert run.header["resumes"] == folder.folder.name
    refused = anabranch("run", "--resume", run.id)
    assert refused.returncode == 2
    assert "finished; there is nothing to resume" in refused.stderr


def test_run_on_a_pool(anabranch: CommandLine, plugin: str) -> None:
    done = anabranch("run", plugin, "--scale", "smoke", "--on", "pool:1")
    assert done.returncode == 0, done.stderr
    assert "heads = " in done.stdout


def test_a_failing_run_exits_1_and_keeps_its_measures(anabranch: CommandLine, plugin: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    (broken / "coin_flips").mkdir(parents=True)
    source = ROOT / "examples" / "plugin" / "src" / "coin_flips"
    (broken / "coin_flips" / "__init__.py").write_text((source / "__init__.py").read_text())
    text = (
        (source / "experiment.py")
        .read_text()
        .replace('with lab.stage("time"):', 'raise MemoryError("too large")\n    with lab.stage("time"):')
    )
    (broken / "coin_flips" / "experiment.py").write_text(text)
    done = anabranch(
        "run", plugin, "--scale", "smoke", env={"PYTHONPATH": f"{broken}{os.pathsep}{os.environ['PYTHONPATH']}"}
    )
    assert done.returncode == 1
    assert "failed after" in done.stdout
    assert "MemoryError: too large" in done.stdout
    assert "2 measures kept" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "coin-flip"), "unknown paper 'coin-flip'; did you mean coin-flips?"),
        (("run",), "name a paper to run"),
        (("run", "coin-flips", "--set", "flip=3"), "unknown setting 'flip'; did you mean flips?"),
        (("run", "coin-flips", "--set", "flips=many"), "flips='many': expected a whole number"),
        (("run", "coin-flips", "--set", "flips=0"), "flips=0: expected at least 1"),
        (("run", "coin-flips", "--set", "flips"), "--set 'flips': expected KEY=VALUE"),
        (("run", "coin-flips", "--set", "flips=1", "--set", "flips=2"), "given twice"),
        (("run", "coin-flips", "--scale", "lap"), "unknown scale 'lap'; did you mean laptop?"),
        (("run", "coin-flips", "--on", "mars"), "--on mars: expected here, pool, pool:N, ray"),
        (("run", "coin-flips", "--on", "pool:0"), "N of at least 1"),
        (("run", "gm-nas"), "gm-nas has no experiment yet"),
        (("check", "coin-flips", "--until-decided", "2"), "until_decided=2"),
        (("check", "coin-flips", "nothing"), "unknown paper 'nothing'"),
        (("show", "splitwize"), "did you mean splitwise?"),
        (("papers", "--package", "generativ"), "did you mean generative?"),
        (("papers", "new", "Not A Slug"), "expected lower-case words"),
        (("papers", "new", "gpipe"), "there is a paper 'gpipe' already"),
        (("report", "latest"), "there are no runs yet"),
        (("compare", "a", "b"), "there are no runs yet"),
        (("import", "no-such-file.txt"), "cannot read no-such-file.txt: no such file"),
        (("runs", "coinflips"), "did you mean coin-flips?"),
    ],
)
def test_bad_input_is_one_line_that_helps(
    anabranch: CommandLine, plugin: str, arguments: tuple[str, ...], message: str
) -> None:
    done = anabranch(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("anabranch: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_verbose_shows_the_traceback(anabranch: CommandLine) -> None:
    assert "Traceback" in anabranch("--verbose", "show", "nothing-like-it").stderr


def test_an_unwritable_data_folder(anabranch: CommandLine, plugin: str, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    for arguments in (("run", plugin, "--scale", "smoke"), ("check", plugin)):
        done = anabranch(*arguments, env={"ANABRANCH_HOME": str(blocked)})
        assert done.returncode == 2
        assert "set ANABRANCH_HOME to a folder you can write to" in done.stderr
    assert anabranch("papers", env={"ANABRANCH_HOME": str(blocked)}).returncode == 0  # looking needs no writing


def test_a_page_with_no_entries(anabranch: CommandLine, tmp_path: Path) -> None:
    page = tmp_path / "page.txt"
    page.write_text("nothing to see here\n")
    done = anabranch("import", str(page))
    assert done.returncode == 2
    assert str(page) in done.stderr


def test_the_saved_page_is_imported_twice_without_harm(anabranch: CommandLine, shared_data: Path) -> None:
    page = str(shared_data / "daily-papers-flow-splitting.txt")
    first, second = (json.loads(anabranch("import", page, "--json").stdout) for _ in range(2))
    assert (first["found"], first["added"], first["ours"]) == (28, 0, 28)
    assert (second["matched"], second["total"]) == (28, 28)


def test_a_damaged_run_folder_is_named_and_skipped(anabranch: CommandLine, plugin: str, home: Path) -> None:
    assert anabranch("run", plugin, "--scale", "smoke").returncode == 0
    (folder,) = (home / "runs").iterdir()
    (folder / "run.json").write_text("{")
    done = anabranch("runs")
    assert done.returncode == 0
    assert "no runs yet" in done.stdout
    assert "skipped" in done.stderr
    assert str(folder / "run.json") in done.stderr


def test_no_color_is_respected(anabranch: CommandLine) -> None:
    from anabranch.lab.terminal import make_console

    code = "from anabranch.lab.terminal import make_console; make_console().print('[red]x[/]')"
    shown = subprocess.run(
        ["script", "-qec", f'{sys.executable} -c "{code}"', "/dev/null"],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "TERM": "xterm-256color"},
    )
    assert "x" in shown.stdout
    assert "31m" not in shown.stdout
    assert make_console().color_system is None


def test_a_new_paper_runs_at_once(anabranch: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = anabranch("papers", "new", "my-idea", "--into", str(tmp_path))
    assert done.returncode == 0, done.stderr
    info = tmp_path / "my_idea-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-idea\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[anabranch.papers]\nmy-idea = my_idea\n")
    env = {"PYTHONPATH": str(tmp_path)}
    checked = anabranch("check", "my-idea", "--write", str(tmp_path / "out"), env=env)
    assert checked.returncode == 0, checked.stderr
    assert json.loads((tmp_path / "out" / "my-idea.json").read_text())["claims"][0]["verdict"] == "holds"
    assert anabranch("papers", "new", "my-idea", "--into", str(tmp_path)).returncode == 2  # nothing is written over


def test_a_plugin_that_does_not_load_is_left_out_with_a_warning(anabranch: CommandLine, tmp_path: Path) -> None:
    info = tmp_path / "bad-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[anabranch.papers]\nbad = no_such_module\n")
    done = anabranch("papers", "--json", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0
    assert len(json.loads(done.stdout)) == 28
    assert "'bad'" in done.stderr
    assert "left out" in done.stderr
