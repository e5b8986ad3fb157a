"""Sweeps against closed forms and the sequential inverse, on maps that know nothing of networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anabranch.generative import AutoregressiveMap, SweepStrategy, invert_autoregressive
from anabranch.generative.autoregressive import solve_sequential

STRATEGIES = [
    "jacobi",
    "jacobi+zero",
    "gs-jacobi-2",
    "gs-jacobi-5",
    "sliding-3",
    "sliding-8+zero",
    "frozen-1",
    "frozen-4",
]


class Chain(AutoregressiveMap):
    """``x_{i+1} = z_{i+1} exp(s(x_i)) + rate x_i``: scalar tokens, the past reaches back one token."""

    features = 1

    def __init__(self, tokens: int, rate: float, scale: float = 0.0) -> None:
        self.tokens, self.rate, self.scale = tokens, rate, scale

    def advance(self, x: Tensor, z: Tensor, start: int, cache: Any) -> Tensor:
        return z * torch.exp(self.scale * x) + self.rate * x


class Mixed(AutoregressiveMap):
    """Dense dependence on the whole prefix, which only its cache knows; conditions differ between samples."""

    def __init__(self, tokens: int, features: int, strength: float, seed: int, batch: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens, self.features = tokens, features
        self.s, self.m = (
            strength * torch.randn(tokens, features, tokens, features, generator=generator, dtype=torch.float64)
            for _ in range(2)
        )
        self.condition = torch.rand(batch, 1, 1, generator=generator, dtype=torch.float64)
        self.evaluated = 0

    def new_cache(self, z: Tensor) -> list[Tensor]:
        return [torch.full_like(z, torch.nan), self.condition]  # what was not written must not be read

    def take(self, cache: list[Tensor], rows: Tensor, stop: int) -> list[Tensor]:
        x = torch.full_like(cache[0][rows], torch.nan)
        x[:, :stop] = cache[0][rows, :stop]
        return [x, cache[1][rows]]

    def put(self, cache: list[Tensor], rows: Tensor, part: list[Tensor], start: int, stop: int) -> None:
        cache[0][rows, start:stop] = part[0][:, start:stop]

    def advance(self, x: Tensor, z: Tensor, start: int, cache: list[Tensor]) -> Tensor:
        stop = start + x.shape[1]
        cache[0][:, start:stop] = x
        self.evaluated += x.shape[0] * x.shape[1]
        out = []
        for i in range(start + 1, stop + 1):
            past = cache[0][:, :i]
            s = torch.tanh(torch.einsum("btd,dte->be", past, self.s[i, :, :i].reshape(self.features, i, -1)))
            m = torch.einsum("btd,dte->be", torch.sin(past), self.m[i, :, :i].reshape(self.features, i, -1))
            out.append(z[:, i - start - 1] * torch.exp(s) + m * cache[1][:, 0])
        return torch.stack(out, 1)


def noise(batch: int, tokens: int, features: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, tokens, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rate", [0.5, 2.0])
def test_the_error_of_jacobi_is_that_of_a_nilpotent_shift(rate: float) -> None:
    """Closed form: after k sweeps token i > k errs by rate^k times the first error of token i - k, the others not at all."""
    tokens, z = 12, noise(3, 12, 1)
    chain = Chain(tokens, rate)
    exact, _ = solve_sequential(chain, z)
    first = z - exact  # the start is z; token 0 is exact
    for k in range(1, tokens):
        x, info = invert_autoregressive(chain, z, SweepStrategy.jacobi(max_sweeps=k, per_sample=False), tol=0.0)
        expected = torch.zeros_like(first)
        expected[:, k:] = rate**k * first[:, : tokens - k]
        assert (x - exact - expected).abs().max() <= 1e-12 * rate**k
        assert info[0].sweeps == k


def test_after_k_sweeps_k_more_tokens_are_exact() -> None:
    one_map, z = Mixed(9, 2, 0.3, 0, 2), noise(2, 9, 2)
    exact, _ = solve_sequential(one_map, z)
    for k in range(1, 8):
        x, _ = invert_autoregressive(one_map, z, SweepStrategy.jacobi(max_sweeps=k), tol=0.0)
        assert (x - exact)[:, : k + 1].abs().max() <= 1e-12
        assert (x - exact)[:, k + 1 :].abs().max() > 1e-9
    x, info = invert_autoregressive(one_map, z, SweepStrategy.jacobi(max_sweeps=8), tol=0.0)
    assert info[0].sweeps == 8
    assert (x - exact).abs().max() <= 1e-12


@pytest.mark.parametrize("name", STRATEGIES)
def test_tolerance_zero_gives_the_exact_answer(name: str) -> None:
    one_map, z = Mixed(14, 2, 0.2, 3, 4), noise(4, 14, 2)
    exact, _ = solve_sequential(one_map, z)
    x, (info,) = invert_autoregressive(one_map, z, name, tol=0.0)
    assert (x - exact).abs().max() <= 1e-12
    assert info.certified


def test_one_token_modules_are_the_sequential_solver() -> None:
    one_map, z = Mixed(10, 3, 0.3, 5, 3), noise(3, 10, 3)
    exact, sequential = solve_sequential(one_map, z)
    strategy = SweepStrategy.gs_jacobi(9, max_sweeps=1)
    x, (info,) = invert_autoregressive(one_map, z, strategy, tol=0.0)
    assert (x - exact).abs().max() <= 1e-13
    assert info.tokens_evaluated == sequential.tokens_evaluated == 27
    assert info.module_sweeps == (1,) * 9
    assert not info.certified


def test_one_module_is_jacobi() -> None:
    one_map, z = Mixed(10, 2, 0.3, 5, 3), noise(3, 10, 2)
    assert torch.equal(
        invert_autoregressive(one_map, z, SweepStrategy.gs_jacobi(1), tol=1e-6)[0],
        invert_autoregressive(one_map, z, "jacobi", tol=1e-6)[0],
    )


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(2, 17), batch=st.integers(1, 5), strength=st.floats(0.01, 0.3), seed=st.integers(0, 10**6),
    modules=st.integers(1, 8), window=st.one_of(st.none(), st.integers(1, 20)),
    freeze=st.one_of(st.none(), st.integers(1, 6)), start=st.sampled_from(["z", "zero"]), per_sample=st.booleans(),
    tol=st.sampled_from([0.0, 1e-9, 1e-5]),
)  # fmt: skip
def test_every_strategy_is_certified_and_near_the_sequential_answer(
    tokens: int, batch: int, strength: float, seed: int, modules: int, window: int | None, freeze: int | None,
    start: Any, per_sample: bool, tol: float,
) -> None:  # fmt: skip
    one_map, z = Mixed(tokens, 2, strength, seed, batch), noise(batch, tokens, 2, seed)
    exact, _ = solve_sequential(one_map, z)
    if window is not None and freeze is None:
        freeze = 1
    strategy = SweepStrategy(
        modules=min(modules, tokens - 1), window=window, freeze=freeze, start=start, per_sample=per_sample
    )
    one_map.evaluated = 0
    x, (info,) = invert_autoregressive(one_map, z, strategy, tol=tol)
    assert info.tokens_evaluated == one_map.evaluated
    assert info.sweeps == sum(info.module_sweeps)
    assert info.sweeps_per_sample.max() == info.sweeps
    assert info.fallbacks == 0
    residual = one_map.advance(x[:, :-1], z[:, 1:], 0, one_map.new_cache(z)) - x[:, 1:]
    image = x[:, 1:] + residual
    scaled = (residual.abs() / (1 + image.abs())).flatten(1).amax(1)
    assert torch.allclose(scaled, info.residual, atol=1e-13)  # what is said of the answer is true of the answer
    assert scaled.max() <= tol + 1e-13
    if tol == 0:
        assert (x - exact).abs().max() <= 1e-10


def test_settled_samples_leave_the_batch() -> None:
    """A sample of z = 0 has nothing to do; the others must not keep it in."""
    chain, z = Chain(40, 0.9), noise(8, 40, 1)
    z[::2] = 0
    x, (info,) = invert_autoregressive(chain, z, "jacobi", tol=1e-6)
    together, (kept,) = invert_autoregressive(chain, z, SweepStrategy.jacobi(per_sample=False), tol=1e-6)
    assert info.sweeps_per_sample[::2].max() < info.sweeps_per_sample[1::2].min()
    assert info.tokens_evaluated < 0.6 * kept.tokens_evaluated
    assert torch.equal(x[::2], together[::2])
    assert (x - together).abs().max() <= 1e-5


def test_a_diverging_sample_is_solved_token_by_token() -> None:
    chain, z = Chain(30, 0.0, scale=5.0), 0.01 * noise(4, 30, 1)
    z[1] = torch.tensor([-3.0, 3.0], dtype=torch.float64).repeat(15)[
        :, None
    ]  # exp(5 x) of the start is huge, of x it is not
    exact, _ = solve_sequential(chain, z)
    for name in ("jacobi", "gs-jacobi-3", "sliding-8"):
        x, (info,) = invert_autoregressive(chain, z, name, tol=1e-9)
        assert info.fallbacks > 0
        assert (x - exact).abs().max() <= 1e-8
        assert torch.equal(x[1], exact[1])


def test_a_first_guess_that_is_the_answer_takes_one_sweep() -> None:
    one_map, z = Mixed(9, 2, 0.3, 1, 2), noise(2, 9, 2)
    exact, _ = solve_sequential(one_map, z)
    x, (info,) = invert_autoregressive(one_map, z, "jacobi", tol=1e-9, start=exact)
    assert info.sweeps == 1
    assert torch.equal(x, exact)


def test_maps_follow_one_another() -> None:
    maps, z = [Chain(9, 0.5), Chain(9, -0.7)], noise(2, 9, 1)
    by_hand = solve_sequential(maps[1], solve_sequential(maps[0], z)[0])[0]
    x, infos = invert_autoregressive(maps, z, ["sequential", "frozen-2"], tol=1e-12)
    assert (x - by_hand).abs().max() <= 1e-10
    assert [info.strategy for info in infos] == ["sequential", "frozen-2"]


@pytest.mark.parametrize("name", [*STRATEGIES, "sequential"])
def test_a_name_is_read_back(name: str) -> None:
    assert SweepStrategy.parse(name).name == name


def test_bad_input_is_named() -> None:
    chain, z = Chain(9, 0.5), noise(2, 9, 1)
    with pytest.raises(ValueError, match=r"z has shape \(2, 8, 1\): expected 9 tokens of 1 features"):
        invert_autoregressive(chain, z[:, 1:], tol=1e-3)
    with pytest.raises(ValueError, match="tol must be >= 0"):
        invert_autoregressive(chain, z, tol=-1.0)
    with pytest.raises(ValueError, match="strategy 'newton'"):
        invert_autoregressive(chain, z, "newton", tol=1e-3)
    with pytest.raises(ValueError, match="2 strategies for 1 maps"):
        invert_autoregressive(chain, z, ["jacobi", "jacobi"], tol=1e-3)
    with pytest.raises(ValueError, match="start was given with 2 maps"):
        invert_autoregressive([chain, chain], z, tol=1e-3, start=z)
    with pytest.raises(ValueError, match="window must be >= 1"):
        SweepStrategy.sliding(0)
    with pytest.raises(ValueError, match="max_sweeps = 3 with window = 4"):
        SweepStrategy.sliding(4, max_sweeps=3)
    with pytest.raises(ValueError, match="guard must be > 0"):
        SweepStrategy(guard=0.0)
    broken = z.clone()
    broken[1, 3] = torch.nan
    with pytest.raises(ValueError, match=r"z is not finite in samples \[1\]"):
        invert_autoregressive(chain, broken, tol=1e-3)
    with pytest.warns(UserWarning, match="20 modules for 8 unknown tokens"):
        invert_autoregressive(chain, z, SweepStrategy.gs_jacobi(20), tol=1e-3)
    with pytest.raises(FloatingPointError, match=r"samples \[0, 1\]"):
        invert_autoregressive(Chain(400, 1e3), noise(2, 400, 1), "sequential", tol=1e-3)
