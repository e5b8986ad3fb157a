"""How an average velocity changes with its end time, the state held fixed: what FreeFlow's prediction differentiates."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import expand, select
from anabranch.generative.flow_maps import FlowMap


def end_time_derivative(
    net: FlowMap,
    x: Float[Tensor, "batch *shape"],
    s: Float[Tensor, " batch"],
    t: Float[Tensor, " batch"],
    *,
    u: Float[Tensor, "batch *shape"] | None = None,
    method: Literal["central", "jvp"] = "central",
    h: float = 5e-3,
    **condition: Any,
) -> Float[Tensor, "batch *shape"]:
    """``du(x, s, t)/dt``, the state held fixed; without gradient and without autocast (a difference of bfloat16 is noise).

    Args:
        u: the value at t, where it is known (not under autocast); saves the few rows near the ends of [s, 1] a call.
        method: "central": two more evaluations at distance h (ours: near the ends two on one side, so that the error is
            O(h^2) everywhere; where 3 h is more than 1 - s, h is a third of that). "jvp": forward mode.

    Raises:
        NotImplementedError: "jvp" where a kernel of the network has no forward-mode derivative.
    """
    device = x.device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):
        if method == "jvp":
            try:
                pair: Any = torch.func.jvp(lambda end: net(x, s, end, **condition), (t,), (torch.ones_like(t),))
            except (NotImplementedError, RuntimeError) as error:
                if not any(
                    word in str(error).lower() for word in ("forward ad", "forward-mode", "forward mode", "jvp")
                ):
                    raise
                raise NotImplementedError(
                    f"the network has a kernel without forward-mode derivative ({str(error).splitlines()[0]}): "
                    "take derivative='central'"
                ) from error
            return pair[1]
        step = torch.minimum(torch.full_like(t, h), (1 - s) / 3).clamp(min=1e-6)
        low, high = t - s < step, 1 - t < step
        one_sided = low | high
        first = torch.where(low, step, -step)
        second = torch.where(low, 2 * step, torch.where(high, -2 * step, step))
        ends = torch.cat([t + first, t + second]).clamp(0, 1)
        twice = {name: _twice(value, len(x)) for name, value in condition.items()}
        u1, u2 = net(torch.cat([x, x]), torch.cat([s, s]), ends, **twice).chunk(2)
        if bool(one_sided.any()):
            rows = one_sided.nonzero().squeeze(1)
            if u is None:
                middle = torch.zeros_like(u1)
                middle[rows] = net(x[rows], s[rows], t[rows], **select(condition, rows, len(x)))
            else:
                middle = u.detach().to(u1.dtype)
        else:
            middle = torch.zeros_like(u1)  # two points at the same distance: it drops out
        a, b = expand(first, x), expand(second, x)
        return ((b / a) * (u1 - middle) - (a / b) * (u2 - middle)) / (b - a)


def _twice(value: Any, batch: int) -> Any:
    rows = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch
    return torch.cat([value, value]) if rows else value
