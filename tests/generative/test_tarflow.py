"""TarFlow: an exact likelihood, an inverse that is one, the authors' names and numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from anabranch.generative import (
    NoisyLikelihood,
    SweepStrategy,
    TarFlow,
    fit,
    invert_autoregressive,
    reference_sequential,
    released_gs_jacobi,
)

STRATEGIES = ["sequential", "jacobi", "jacobi+zero", "gs-jacobi-3", "sliding-5", "frozen-4"]


def shaken(flow: TarFlow, scale: float = 0.05, seed: int = 0) -> TarFlow:
    """Random weights everywhere: a fresh model is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            spread = scale if "proj_out" in name else 0.2
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return flow.eval()


def small(classes: int | None = 3, scale: float = 0.05, **options: Any) -> TarFlow:
    torch.manual_seed(0)
    return shaken(TarFlow(6, 2, 2, 16, 3, 2, head_size=8, classes=classes, **options).double(), scale)


def blobs(count: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images of a bright spot; the label is the quadrant that it lies in."""
    label = torch.randint(4, (count,), generator=generator)
    where = torch.stack([label // 2, label % 2], 1) * 0.5 + 0.25 + 0.1 * torch.randn(count, 2, generator=generator)
    grid = (torch.arange(side) + 0.5) / side
    square = (grid[None, :, None] - where[:, :1, None]) ** 2 + (grid[None, None] - where[:, 1:, None]) ** 2
    return (2 * torch.exp(-square / 0.02) - 1)[:, None], label


@pytest.fixture(scope="module")
def trained() -> TarFlow:
    """A small model after some training: blocks differ in how hard they are to invert."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    flow = TarFlow(12, 1, 2, 32, 4, 2, head_size=16, classes=4)
    data = blobs(1024, 12, generator)
    fitted = fit(
        flow, NoisyLikelihood(0.1), data, steps=120, generator=generator, batch_size=32, lr=3e-3, warmup=10,
        label_dropout=0.1, precision="f32", ema=0.9,
    )  # fmt: skip
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"] - 0.5
    return fitted.model


def images(count: int, flow: TarFlow, generator: torch.Generator) -> Tensor:
    dtype = next(flow.parameters()).dtype
    return torch.randn(count, flow.image_channels, flow.side, flow.side, generator=generator, dtype=dtype)


def test_a_fresh_model_is_the_identity(generator: torch.Generator) -> None:
    flow = TarFlow(4, 1, 2, 16, 2, 1, head_size=8)
    x = images(3, flow, generator)
    z, log_det = flow(x)
    assert torch.equal(z, flow.patchify(x))
    assert torch.equal(log_det, torch.zeros(3))


def test_patches_are_channel_by_channel_row_by_row(generator: torch.Generator) -> None:
    flow = TarFlow(6, 2, 2, 16, 1, 1, head_size=8)
    x = images(2, flow, generator)
    tokens = flow.patchify(x)
    assert torch.equal(tokens[1, 4], x[1, :, 2:4, 2:4].flatten())  # token 4: second row, second column
    assert torch.equal(flow.unpatchify(tokens), x)


@pytest.mark.parametrize("classes", [None, 3])
def test_the_log_determinant_is_that_of_the_jacobian(classes: int | None, generator: torch.Generator) -> None:
    torch.manual_seed(0)
    flow = shaken(TarFlow(4, 1, 2, 16, 3, 2, head_size=8, classes=classes).double())
    label = None if classes is None else torch.tensor([2])
    for x in images(3, flow, generator).split(1):
        jacobian = torch.autograd.functional.jacobian(lambda y: flow(y, label)[0].flatten(), x).reshape(16, 16)
        log_det = torch.linalg.slogdet(jacobian)[1]
        assert log_det.abs() > 0.1
        assert torch.allclose(flow(x, label)[1], log_det, atol=1e-9)


def test_log_prob_is_the_change_of_variables(generator: torch.Generator) -> None:
    flow = small()
    x = images(2, flow, generator)
    z, log_det = flow(x)
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    assert torch.allclose(flow.log_prob(x), normal.log_prob(z).sum((1, 2)) + log_det, atol=1e-10)
    assert torch.allclose(flow.bits_per_dim(x), 7 - flow.log_prob(x) / (72 * math.log(2)), atol=1e-12)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_inverse_undoes_the_forward_pass(name: str, generator: torch.Generator) -> None:
    flow = small()
    x, label = images(4, flow, generator), torch.tensor([0, 2, -1, 3])
    z, _ = flow(x, label)
    back, _ = invert_autoregressive(flow.inverse_maps(label), z, name, tol=1e-12)
    assert (flow.unpatchify(back) - x).abs().max() <= 1e-10
    z32, _ = flow.float()(x.float(), label)
    back32, _ = invert_autoregressive(flow.inverse_maps(label), z32, name, tol=1e-6)
    assert (flow.unpatchify(back32) - x.float()).abs().max() <= 1e-4


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("annealed", [True, False])
@pytest.mark.parametrize("labels", ["mixed", "equal", "none"])
def test_every_strategy_gives_what_the_authors_sampler_gives(
    guidance: float, temperature: float, annealed: bool, labels: str, generator: torch.Generator
) -> None:
    flow = small(scale=0.02)
    label = {"mixed": torch.tensor([0, 2, -1, 1]), "equal": torch.full((4,), 1), "none": None}[labels]
    if guidance and temperature == 1 and label is None:  # both branches are the same
        with pytest.raises(ValueError, match="does nothing"):
            flow.inverse_maps(label, guidance=guidance)
        return
    z = torch.randn(4, flow.tokens, flow.features, generator=generator, dtype=torch.float64)
    options = {"guidance": guidance, "temperature": temperature, "annealed": annealed}
    expected = reference_sequential(flow, z, label, **options)
    maps = flow.inverse_maps(label, **options)
    for name in STRATEGIES:
        x, _ = invert_autoregressive(maps, z, name, tol=1e-12)
        assert ((x - expected).abs() / (1 + expected.abs())).max() <= 1e-9


def test_a_window_sees_what_the_whole_pass_sees(generator: torch.Generator) -> None:
    """Cache: parameters of any window after any prefix are a slice of the forward pass."""
    flow = small()
    label = torch.tensor([0, 1, -1])
    x = torch.randn(3, flow.tokens, flow.features, generator=generator, dtype=torch.float64)
    for index, one_map in enumerate(flow.inverse_maps(label)):
        with torch.no_grad():
            s, m = flow.blocks[2 - index].affine(x, label)
        for _ in range(5):
            cache, start = one_map.new_cache(x), 0
            while start < flow.tokens - 1:
                stop = min(start + int(torch.randint(1, 5, (), generator=generator)), flow.tokens - 1)
                found = one_map.affine(x[:, start:stop], start, cache)
                for mine, whole in zip(found, (s, m), strict=True):
                    assert (mine - whole[:, start + 1 : stop + 1]).abs().max() <= 1e-11
                start = int(torch.randint(start + 1, stop + 1, (), generator=generator))


class LinearAttention:
    """Causal attention with positive features and no softmax; its past is two sums. Counts its calls by width."""

    def __init__(self) -> None:
        self.widths: list[int] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
        assert is_causal
        self.widths.append(q.shape[2])
        weights = (q.exp() @ k.exp().mT).tril()
        return weights @ v / weights.sum(-1, keepdim=True)


class DecodingAttention(LinearAttention):
    def decode(self, q: Tensor, k: Tensor, v: Tensor, state: Any) -> tuple[Tensor, Any]:
        self.widths.append(q.shape[2])
        zero = torch.zeros_like(k[:, :, :1])
        total, norm = (zero.mT @ v[:, :, :1], zero.mT) if state is None else state
        q, k, out = q.exp(), k.exp(), []
        for i in range(q.shape[2]):
            total, norm = total + k[:, :, i, :, None] * v[:, :, i, None], norm + k[:, :, i, :, None]
            out.append((q[:, :, i, None] @ total) / (q[:, :, i, None] @ norm))
        return torch.cat(out, 2), (total, norm)


@pytest.mark.parametrize("kind", [LinearAttention, DecodingAttention])
@pytest.mark.parametrize("name", STRATEGIES)
def test_another_attention_plugs_in(kind: Any, name: str, generator: torch.Generator) -> None:
    attention = kind()
    flow = small(attention=attention)
    x, label = images(3, flow, generator), torch.tensor([0, 2, -1])
    z, _ = flow(x, label)
    attention.widths.clear()
    back, _ = invert_autoregressive(flow.inverse_maps(label), z, name, tol=1e-12)
    assert (flow.unpatchify(back) - x).abs().max() <= 1e-9
    if kind is DecodingAttention and name == "sequential":
        assert set(attention.widths) == {1}  # constant work a step: nothing of the prefix is gone through again


def test_an_attention_given_by_its_call_is_the_default(generator: torch.Generator) -> None:
    x = torch.randn(2, 2, 6, 6, generator=generator, dtype=torch.float64)
    mine = small(attention=lambda q, k, v, is_causal: scaled_dot_product_attention(q, k, v, is_causal=is_causal))
    assert torch.equal(mine(x)[0], small()(x)[0])


@pytest.mark.parametrize("batch", [1, 8])
def test_errors_on_a_trained_model_stay_near_the_tolerance(
    trained: TarFlow, batch: int, generator: torch.Generator
) -> None:
    """Block by block, from the same input: within ten times the tolerance (measured: below 7)."""
    tol = 1e-4
    label = torch.randint(4, (batch,), generator=generator)
    z = torch.randn(batch, trained.tokens, trained.features, generator=generator)
    names = ["jacobi", "gs-jacobi-4", "sliding-8", "frozen-4"]
    for one_map in trained.inverse_maps(label):
        exact, _ = invert_autoregressive(one_map, z, "sequential", tol=tol)
        for strategy in [*map(SweepStrategy.parse, names), SweepStrategy.jacobi(per_sample=False)]:
            x, (info,) = invert_autoregressive(one_map, z, strategy, tol=tol)
            assert (x - exact).abs().max() <= 10 * tol
            assert info.residual.max() <= tol
            assert info.certified
        z = exact


def test_sampling_is_reproducible_and_denoising_is_the_score(trained: TarFlow) -> None:
    label = torch.arange(4)

    def draw(**options: Any) -> Tensor:
        return trained.sample(4, label, generator=torch.Generator().manual_seed(1), tol=1e-5, **options)

    x = draw()
    assert x.shape == (4, 1, 12, 12)
    assert torch.equal(x, draw())
    assert (x - draw(strategies="jacobi")).abs().max() <= 1e-3
    moved = draw(denoise=0.1, denoise_rate=0.5)
    assert not moved.requires_grad
    step, eps = (moved - x) / (0.5 * 0.01), 1e-3  # the score, against differences of the log density
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    flow = trained.double()
    x, direction = x.double(), direction.double()
    ends = [flow.log_prob(x + sign * eps * direction, label) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * eps)
    trained.float()
    assert torch.allclose((step * direction).sum((1, 2, 3)).double(), slope, rtol=1e-2, atol=0.5)
    assert draw(guidance=1.0).isfinite().all()


def test_a_lower_precision_gives_a_first_guess(trained: TarFlow, generator: torch.Generator) -> None:
    label = torch.tensor([1])
    z = torch.randn(1, trained.tokens, trained.features, generator=generator)
    one_map, rough = trained.inverse_maps(label)[-1], trained.inverse_maps(label, dtype=torch.bfloat16)[-1]
    guess, _ = invert_autoregressive(rough, z, SweepStrategy.jacobi(max_sweeps=8), tol=1e-2)
    assert guess.dtype == torch.float32
    plain = invert_autoregressive(one_map, z, "jacobi", tol=1e-4)[1][0]
    x, (info,) = invert_autoregressive(one_map, z, "jacobi", tol=1e-4, start=guess)
    assert info.sweeps < plain.sweeps
    assert (x - invert_autoregressive(one_map, z, "sequential", tol=1e-4)[0]).abs().max() <= 1e-3


def test_the_released_solver_differs_by_its_clamp_only(generator: torch.Generator) -> None:
    flow = small()
    z = torch.randn(2, flow.tokens, flow.features, generator=generator, dtype=torch.float64)
    one_map = flow.inverse_maps()[0]
    exact, _ = invert_autoregressive(one_map, z, "sequential", tol=0.0)
    assert 0.3 < exact.abs().max() < 5
    x, sweeps = released_gs_jacobi(one_map, z, modules=3, max_sweeps=3, tol=0.0, clamp=5.0)
    assert sweeps == 9  # modules of 2, 3 and 3 tokens
    assert (x - exact).abs().max() <= 1e-12
    clamped, _ = released_gs_jacobi(one_map, z, modules=3, max_sweeps=3, clamp=0.3)
    assert clamped[:, 1:].abs().max() <= 0.3


def reference_names(state: dict[str, Tensor], tokens: int, features: int) -> dict[str, Tensor]:
    """The state as the authors' code saves it: masks and the prior's variance besides."""
    blocks = {name.split(".")[1] for name in state}
    masks = {f"blocks.{b}.attn_mask": torch.ones(tokens, tokens).tril() for b in blocks}
    return {**state, **masks, "var": torch.ones(tokens, features)}


def test_a_checkpoint_of_the_authors_loads(tmp_path: Path, generator: torch.Generator) -> None:
    flow = shaken(TarFlow(8, 3, 2, 16, 3, 2, head_size=8, classes=5))
    state = reference_names(flow.state_dict(), 16, 12)
    assert "blocks.2.attn_blocks.1.mlp.main.2.weight" in state
    torch.save(state, tmp_path / "model.pth")
    loaded = TarFlow.from_reference(tmp_path / "model.pth", side=8, head_size=8)
    x, label = images(2, flow, generator), torch.tensor([4, 1])
    assert torch.equal(loaded(x, label)[0], flow(x, label)[0])
    with pytest.raises(ValueError, match="16 tokens of 12 numbers"):
        TarFlow.from_reference(tmp_path / "model.pth", side=6)
    state["blocks.0.extra"] = torch.zeros(1)
    del state["blocks.1.proj_out.bias"]
    state["blocks.1.pos_embed"] = torch.zeros(16, 15)
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(
        ValueError, match=r"missing \['blocks.1.proj_out.bias'\], left over \['blocks.0.extra'\].*pos_embed"
    ):
        TarFlow.from_reference(tmp_path / "broken.pth", side=8, head_size=8)
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"lacks blocks\.0\.pos_embed"):
        TarFlow.from_reference(tmp_path / "other.pth", side=8)


