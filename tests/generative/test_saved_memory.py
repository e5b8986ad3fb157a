"""Memory kept for the backward pass, counted by hand."""

import torch

from anabranch.generative import bytes_saved_for_backward


def test_a_chain_of_squares_keeps_its_inputs_once() -> None:
    x = torch.ones(1000, requires_grad=True)

    def step() -> None:
        y = x * 1.0  # keeps nothing of x: the factor is a number
        (y * y).sin().sum().backward()  # y once, though it stands there twice, and the sine's argument

    assert bytes_saved_for_backward(step) == 2 * 4000


def test_parameters_are_not_counted_and_inputs_are() -> None:
    layer, x = torch.nn.Linear(8, 4, bias=False), torch.ones(16, 8)
    assert bytes_saved_for_backward(lambda: layer(x).sum().backward()) == 16 * 8 * 4


def test_derivatives_in_forward_mode_count() -> None:
    x = torch.ones(256, requires_grad=True)

    def plain() -> None:
        x.sin().sum().backward()

    def with_tangent() -> None:
        value, slope = torch.func.jvp(torch.sin, (x,), (torch.ones(256),))
        (value + slope).sum().backward()

    assert bytes_saved_for_backward(plain) == 1024
    assert bytes_saved_for_backward(with_tangent) > 1024
