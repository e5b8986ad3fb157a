"""The paper's two diagnostics against their definitions."""

from __future__ import annotations

import pytest
import torch

from anabranch.generative import TarFlow, diagnose_blocks, initial_guess_metric


@pytest.fixture
def flow() -> TarFlow:
    torch.manual_seed(0)
    flow = TarFlow(6, 1, 2, 16, 3, 1, head_size=8, classes=2).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return flow.eval()


@pytest.fixture
def images(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(10, 1, 6, 6, generator=generator, dtype=torch.float64)


def test_the_answer_as_a_guess_has_no_error(flow: TarFlow, images: torch.Tensor) -> None:
    x = flow.patchify(images)
    for block, one_map in zip(flow.blocks, reversed(flow.inverse_maps()), strict=True):
        z, _ = block(x)
        for reduction in ("mean_then_norm", "norm_then_mean"):
            assert initial_guess_metric(one_map, z, x, x, reduction=reduction) <= 1e-10
            assert initial_guess_metric(one_map, z, x, z, reduction=reduction) > 1e-3
        x = z.detach()


def test_the_metrics_are_their_definitions(flow: TarFlow, images: torch.Tensor) -> None:
    label = torch.arange(10) % 2
    found = diagnose_blocks(flow, images, label, chunk=4)
    assert [report.block for report in found] == [2, 1, 0]
    x = flow.patchify(images)
    for index, report in enumerate(reversed(found)):
        block = flow.blocks[index]
        with torch.no_grad():
            z, _ = block(x, label)
            ordered = x.flip(1) if block.backwards else x
            source = z.flip(1) if block.backwards else z
            for name, guess in (("z", source), ("zero", torch.cat([source[:, :1], 0 * source[:, 1:]], 1))):
                s, m = block.affine(guess, label)
                residual = torch.exp(s) * source + m - ordered
                norms = torch.stack([torch.linalg.svdvals(r)[0] for r in residual])
                assert report.initial_guess[name, "norm_then_mean"] == pytest.approx(float(norms.mean()))
                together = torch.linalg.svdvals(residual.mean(0))[0]
                assert report.initial_guess[name, "mean_then_norm"] == pytest.approx(float(together))
            s, m = block.affine(ordered, label)
            of_s, of_m = (float(torch.linalg.svdvals(w)[0]) for w in block.proj_out.weight.chunk(2))
            for kind, value in (("code", torch.exp(-s) * ordered), ("theory", torch.exp(s) * source)):
                expected = float(torch.linalg.svdvals(value.mean(0))[0]) * of_s + of_m
                assert report.ranking[kind] == pytest.approx(expected)
            x = z
    for kind in ("code", "theory"):
        assert sum(report.ranking_share[kind] for report in found) == pytest.approx(100)
        assert found[0].ranking_share[kind] / found[1].ranking_share[kind] == pytest.approx(
            found[0].ranking[kind] / found[1].ranking[kind]
        )


def test_the_ranking_scales_with_the_scales_of_the_block(flow: TarFlow, images: torch.Tensor) -> None:
    """With no shift and no scale in effect the ranking is linear in the weights that make the scales."""
    block = flow.blocks[0]
    with torch.no_grad():
        block.proj_out.weight[4:] = 0
        block.proj_out.bias.zero_()
        block.proj_out.weight *= 1e-9
        once = diagnose_blocks(flow, images)[-1].ranking["theory"]
        block.proj_out.weight *= 2
    assert diagnose_blocks(flow, images)[-1].ranking["theory"] == pytest.approx(2 * once, rel=1e-6)


def test_the_better_start_has_the_smaller_metric(flow: TarFlow, images: torch.Tensor) -> None:
    for report in diagnose_blocks(flow, images):
        for reduction in ("mean_then_norm", "norm_then_mean"):
            values = {start: report.initial_guess[start, reduction] for start in ("z", "zero")}
            assert values[report.better_start(reduction)] == min(values.values())


def test_bad_input_is_named(flow: TarFlow, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \[B, 1, 6, 6\]"):
        diagnose_blocks(flow, images[..., :5, :5])
    with pytest.raises(ValueError, match="label holds"):
        diagnose_blocks(flow, images, torch.full((10,), 5))
