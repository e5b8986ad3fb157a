"""Where the models of a server are: one device for all workers, or one a role."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed")
from anabranch.language import tiny_causal
from anabranch.serving import ColocatedServer, PhaseSplitServer


def test_devices_by_role() -> None:
    tiny = tiny_causal(generator=torch.Generator().manual_seed(0), layers=2)
    apart = {"prefill": "cpu", "decode": "cpu"}
    with PhaseSplitServer(tiny, device=apart) as split, ColocatedServer(tiny, device="cpu") as both:
        answers = [server.submit([3, 1, 4, 1, 5], 6).result(120.0) for server in (split, both)]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 6


def test_bad_devices_are_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = "a folder that nobody opens"
    with pytest.raises(ValueError, match=r"device='cuda:0': .*; cpu always works"):
        PhaseSplitServer(model, device={"prefill": "cpu", "decode": "cuda:0"})
    with pytest.raises(ValueError, match=r"device='cuda': .*; cpu always works"):
        ColocatedServer(model, device="cuda")
    with pytest.raises(ValueError, match=r"device=\{'prefill': 'cpu'\}: expected one for each of prefill, decode"):
        PhaseSplitServer(model, device={"prefill": "cpu"})
    with pytest.raises(ValueError, match="device='abacus': expected cpu, cuda or cuda:INDEX"):
        PhaseSplitServer(model, device="abacus")
    with pytest.raises(ValueError, match="device: workers that run already have their own"):
        PhaseSplitServer(model, device="cuda", workers=["tcp://10.0.0.1:5000/" + "0" * 32])
