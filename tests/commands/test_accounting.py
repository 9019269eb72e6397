# SPDX-License-Identifier: Apache-2.0
"""What the benchmark counts of a call, none of which depends on how busy the machine is."""

import itertools

import pytest
import torch
from modeling_cover.commands import accounting
from modeling_cover.commands.accounting import (
    account,
    count_flops,
    count_graphs,
    count_kernels,
    count_operators,
    matrix_ceiling,
    peak_bytes,
)
from modeling_cover.commands.benchmarking import forward
from torch import nn
from torch.nn.functional import scaled_dot_product_attention


M, K, N = 5, 7, 3


class Layer(nn.Linear):
    """One with code that torch.compile is for: it leaves torch's own layers as they are."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs)


@pytest.fixture
def linear() -> nn.Linear:
    return Layer(K, N)


class TestFlops:
    def test_a_linear_layer_has_two_for_each_multiplication(self, linear):
        assert count_flops(forward(linear, torch.randn(M, K))) == 2 * M * K * N
        assert count_flops(lambda: linear(torch.randn(M, K))) == 2 * M * K * N

    def test_its_backward_pass_has_those_of_both_gradients(self, linear):
        inputs = torch.randn(M, K, requires_grad=True)
        assert count_flops(lambda: linear(inputs).sum().backward()) == 3 * 2 * M * K * N

    def test_attention_counts_on_a_cpu_too(self):
        heads = torch.randn(2, 3, 11, 8)  # clips, heads, tokens, numbers of a head
        product = 2 * 2 * 3 * 11 * 11 * 8
        assert count_flops(lambda: scaled_dot_product_attention(heads, heads, heads)) == 2 * product
        heads.requires_grad_()
        # The backward pass has twice as many, and the scores a second time.
        step = count_flops(lambda: scaled_dot_product_attention(heads, heads, heads).sum().backward())
        assert step == (2 + 4 + 1) * product

    def test_what_is_compiled_has_as_many(self, linear):
        torch._dynamo.reset()
        linear.compile(backend="eager")
        inputs = torch.randn(M, K)
        assert count_graphs(forward(linear, inputs)) == 1
        assert count_flops(forward(linear, inputs)) == 2 * M * K * N


class TestOperators:
    def test_views_are_none(self):
        numbers = torch.randn(M, K)
        assert count_operators(lambda: numbers.view(K, M).t().unsqueeze(0).expand(2, -1, -1).detach()) == 0
        assert count_operators(lambda: numbers.t().reshape(M, K)) == 1  # a copy
        assert count_operators(lambda: numbers.t().relu()) == 1

    def test_what_is_made_of_others_counts_as_these(self, linear):
        inputs = torch.randn(2, M, K)
        assert count_operators(forward(linear, inputs)) == count_operators(lambda: linear(inputs)) == 1

    def test_the_backward_pass_counts(self):
        number = torch.ones((), requires_grad=True)
        # The product, a gradient of 1, and the product with it.
        assert count_operators(lambda: (2 * number).backward()) == 3


def test_graphs_are_those_of_the_call(linear):
    torch._dynamo.reset()
    inputs = torch.randn(M, K)
    assert count_graphs(forward(linear, inputs)) == 0
    linear.compile(backend="eager", dynamic=False)
    assert count_graphs(forward(linear, inputs)) == 1
    assert count_graphs(forward(linear, inputs)) == 0
    assert count_graphs(forward(linear, inputs[:2])) == 1


def test_an_account_on_a_cpu_has_no_memory(linear):
    found = account(forward(linear, torch.randn(M, K)), linear.parameters, "cpu", compiled=False)
    assert (found.flops, found.launches, found.graphs, found.peak_bytes) == (2 * M * K * N, 1, None, None)


def test_operators_of_what_is_compiled_are_not_counted(linear):
    torch._dynamo.reset()
    linear.compile(backend="eager")
    found = account(forward(linear, torch.randn(M, K)), linear.parameters, "cpu", compiled=True)
    assert (found.flops, found.launches, found.graphs) == (2 * M * K * N, None, 1)


def test_the_ceiling_is_that_of_the_fastest_product(monkeypatch):
    assert matrix_ceiling([(M, K, N)], torch.float32, "cpu") > 0
    # By a clock on which each product takes two seconds.
    monkeypatch.setattr(accounting.time, "perf_counter", itertools.count(0, 2).__next__)
    assert matrix_ceiling([(M, K, N), (2 * M, K, N), (1, 1, 1)], torch.float32, "cpu") == 2 * M * K * N


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestOnGpu:
    def test_kernels_are_counted_and_copies_are_not(self):
        numbers, there = torch.randn(M, K), torch.randn(M, K, device="cuda")
        count_kernels(there.relu)  # loads what the first launch needs
        assert count_kernels(there.relu) == 1
        assert count_kernels(lambda: numbers.to("cuda")) == 0

    def test_memory_of_others_is_not_counted(self):
        own, _others = torch.zeros(2**20, device="cuda"), torch.zeros(2**24, device="cuda")
        assert peak_bytes(own.clone, [own]) == 2 * own.nbytes
