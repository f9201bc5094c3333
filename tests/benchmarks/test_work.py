"""Multiply-adds, counted by torch and by hand; the peak that they are held against."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.peak import Peak, measure_peak
from benchmarks.work import Work, multiply_adds
from metricunet.networks import UNet


def test_a_convolution_and_a_product_by_hand() -> None:
    convolve = nn.Conv2d(3, 5, 3, padding=1)
    images = torch.randn(2, 3, 8, 10)
    assert multiply_adds(lambda: convolve(images)) == 2 * 8 * 10 * 5 * 3 * 9
    one, two = torch.randn(4, 6), torch.randn(6, 7)
    assert multiply_adds(lambda: one @ two) == 4 * 6 * 7


def test_the_way_back_costs_what_the_weights_and_the_input_need() -> None:
    convolve = nn.Conv2d(3, 5, 3, padding=1)
    images = torch.randn(2, 3, 8, 10, requires_grad=True)
    once = 2 * 8 * 10 * 5 * 3 * 9
    assert multiply_adds(lambda: torch.autograd.backward(convolve(images).sum())) == 3 * once


def test_a_network_without_a_gradient_costs_the_same() -> None:
    network = UNet(1, 2, base_channels=4, levels=3).eval()
    images = torch.randn(1, 1, 16, 16)
    # Each level: its first and second convolution; 4, 8, 16 channels on 256, 64, 16 pixels.
    encoder = 256 * 9 * (1 * 4 + 4 * 4) + 64 * 9 * (4 * 8 + 8 * 8) + 16 * 9 * (8 * 16 + 16 * 16)
    # Transposed convolutions by two: each input pixel feeds four.
    up = 16 * 4 * 16 * 8 + 64 * 4 * 8 * 4
    decoder = 64 * 9 * (16 * 8 + 8 * 8) + 256 * 9 * (8 * 4 + 4 * 4)
    wanted = encoder + up + decoder + 256 * 4 * 2
    assert multiply_adds(lambda: network(images)) == wanted
    with torch.inference_mode():
        assert multiply_adds(lambda: network(images)) == wanted


def test_work_is_held_against_the_better_peak() -> None:
    work = Work.of(200, 2.0, Peak("bf16", matrix=400.0, convolution=50.0))
    assert (work.per_second, work.share) == (100.0, 0.25)


def test_a_peak_is_measured(small_peak: None) -> None:
    found = measure_peak(torch.device("cpu"), "fp32")
    assert found.precision == "fp32"
    assert found.best == max(found.matrix, found.convolution) > 0