def test_the_objective_is_the_likelihood_of_noisy_images(generator: torch.Generator) -> None:
    flow = small()
    x, noise, label = images(3, flow, generator), images(3, flow, generator), torch.tensor([0, 1, 3])
    loss = NoisyLikelihood(0.2)(flow, noise, x, generator=generator, label=label)
    expected = -flow.log_prob(x + 0.2 * noise, label) / 72 - 0.5 * math.log(2 * math.pi)
    assert torch.allclose(loss.per_sample, expected, atol=1e-12)
    assert torch.allclose(loss.value, expected.mean())
    with pytest.raises(ValueError, match="noise must be >= 0"):
        NoisyLikelihood(-0.1)


def test_bad_input_is_named(generator: torch.Generator) -> None:
    flow, plain = small(), small(classes=None)
    with pytest.raises(ValueError, match="patch that divides the side"):
        TarFlow(28, 1, 3)
    with pytest.raises(ValueError, match="head size that divides"):
        TarFlow(28, 1, 2, 96, head_size=64)
    with pytest.raises(ValueError, match=r"expected \[B, 2, 6, 6\]"):
        flow(torch.zeros(1, 1, 6, 6))
    with pytest.raises(ValueError, match="label holds"):
        flow.sample(2, torch.tensor([0, 7]), generator=generator)
    with pytest.raises(ValueError, match=r"expected \[3\]"):
        flow.sample(3, torch.tensor([0, 1]), generator=generator)
    with pytest.raises(ValueError, match="model without classes"):
        plain.sample(1, torch.tensor([0]), generator=generator)
    with pytest.raises(ValueError, match="guidance without labels"):
        plain.inverse_maps(guidance=1.0)
    with pytest.raises(ValueError, match="expected 2, one a label"):
        invert_autoregressive(flow.inverse_maps(torch.tensor([0, 1])), torch.zeros(3, 9, 8).double(), tol=1e-3)
    with pytest.raises(ValueError, match="expected 9 tokens of 8 features"):
        invert_autoregressive(flow.inverse_maps(), torch.zeros(3, 9, 4).double(), tol=1e-3)
