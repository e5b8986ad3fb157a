"""Flows of zuko, inverted by the same solvers; its own inverse is the judge."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anabranch.generative import invert_autoregressive, maps_from_zuko

zuko = pytest.importorskip("zuko", reason="zuko is not installed")
STRATEGIES = ["sequential", "jacobi", "jacobi+zero", "gs-jacobi-3", "sliding-4", "frozen-4"]


def shaken(flow: Any) -> Any:
    """Weights larger than at the start: features depend on one another."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return flow


@pytest.mark.parametrize("kind", ["MAF", "NSF"])
@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("options", [{}, {"randperm": True}, {"passes": 2}])
def test_the_inverse_is_zukos(kind: str, context: int, options: dict[str, Any], generator: torch.Generator) -> None:
    torch.manual_seed(0)
    flow = shaken(getattr(zuko.flows, kind)(12, context, transforms=3, hidden_features=(32, 32), **options))
    condition = torch.randn(5, context, generator=generator) if context else None
    z = torch.randn(5, 12, generator=generator)
    with torch.no_grad():
        expected = flow(condition).transform.inv(z)
    maps = maps_from_zuko(flow, condition)
    for name in STRATEGIES:
        x, infos = invert_autoregressive(maps, z, name, tol=1e-6)
        assert (x - expected).abs().max() <= 2e-5
        if name == "jacobi":
            assert sum(info.sweeps for info in infos) < 3 * 12  # zuko's own inverse makes as many passes as features
    with torch.no_grad():
        assert (flow(condition).transform(x) - z).abs().max() <= 1e-4


def test_bad_input_is_named() -> None:
    with pytest.raises(TypeError, match="expected a zuko MaskedAutoregressiveTransform"):
        maps_from_zuko(torch.nn.Linear(2, 2))
    maps = maps_from_zuko(zuko.flows.MAF(4, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="expected 3, as the context"):
        invert_autoregressive(maps, torch.zeros(2, 4), tol=1e-3)
    with pytest.raises(ValueError, match="expected 4 tokens of 1 features"):
        invert_autoregressive(maps, torch.zeros(3, 5), tol=1e-3)
