"""Likelihood of a flow by the instantaneous change of variables (Chen et al., 1806.07366; Grathwohl et al., 1810.01367)."""

from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import check_count
from anabranch.generative.fields import VelocityField
from anabranch.generative.solve import solve


@runtime_checkable
class HasLogProb(Protocol):
    """A source whose density is known."""

    def log_prob(self, x: Tensor, /) -> Tensor:
        """Log density ``[B]`` in nats."""


def log_likelihood(
    field: VelocityField,
    x1: Float[Tensor, "batch *shape"],
    times: Float[Tensor, " points"],
    source: HasLogProb,
    *,
    solver: Any = "rk4",
    divergence: Literal["exact", "hutchinson"] = "exact",
    probes: int = 1,
    generator: torch.Generator | None = None,
    **condition: Any,
) -> Float[Tensor, " batch"]:
    """``log p_1(x1)`` per sample in nats: ``log p_0(x0)`` minus the divergence integrated along the flow through ``x1``.

    The density is that of the state at ``times[-1]``, and ``source`` that at ``times[0]``.

    Cost: per evaluation of the field one backward pass per dimension ("exact") or per probe ("hutchinson": unbiased,
    Rademacher probes held fixed along the path). Samples must not influence each other in the field (no batch norm).

    Raises:
        ValueError: an unknown divergence, probes < 1, a solver that cannot run in reverse.
    """
    if divergence not in ("exact", "hutchinson"):
        raise ValueError(f"divergence must be 'exact' or 'hutchinson', got {divergence!r}")
    check_count("probes", probes)
    batch, size = len(x1), x1[0].numel()
    if divergence == "exact":
        directions = torch.eye(size, dtype=x1.dtype, device=x1.device)[:, None].expand(size, batch, size)
        scale = 1.0
    else:
        draws = torch.randint(0, 2, (probes, batch, size), generator=generator, device=x1.device)
        directions, scale = draws.to(x1.dtype) * 2 - 1, 1 / probes

    def augmented(state: Tensor, t: Tensor, **extra: Any) -> Tensor:
        with torch.enable_grad():
            flat = state[:, :size].detach().requires_grad_()
            velocity = field(flat.reshape(x1.shape), t, **extra).reshape(batch, size)
            trace = torch.zeros(batch, dtype=x1.dtype, device=x1.device)
            for i, direction in enumerate(directions):
                if not velocity.requires_grad:  # a field that does not depend on x has no divergence
                    break
                (gradient,) = torch.autograd.grad(
                    velocity, flat, direction, retain_graph=i + 1 < len(directions), allow_unused=True
                )
                if gradient is not None:
                    trace = trace + (gradient * direction).sum(1)
        return torch.cat([velocity.detach(), scale * trace[:, None]], 1)

    start = torch.cat([x1.reshape(batch, size), x1.new_zeros(batch, 1)], 1)
    end = solve(augmented, start, times, solver, reverse=True, **condition)
    # The last column integrated the divergence from t = 1 down to 0, which is minus the integral from 0 to 1.
    return source.log_prob(end[:, :size].reshape(x1.shape)) + end[:, size]
