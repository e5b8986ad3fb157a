"""``anabranch serving bound`` on real input, and its files with errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anabranch.serving import Interference, OverlapSchedule
from anabranch.serving._bound_command import (
    read_interference,
    read_kernel_seconds,
    read_shape,
    read_workload,
)
from support import CommandLine

LLAMA = {
    "num_hidden_layers": 80, "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8,
    "intermediate_size": 28672, "vocab_size": 32000,
}  # fmt: skip


def test_the_published_setting_from_the_users_files(anabranch: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "trace.csv").write_text("input,output\n500,1000\n524,1048\n")
    (tmp_path / "device.json").write_text(json.dumps({
        "name": "A100-80", "memory_bytes": 80e9, "memory_bytes_per_s": 2e12, "flops_per_s": 312e12, "link_bytes_per_s": 300e9,
    }))  # fmt: skip
    schedule, figure = tmp_path / "schedule.json", tmp_path / "bound.svg"
    call = [
        "serving", "bound", "-m", str(tmp_path / "config.json"), "-d", str(tmp_path / "device.json"), "-n", "8",
        "--trace", str(tmp_path / "trace.csv"), "--gap", "0.1",
    ]  # fmt: skip
    done = anabranch(*call, "--json", "-o", str(schedule))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bound"] == "compute"
    assert found["input_mean"] == 512
    rates = found["tokens_per_s_per_device"]
    assert rates["optimum"] == pytest.approx(1885, rel=2e-3)
    assert rates["operations in turn"] == pytest.approx(1137.5, rel=1e-3)
    assert 1.17 < rates["searched overlap"] / rates["operations in turn"] < 1.284
    assert found["lost"]["operations in turn"] == pytest.approx(1 - 1137.5 / 1885, abs=2e-3)
    OverlapSchedule.from_json(schedule, Interference.published())
    done = anabranch(*call, "-o", str(figure), "--rereads")
    assert done.returncode == 0, done.stderr
    assert "searched overlap" in done.stdout
    assert "bound by  compute" in done.stdout
    assert figure.read_text().startswith("<?xml")
    done = anabranch(*call, "--lanes", "3", "--json", "-o", str(schedule))
    assert done.returncode == 0, done.stderr
    three = json.loads(done.stdout)
    assert three["lanes"] == len(OverlapSchedule.from_json(schedule, Interference.published()).lanes) == 3
    of_three = three["tokens_per_s_per_device"]
    assert rates["searched overlap"] < of_three["searched overlap"] <= of_three["bound of any overlap"] * (1 + 1e-9)
    assert three["gap"] <= 0.1


def test_small_models_are_bound_by_memory(anabranch: CommandLine) -> None:
    done = anabranch(
        "serving", "bound", "-m", "llama-3-8b", "-d", "H100", "--lengths", "100,2000", "--batch", "256", "--gap", "0.3"
    )
    assert done.returncode == 0, done.stderr
    assert "bound by  memory" in done.stdout
    assert "cannot be reached" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-m", "gpt-5", "-d", "H100", "--lengths", "1,1"], "expected a config.json or one of"),
        (["-m", "llama-2-70b", "-d", "H100", "--lengths", "1,1"], "GB larger than the memory of 1 H100"),
        (["-m", "llama-3-8b", "-d", "H1", "--lengths", "1,1"], "expected a .json file or one of V100"),
        (["-m", "llama-3-8b", "-d", "H100"], "give either --trace or --lengths"),
        (["-m", "llama-3-8b", "-d", "H100", "--lengths", "1"], "expected INPUT,OUTPUT"),
        (["-m", "llama-3-8b", "-d", "H100", "--lengths", "1,x"], "expected INPUT,OUTPUT"),
        (["-m", "llama-3-8b", "-d", "H100", "--lengths", "1,1", "-o", "x.pdf"], "expected .json, .svg or .png"),
        (["-m", "llama-3-8b", "-d", "H100", "--lengths", "1,1", "-o", "no/x.svg"], "there is no folder no"),
    ],
)
def test_options_with_errors(anabranch: CommandLine, options: list[str], message: str) -> None:
    done = anabranch("serving", "bound", *options)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr.replace("\n", " ")


def test_files_of_measurements(tmp_path: Path) -> None:
    file = tmp_path / "kernels.csv"
    file.write_text("op,batch,ms\nKQV,1024,8\nKQV,2048,16\nDecAttn,2048,5\n")
    assert read_kernel_seconds(file, 1536) == pytest.approx({"KQV": 0.012, "DecAttn": 0.005})
    file.write_text("op,batch,ms\nSoftmax,1,1\n")
    with pytest.raises(ValueError, match="line 2: op 'Softmax' is none of KQV"):
        read_kernel_seconds(file, 1)
    file.write_text("op,batch,ms\nKQV,one,1\n")
    with pytest.raises(ValueError, match="line 2"):
        read_kernel_seconds(file, 1)
    file.write_text("a,b\n")
    with pytest.raises(ValueError, match="expected op,batch,ms"):
        read_kernel_seconds(file, 1)
    file.write_text("kind,R,P\ngemm,0.5,0.5\ngemv,0.2,0.4\ngemv,0.4,0.3\nnetwork,0.1,0.6\n")
    table = read_interference(file)
    assert float(table("gemv", 0.3)) == pytest.approx(0.35)  # what falls is pooled
    file.write_text("kind,R,P\ngemm,0.5,0.5\n")
    with pytest.raises(ValueError, match="no rows of gemv, network"):
        read_interference(file)
    file.write_text("kind,R\n")
    with pytest.raises(ValueError, match="expected kind,R,P"):
        read_interference(file)
    file.write_text("kind,R,P\ngemm,x,0.5\n")
    with pytest.raises(ValueError, match="line 2"):
        read_interference(file)


def test_models_and_workloads_from_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_shape(tmp_path).parameters == read_shape("llama-2-70b").parameters
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        read_shape(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        read_shape(tmp_path)
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,2\n1,30,4\n")
    assert read_workload(trace, None).input_mean == 20
    trace.write_text("input,output\n")
    with pytest.raises(ValueError, match="holds no requests"):
        read_workload(trace, None)
    trace.write_text("input,output\n1,x\n")
    with pytest.raises(ValueError, match="line 2"):
        read_workload(trace, None)


def test_the_azure_trace_has_the_published_means(shared_data: Path) -> None:
    workload = read_workload(shared_data / "azure-llm-2023" / "AzureLLMInferenceTrace_conv.csv", None)
    assert workload.input_mean == pytest.approx(1155, abs=1)
    assert workload.output_mean == pytest.approx(211, abs=1)
