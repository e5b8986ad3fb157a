"""A network of one view as the velocity field of another."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import as_time, expand, time_dtype
from anabranch.generative.fields import VelocityField, calls_per_evaluation
from anabranch.generative.paths import GaussianPath
from anabranch.generative.views import View


@dataclass(frozen=True)
class Translated:
    """A raw network of the view ``frm`` as the velocity field of ``path`` (see :func:`translate`)."""

    net: VelocityField
    frm: View
    path: GaussianPath

    def calls_at(self, t: float | Tensor) -> int:
        return calls_per_evaluation(self.net, t)

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        **condition: Any,
    ) -> Float[Tensor, "batch *shape"]:
        old, new = self.frm.path, self.path
        time, eps = as_time(t, x).to(torch.float64), 1e-9 if x.dtype == torch.float64 else 1e-5
        lam = new.log_snr_half(time)
        ends = torch.tensor([eps, 1 - eps], dtype=torch.float64, device=time.device)
        noisiest, cleanest = old.log_snr_half(ends)
        old_time = old.t_from_lambda(torch.minimum(torch.maximum(lam, noisiest), cleanest)).clamp(eps, 1 - eps)
        a_new, s_new, a_old, s_old = new.alpha(time), new.sigma(time), old.alpha(old_time), old.sigma(old_time)
        scale = expand(torch.where(lam > 0, a_old / a_new, s_old / s_new), x)
        noise, denoised = self.frm.ends(self.net, (scale * x).to(x.dtype), old_time.to(time_dtype(x)), **condition)
        # Inside the old path's range the two fit the state. Beyond its clean end the noise is kept, beyond its noisy end
        # the denoised, and the other follows from the state, so that the velocity stays that of a point of the new path.
        clean, noisy = expand(lam > cleanest, x), expand(lam < noisiest, x)
        a, s = expand(a_new, x), expand(s_new, x)
        noise, denoised = (
            torch.where(noisy, (x - a * denoised) / s, noise),
            torch.where(clean, (x - s * noise) / a, denoised),
        )
        velocity = expand(new.d_alpha(time), x) * denoised + expand(new.d_sigma(time), x) * noise
        return velocity.to(x.dtype)


def translate(net: VelocityField, frm: View, to: View) -> VelocityField:
    """A raw network trained under ``frm`` as the velocity field of ``to``'s path: no training, one call a call.

    Noise and denoised depend on the path only by the signal-to-noise ratio and the scale of the state: the network is
    asked at the time of its own path with the same ratio, and its two ends are put together on the other path. It is the
    same field as :func:`convert` and :func:`change_path` in turn give, without their infinities at the ends: a DDPM network
    runs under a flow solver from t = 0 to 1, and the reverse. Ratios that the old path does not reach (cleaner or noisier
    than it was trained on) use the nearest end's prediction. A network's own error is translated, too: the denoised of a
    noise network is off by ``sigma / alpha`` times its error (150 times at the noisiest level of VPPath), on every path
    and under every deterministic solver. Start from ``to.source_scale`` times standard noise.
    """
    return frm.field(net) if frm.path == to.path else Translated(net, frm, to.path)
