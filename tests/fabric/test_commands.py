"""`anabranch fabric` through the real command line, against the library's own answers."""

import csv
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from anabranch import cli
from anabranch.fabric import (
    LeafSpine,
    Plan,
    Topology,
    Traffic,
    collective,
    concatenate,
    fail_links,
    model_traffic,
    optimum,
    plan_ecmp,
    plan_greedy,
    plan_konig,
    plan_split,
    plan_spray,
    read_placement,
    read_traffic,
    replan,
    simulate_fluid,
    simulate_packets,
    write_path_table,
)
from anabranch.fabric._comparison import durations
from anabranch.fabric._jobs import fail_cables, once, parse_bytes
from anabranch.simulation import LLAMA2_70B
from support import ROOT

EXAMPLES = ROOT / "examples"
FABRIC, FLOWS, PLACEMENT = (str(EXAMPLES / name) for name in ("fabric.json", "traffic.csv", "placement.csv"))
ON_EXAMPLE = ("--topology", FABRIC, "--traffic", FLOWS)


@pytest.fixture
def refused(monkeypatch, capsys):
    """The entry point in this process on bad input: exit code 2 and one line, which is given back."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["anabranch", "fabric", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        assert stopped.value.code == 2, out + err
        assert err.startswith("anabranch: error: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        assert not out
        return err.removeprefix("anabranch: error: ").rstrip()

    return run


def found(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def same_plan(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("parent", "path", "size_bytes"))


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_option_on_the_examples_gives_the_librarys_numbers(anabranch, tmp_path):
    placement = tmp_path / "placement.csv"
    placement.write_text("rank,nic\n" + "".join(f"{rank},{31 - rank}\n" for rank in range(32)))
    files = {
        option: tmp_path / name for option, name in (("output", "p.csv"), ("paths-json", "p.json"), ("nccl", "n.conf"))
    }
    writing = [word for option, file in files.items() for word in (f"--{option}", str(file))]
    failing = ("--fail", "leaf1-spine2", "--fail", "spine4->leaf3")
    simulating = ("--packets", "--packet-bytes", "8192", "--seed", "3", "--parts", "4")
    done = anabranch(
        "fabric", "plan", *ON_EXAMPLE, "--placement", str(placement), *failing, *simulating, *writing, "--json"
    )
    report = found(done)
    assert not done.stderr

    whole = Topology.from_file(FABRIC)
    down = [*whole.cable(0, 1), whole.downlink(2, 3)]
    fabric = fail_links(whole, down)
    assert report["fabric"] == {
        "nics": 32,
        "leaves": 4,
        "links": 96,
        "failed": ["leaf1->spine2", "spine2->leaf1", "spine4->leaf3"],
    }
    flows = read_traffic(FLOWS)
    traffic = Traffic(31 - flows.src, 31 - flows.dst, flows.size_bytes, start_s=flows.start_s)
    assert report["traffic"]["flows"] == 44
    assert report["traffic"]["bytes"] == traffic.total_bytes
    best = optimum(fabric, traffic).value_s
    assert report["bounds"]["congestion_s"] == pytest.approx(best, rel=1e-9)
    plans = {
        "konig": plan_konig(fabric, traffic),
        "split": plan_split(fabric, traffic),
        "greedy": plan_greedy(fabric, traffic),
        "ecmp": plan_ecmp(fabric, traffic, seed=3),
        "ecmp-x4": plan_ecmp(fabric, traffic, split=4, seed=3),
        "spray": plan_spray(fabric, traffic),
    }
    assert report["method"] == "konig"
    assert set(report["methods"]) == set(plans)
    for name, plan in plans.items():
        row = report["methods"][name]
        fluid = simulate_fluid(fabric, plan)
        assert row["completion_s"] == pytest.approx(fluid.completion_s, rel=1e-9)
        assert row["completion_s"] >= report["bounds"]["completion_s"]
        assert row["congestion_s"] == pytest.approx(plan.max_congestion_s(), rel=1e-12)
        assert row["congestion_over_optimum"] == pytest.approx(plan.max_congestion_s() / best, rel=1e-9)
        spray = "random" if name == "spray" else None
        packets = simulate_packets(fabric, plan, seed=3, packet_bytes=8192, spray=spray)
        assert row["packets"] == {
            "completion_s": pytest.approx(packets.completion_s, rel=1e-12),
            "reordered_fraction": pytest.approx(packets.reordered_fraction),
            "max_queue_bytes": packets.max_queue_bytes.max(),
        }
        if name == "spray":
            assert row["pieces_per_flow"] is row["queue_pairs"] is None
        else:
            assert row["pieces_per_flow"] == pytest.approx(plan.n_pieces / 44)
            assert row["queue_pairs"] == plan.queue_pairs_per_nic().max()

    assert report["written"] == {option: str(file) for option, file in files.items()}
    konig = plans["konig"]
    assert same_plan(Plan.from_csv(files["output"], fabric, traffic), konig)
    write_path_table(konig, tmp_path / "own.json")
    assert files["paths-json"].read_text() == (tmp_path / "own.json").read_text()
    most = np.bincount(konig.parent).max()
    assert (
        files["nccl"].read_text() == f"NCCL_IB_QPS_PER_CONNECTION={most}\nNCCL_IB_SPLIT_DATA_ON_QPS={int(most > 1)}\n"
    )


@pytest.mark.parametrize(
    ("method", "planner"),
    [
        (("split",), plan_split),
        (("greedy",), plan_greedy),
        (("ecmp", "--parts", "2", "--seed", "5"), lambda f, t: plan_ecmp(f, t, split=2, seed=5)),
    ],
    ids=["split", "greedy", "ecmp"],
)
def test_the_chosen_method_is_first_and_written(anabranch, tmp_path, method, planner):
    file = tmp_path / "paths.csv"
    arguments = (
        "--collective",
        "all_to_all",
        "--bytes",
        "1.5MB",
        "--ranks",
        "20",
        "--method",
        *method,
        "-o",
        str(file),
    )
    done = anabranch("fabric", "plan", "-t", "4x3x8", *arguments)
    assert done.returncode == 0, done.stderr
    fabric = LeafSpine(4, 3, 8)
    traffic = collective("all-to-all", ranks=20, message_bytes=1_500_000)
    plan = planner(fabric, traffic)
    assert same_plan(Plan.from_csv(file, fabric, traffic), plan)
    name = "ecmp-x2" if method[0] == "ecmp" else method[0]
    rows = [line.split()[0] for line in done.stdout.splitlines() if re.match(r" [a-z]", line)]
    expected = [name, *(m for m in ("konig", "split", "greedy", "ecmp", "spray") if m != name)]
    assert rows == ["method", *expected, "bound"]
    assert f"({plan.n_pieces:,} pieces)" in done.stdout
    assert "380 flows, 28.5 MB" in done.stdout
    assert f"result    {name} takes" in done.stdout


def test_alike_steps_are_looked_at_once_and_counted(anabranch, tmp_path):
    """A ring repeats one step, a training iteration repeats whole phases."""
    file = tmp_path / "paths.csv"
    model = ("--model", "smollm2-135m", "--parallel", "2,2,8", "--sequence", "1024", "--micro-batches", "6")
    report = found(anabranch("fabric", "plan", "-t", "4x3x8", *model, "--packets", "-o", str(file), "--json"))
    fabric = LeafSpine(4, 3, 8)
    from anabranch.simulation import SMOLLM2_135M

    phases = model_traffic(SMOLLM2_135M, tensor_parallel=2, pipeline=2, data=8, sequence=1024, micro_batches=6)
    assert [phase.repeats for phase in phases] == [6, 1]
    for name, planner in (("konig", plan_konig), ("greedy", plan_greedy), ("spray", plan_spray)):
        row = report["methods"][name]
        for phase in phases:
            fluid = simulate_fluid(fabric, planner(fabric, phase.traffic))
            assert row["phase_s"][phase.name] == pytest.approx(phase.repeats * fluid.completion_s, rel=1e-9)
        assert row["completion_s"] == pytest.approx(sum(row["phase_s"].values()))
    plans = [plan_konig(fabric, phase.traffic) for phase in phases]
    seconds = [p.repeats * simulate_packets(fabric, q, seed=0).completion_s for p, q in zip(phases, plans, strict=True)]
    assert report["methods"]["konig"]["packets"]["completion_s"] == pytest.approx(sum(seconds), rel=1e-9)
    pieces = sum(p.repeats * q.n_pieces for p, q in zip(phases, plans, strict=True))
    flows = sum(p.repeats * p.traffic.n_flows for p in phases)
    assert report["methods"]["konig"]["pieces_per_flow"] == pytest.approx(pieces / flows)
    assert report["traffic"]["flows"] == flows
    assert report["traffic"]["steps"] == 6 + 14
    assert report["traffic"]["phase_bytes"] == {p.name: p.repeats * p.traffic.total_bytes for p in phases}
    # The file lists every step once, in order.
    whole = concatenate(*(phase.traffic for phase in phases), one_after_the_other=True)
    assert same_plan(Plan.from_csv(file, fabric, whole), plan_konig(fabric, whole))
    again = found(anabranch("fabric", "simulate", str(file), "-t", "4x3x8", "--json"))["methods"]["plan"]
    assert again["completion_s"] == pytest.approx(sum(simulate_fluid(fabric, plan).completion_s for plan in plans))
    assert again["packets"]["completion_s"] == pytest.approx(
        sum(simulate_packets(fabric, plan, seed=0).completion_s for plan in plans), rel=1e-9
    )


def test_the_example_placement_is_hosts_of_eight_in_fragments(anabranch):
    nics = read_placement(PLACEMENT, n_nics=256)
    hosts = nics.reshape(32, 8)
    assert (hosts % 8 == np.arange(8)).all()
    order = hosts[:, 0] // 8
    assert sorted(order) == list(range(32))
    runs = int((np.diff(order) != 1).sum()) + 1
    assert 8 <= runs <= 24
    job = ("--model", "llama-2-70b", "--parallel", "8,4,8", "--placement", PLACEMENT)
    report = found(anabranch("fabric", "plan", "-t", "16x16x16", *job, "--json"))
    fabric = LeafSpine(16, 16, 16)
    phases = model_traffic(
        LLAMA2_70B, tensor_parallel=8, pipeline=4, data=8, sequence=4096, micro_batches=8, placement=nics
    )
    for name, plan in (("konig", plan_konig), ("ecmp", lambda f, t: plan_ecmp(f, t, seed=0))):
        expected = sum(p.repeats * simulate_fluid(fabric, plan(fabric, p.traffic)).completion_s for p in phases)
        assert report["methods"][name]["completion_s"] == pytest.approx(expected, rel=1e-9)
    assert report["methods"]["konig"]["congestion_over_optimum"] == pytest.approx(1, abs=1e-6)
    assert report["methods"]["ecmp"]["completion_s"] > 3 * report["methods"]["konig"]["completion_s"]


def test_a_model_from_its_configuration_is_the_model(anabranch, tmp_path):
    keys = {"num_hidden_layers": 80, "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8}
    keys |= {"intermediate_size": 28672, "vocab_size": 32000}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    options = ("-t", "8x4x4", "--parallel", "4,2,4", "--algorithm", "halving-doubling", "--json")
    named, read = (
        found(anabranch("fabric", "plan", *options, "--model", model))
        for model in ("Llama-2-70B", str(tmp_path / "config.json"))
    )
    assert read["methods"] == named["methods"]
    assert "Llama-2-70B on 32 ranks" in named["traffic"]["name"]
    assert named["traffic"]["steps"] == 8 + 4


def test_chakra_traces_and_expert_models(anabranch, tmp_path):
    trace = tmp_path / "trace.json"
    group = list(range(16))
    nodes = [{"comm_type": "ALL_REDUCE", "comm_size": 2**20, "group": group}]
    nodes += [{"comm_type": "SEND", "comm_size": 4096, "comm_src": 0, "comm_dst": 9}]
    trace.write_text(json.dumps(nodes))
    report = found(
        anabranch("fabric", "plan", "-t", "4x2x4", "--chakra", str(trace), "--algorithm", "halving-doubling", "--json")
    )
    assert report["traffic"]["steps"] == 8 + 1
    assert report["traffic"]["flows"] == 8 * 16 + 1
    model = ("--model", "mixtral-8x7b", "--parallel", "2,1,8,8", "--sequence", "256")
    done = anabranch("fabric", "plan", "-t", "4x2x4", *model)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ experts +\d", done.stdout, re.MULTILINE)
    assert "data 8, expert 8" in done.stdout
    assert "from a NIC to itself left out" in done.stdout


def test_simulate_reads_what_plan_wrote_and_moves_pieces_off_dead_cables(anabranch, tmp_path):
    file = str(tmp_path / "paths.csv")
    planned = found(anabranch("fabric", "plan", *ON_EXAMPLE, "-m", "split", "-o", file, "--packets", "--json"))
    report = found(anabranch("fabric", "simulate", file, "--topology", FABRIC, "--json"))
    assert report["methods"]["plan"]["completion_s"] == planned["methods"]["split"]["completion_s"]  # start times too
    assert report["methods"]["plan"]["packets"] == planned["methods"]["split"]["packets"]
    assert report["moved_pieces"] == 0
    whole = Topology.from_file(FABRIC)
    before = Plan.from_csv(file, whole)
    fabric = fail_links(whole, whole.cable(0, 1))
    after = replan(before, fabric)
    done = anabranch(
        "fabric", "simulate", file, "--topology", FABRIC, "--fail", "spine2-leaf1", "--no-packets", "--json"
    )
    report = found(done)
    assert report["moved_pieces"] == (before.path != after.path).sum() > 0
    row = report["methods"]["plan"]
    assert row["packets"] is None
    assert row["completion_s"] == pytest.approx(simulate_fluid(fabric, after).completion_s, rel=1e-12)
    busy = after.congestion_s()[64:]
    assert list(report["busiest_links_s"].values()) == pytest.approx(np.sort(busy)[::-1][:3])
    done = anabranch("fabric", "simulate", file, "--topology", FABRIC, "--fail", "spine2-leaf1")
    assert f"moved     {report['moved_pieces']} of {after.n_pieces} pieces off cables that are down" in done.stdout
    assert "down      leaf1->spine2, spine2->leaf1" in done.stdout


def test_plain_in_a_pipe_and_without_color_when_asked(anabranch):
    arguments = ("fabric", "plan", "-t", "2x2x4", "--collective", "all-reduce", "--bytes", "64KiB")
    done = anabranch(*arguments)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert not done.stderr
    assert "result    every method takes the same time" in done.stdout
    command = " ".join([sys.executable, "-m", "anabranch.cli", *arguments, "--fail", "leaf0-spine0"])
    shown = {}
    for color in (None, "1"):
        env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        env |= {"TERM": "xterm-256color", "COLUMNS": "80"} | ({"NO_COLOR": color} if color else {})
        done = subprocess.run(["script", "-qec", command, "/dev/null"], capture_output=True, text=True, env=env)
        shown[color] = done.stdout
    assert "\x1b[31m" in shown[None]
    assert "\x1b[31m" not in shown["1"]
    assert "konig: planning and simulating" in shown["1"]
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown["1"]).splitlines()
    assert max(len(line) for line in lines if line.startswith(" ")) <= 80


def test_nothing_to_send(anabranch):
    done = anabranch("fabric", "plan", "-t", "2x2x4", "--model", "smollm2-135m", "--parallel", "8,1,1", "--packets")
    assert done.returncode == 0, done.stderr
    assert "0 flows" in done.stdout
    assert "nothing to send" in done.stdout


def test_a_fabric_of_three_tiers_from_a_file(anabranch, tmp_path):
    """Two pods of two leaves and two aggregation switches, two cores on every aggregation switch."""
    tiers = {"leaf": [f"t{i}" for i in range(4)], "agg": [f"a{i}" for i in range(4)], "core": ["c0", "c1"]}
    nodes = [{"id": name, "kind": kind} for kind, names in tiers.items() for name in names]
    nodes += [{"id": f"n{i}", "kind": "gpu"} for i in range(8)]
    cables = [(f"n{i}", f"t{i // 2}", 100) for i in range(8)]
    cables += [(f"t{i}", f"a{i // 2 * 2 + j}", 100) for i in range(4) for j in range(2)]
    cables += [(f"a{i}", f"c{j}", 100) for i in range(4) for j in range(2)]
    links = [{"a": a, "b": b, "gbps": rate} for a, b, rate in cables]
    file = tmp_path / "pods.json"
    file.write_text(json.dumps({"nodes": nodes, "links": links}))
    options = ("--collective", "all-to-all", "--bytes", "8MB", "--fail", "a0->c1")
    report = found(anabranch("fabric", "plan", "-t", str(file), *options, "--json"))
    whole = Topology.from_file(file)
    fabric = fail_cables(whole, ["a0->c1"])
    assert [whole.link_name(int(link)) for link in fabric.failed] == report["fabric"]["failed"] == ["a0->c1"]
    traffic = collective("all-to-all", ranks=8, message_bytes=8_000_000)
    assert report["bounds"]["congestion_s"] == pytest.approx(optimum(fabric, traffic).value_s, rel=1e-9)
    assert report["methods"]["konig"]["congestion_over_optimum"] == pytest.approx(1, abs=1e-5)
    done = anabranch("fabric", "plan", "-t", str(file), *options)
    assert "8 NICs (100 Gb/s) on 4 leaves, 32 links between switches (100 Gb/s)" in done.stdout


def test_help_is_listed(anabranch):
    assert "fabric" in anabranch("--help").stdout
    text = anabranch("fabric", "plan", "--help").stdout
    assert all(f"--{name}" in text for name in ("topology", "collective", "paths-json", "fail"))
    done = anabranch("fabric", "plan", *ON_EXAMPLE, "--method", "konigg")  # in a process of its own, once
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "anabranch: error: unknown method 'konigg'; did you mean konig?\n"


ONE_OF = "give exactly one of --traffic, --chakra, --collective, --model, got "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-t", FABRIC), ONE_OF + "none"),
        ((*ON_EXAMPLE, "--model", "llama-2-70b"), ONE_OF + "--traffic and --model"),
        ((*ON_EXAMPLE, "--method", "konigg"), "unknown method 'konigg'; did you mean konig?"),
        ((*ON_EXAMPLE, "--method", "lag"), "unknown method 'lag'; there are: konig, split, greedy, ecmp, spray"),
        ((*ON_EXAMPLE, "--method", "ecmp-x4"), "unknown method 'ecmp-x4'; write --method ecmp --parts 4"),
        ((*ON_EXAMPLE, "--bytes", "1MB"), "--bytes goes with --collective, not with --traffic"),
        ((*ON_EXAMPLE, "--fail", "leaf1-spin2"), "unknown cable 'leaf1-spin2'; did you mean leaf1-spine2"),
        ((*ON_EXAMPLE, "--fail", "leaf9"), "unknown cable 'leaf9'"),
        (
            (*ON_EXAMPLE, "--fail", "rack1-host1-nic0-leaf1"),
            "topology has no path left for the NIC pairs 0 -> 24, 11 -> 0",
        ),
        (
            (*ON_EXAMPLE, *(word for k in "1234" for word in ("--fail", f"leaf4-spine{k}"))),
            "topology has no path left for the NIC pairs 0 -> 24, 1 -> 26, ",
        ),
        (
            (*ON_EXAMPLE, "--method", "spray", "--output", "p.csv"),
            "--output: spraying picks a path for every packet, there is no plan to write",
        ),
        ((*ON_EXAMPLE, "--nccl", "no-such/n.conf"), "--nccl no-such/n.conf: there is no folder no-such"),
        (
            ("-t", "no-such.json", "--traffic", FLOWS),
            "topology must be a JSON file or LEAVESxSPINESxNICS such as 16x16x16, but there is no 'no-s",
        ),
        (("-t", "4x0x4", "--traffic", FLOWS), "spines must be >= 1, got 0"),
        (
            ("-t", FABRIC, "--traffic", "no-such.csv"),
            "FileNotFoundError: [Errno 2] No such file or directory: 'no-such.csv'",
        ),
        (("-t", "2x2x2", "--traffic", FLOWS), "uses NIC 31, but the fabric has 4 (0 to 3)"),
        (("-t", "4x4x4", "--collective", "all-reduce"), "--collective needs --bytes"),
        (
            ("-t", "4x4x4", "--collective", "all-reduce", "--bytes", "64M"),
            "bytes must say which M, MB (decimal) or MiB (binary), got '64M'",
        ),
        (
            ("-t", "4x4x4", "--collective", "all-reduce", "--bytes", "lots"),
            "bytes must be a whole number of bytes >= 1",
        ),
        (
            ("-t", "4x4x4", "--collective", "all-gossip", "--bytes", "1"),
            "name must be one of 'reduce-scatter', 'all-gather'",
        ),
        (
            (
                "-t",
                "4x4x4",
                "--collective",
                "all-reduce",
                "--bytes",
                "1MB",
                "--ranks",
                "12",
                "--algorithm",
                "halving-doubling",
            ),
            "ranks must be a power of two for halving-doubling (or --fold), got 12",
        ),
        (
            ("-t", "4x4x4", "--collective", "all-reduce", "--bytes", "1MB", "--ranks", "17"),
            "uses NIC 16, but the fabric has 16",
        ),
        (
            ("-t", "512x32x32", "--collective", "all-to-all", "--bytes", "1MB"),
            "has 268,419,072 flows, more than the 30,000,000",
        ),
        (
            ("-t", "4x4x4", "--model", "lama-2-70b", "--parallel", "4,2,2"),
            "unknown model 'lama-2-70b'; did you mean llama-2-70b?",
        ),
        (("-t", "4x4x4", "--model", "llama-2-70b"), "parallel must be T,P,D or T,P,D,E"),
        (("-t", "4x4x4", "--model", "llama-2-70b", "--parallel", "4,0,4"), "got '4,0,4'"),
        (("-t", "4x4x4", "--model", "llama-2-70b", "--parallel", "8,2,4"), "needs 64 ranks, but there are 16 NICs"),
        (("-t", "4x4x4", "--model", "llama-2-70b", "--parallel", "2,3,2"), "pipeline must divide layers = 80, got 3"),
        (
            ("-t", "4x4x4", "--model", "llama-2-70b", "--parallel", "2,2,2", "--ranks", "8"),
            "--ranks goes with --collective, not with --model",
        ),
    ],
)
def test_bad_input_is_one_line_that_helps(refused, arguments, message):
    assert message in refused("plan", *arguments)


FILES = {
    "topology": [
        ('{"nodes": [\n', "bad, line 2, column 1: Expecting value"),
        ('{"nodes": []}', 'bad: expected {"nodes": [...], "links": [...]}'),
        ('{"nodes": [{"id": "a", "kind": "router"}], "links": []}', "bad: nodes[0]: kind must be one of nic, host"),
        (
            '{"nodes": [{"id": "a", "kind": "nic"}], "links": [{"a": "a", "b": "x", "gbps": 1}]}',
            "bad: links[0]: b must be the id of a node, got 'x'",
        ),
        (
            '{"nodes": [{"id": "a", "kind": "nic"}, {"id": "x", "kind": "leaf"}],\n"links": [{"a": "a", "b": "x", "gbps": -4}]}',
            "bad: links[0]: gbps must be a finite number > 0, got -4",
        ),
    ],
    "traffic": [
        (
            "src,dst,size\n0,1,2\n",
            "bad, line 1: header must be src,dst,bytes or src,dst,bytes,start_s, got src,dst,size",
        ),
        ("src,dst,bytes\n0,9,100\n1,10,2.5\n", "bad, line 3: bytes must be a whole number >= 1, got '2.5'"),
        ("src,dst,bytes\n0,9\n", "bad, line 2: expected 3 fields"),
        ("src,dst,bytes,start_s\n0,9,5,-1\n", "bad, line 2: start_s must be a number of seconds >= 0, got '-1'"),
    ],
    "placement": [
        ("rank,nic\n0,5\n1,5\n", "bad, line 3: nic 5 was given on line 2 already"),
        ("rank,nic\n0,5\n0,6\n", "bad, line 3: rank 0 was given on line 2 already"),
        ("rank,nic\n0,32\n", "bad, line 2: nic must be < 32, got 32"),
        ("rank,nic\n0,1\n2,3\n", "bad: ranks must run from 0 without gaps, rank 1 is missing"),
        ("rank,nic\n0,1\n", "src (rank)"),
    ],
    "chakra": [
        ('[{"comm_type": "GOSSIP", "comm_size": 4}]', "bad: nodes[0]: comm_type must be one of ALL_REDUCE"),
        ('{"nodes": 3}', "bad: expected a list of nodes"),
    ],
    "model": [
        ('{"num_hidden_layers": 2}', "bad.json: config must have hidden_size"),
        ('{"num_hidden_layers": 2,\n]', "bad.json, line 2, column 1"),
        ("[]", "bad.json: expected an object"),
    ],
}


@pytest.mark.parametrize(
    ("kind", "text", "message"), [(kind, *case) for kind, cases in FILES.items() for case in cases]
)
def test_bad_files_are_refused_with_the_place(refused, tmp_path, monkeypatch, kind, text, message):
    monkeypatch.chdir(tmp_path)
    name = "bad.json" if kind == "model" else "bad"
    (tmp_path / name).write_text(text)
    given = {"topology": FABRIC}
    if kind not in ("chakra", "model"):
        given["traffic"] = FLOWS
    given[kind] = name
    assert message in refused("plan", *(word for option, value in given.items() for word in (f"--{option}", value)))


def test_bad_plans_are_refused_with_the_line(refused, tmp_path):
    file = tmp_path / "paths.csv"
    file.write_text("flow,step,src,dst,path,bytes\n0,0,0,9,1,5\n1,0,3,9,7,5\n")
    message = refused("simulate", file, "-t", FABRIC)
    assert message == f"{file}, line 3: path must be < 4 from NIC 3 to 9, got 7"
    file.write_text("flow,step,src,dst,path,bytes\n0,0,0,9,1,5\n")
    assert "no path left for the NIC pairs 0 -> 9" in refused(
        "simulate", file, "-t", FABRIC, "--fail", "leaf1-rack1-host1-nic0"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64MiB", 64 * 2**20),
        ("4e6", 4_000_000),
        ("1.5 GB", 1_500_000_000),
        ("1.5KiB", 1536),
        ("7", 7),
        ("7b", 7),
        ("2TiB", 2**41),
        ("0.001kB", 1),
        ("1e-3MB", 1000),
    ],
)
def test_sizes(text, expected):
    assert parse_bytes("bytes", text) == expected


@pytest.mark.parametrize(
    "text", ["", "MB", "0", "-4", "1.5", "1.2.3MB", "4 parsecs", "0.5B", "1e30", "nan", "64m", "64G"]
)
def test_wrong_sizes(text):
    with pytest.raises(ValueError, match="bytes must"):
        parse_bytes("bytes", text)


def test_cables_by_name():
    fabric = LeafSpine(3, 2, 2)
    assert fail_cables(fabric, ["leaf1-spine0"]).failed.tolist() == sorted(fabric.cable(1, 0))
    assert fail_cables(fabric, ["spine0-leaf1", "leaf1-spine0"]).failed.tolist() == sorted(fabric.cable(1, 0))
    assert fail_cables(fabric, ["spine0->leaf1"]).failed.tolist() == [fabric.downlink(1, 0)]
    assert fail_cables(fabric, ["nic4-leaf2"]).failed.tolist() == [4, 6 + 4]
    assert fail_cables(fabric, []) is fabric


def test_one_of_each_step_of_a_plan_takes_as_long_as_all():
    fabric = LeafSpine(4, 3, 4)
    placement = np.random.default_rng(0).permutation(16)
    ring = collective("all-reduce", ranks=16, message_bytes=2**20, placement=placement)
    traffic = concatenate(ring, collective("all-to-all", ranks=16, message_bytes=2**18), ring, one_after_the_other=True)
    for plan in (plan_konig(fabric, traffic), plan_ecmp(fabric, traffic, split=2, seed=1)):
        kept, times = once(plan)
        assert kept.traffic.n_flows == 16 + 16 * 15
        assert times[[0, 30]].tolist() == [60, 1]
        assert times.sum() == traffic.n_steps == 61
        for simulate in (simulate_fluid, lambda f, p: simulate_packets(f, p, seed=0)):
            seconds = times @ durations(simulate(fabric, kept).step_s, len(times))
            assert seconds == pytest.approx(simulate(fabric, plan).completion_s, rel=1e-12)
