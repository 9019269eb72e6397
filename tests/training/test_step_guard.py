# SPDX-License-Identifier: Apache-2.0
"""The decision before an optimizer step, of one process and of several."""

import math

import pytest
import torch
from modeling_cover.training.step_guard import Decision, NonFiniteTrainingError, StepGuard


CPU = torch.device("cpu")


def decided(guard: StepGuard, losses: list[float], grad_norm: float = 1.0, stop: bool = False, scale: float = 1.0):
    """What is decided about a step whose number is that of its losses."""
    guard.begin_step()
    for loss in losses:
        guard.see(torch.tensor(loss))
    guard.grad_norm = torch.tensor(grad_norm)
    is_bad = guard.vote(len(losses), stop, scale)
    decision = guard.decide()
    assert is_bad.item() == (decision != Decision.TAKE)
    return decision


class TestOneProcess:
    @pytest.mark.parametrize(
        ("losses", "grad_norm", "scale", "decision"),
        [
            ([1.0, 2.0], 3.0, 1.0, Decision.TAKE),
            ([1.0, math.nan, 2.0], 3.0, 1.0, Decision.SKIP),
            ([1.0], math.inf, 1.0, Decision.SKIP),
            ([1.0], math.inf, 1024.0, Decision.RESCALE),
            ([math.inf], math.inf, 1024.0, Decision.SKIP),
        ],
    )
    def test_a_step_is_taken_if_its_losses_and_its_gradient_are_finite(self, losses, grad_norm, scale, decision):
        assert decided(StepGuard(CPU), losses, grad_norm, scale=scale) == decision

    def test_the_next_step_starts_afresh(self):
        guard = StepGuard(CPU)
        assert decided(guard, [math.nan]) == Decision.SKIP
        assert decided(guard, [1.0]) == Decision.TAKE

    def test_a_rescaled_step_is_no_skipped_one(self):
        guard = StepGuard(CPU)
        decided(guard, [math.nan])
        decided(guard, [1.0], math.inf, scale=2.0)
        assert guard.skipped_in_a_row == 1
        decided(guard, [1.0])
        assert guard.skipped_in_a_row == 0

    def test_too_many_in_a_row_are_an_error_that_says_where_their_samples_are(self, tmp_path):
        guard = StepGuard(CPU, output_dir=tmp_path, max_skipped_steps=2)
        decided(guard, [math.nan])
        guard.check_skipped()
        decided(guard, [math.nan] * 5)
        with pytest.raises(NonFiniteTrainingError, match=r"in 2 steps in a row, up to step 5: .*skipped_steps\.jsonl"):
            guard.check_skipped()
        guard.begin_session()
        guard.check_skipped()

    def test_a_step_is_open_until_what_follows_from_it_is_done(self):
        guard = StepGuard(CPU)
        assert not guard.is_open
        decided(guard, [math.nan])
        assert guard.is_open
        assert guard.close() == Decision.SKIP
        assert (guard.is_open, guard.skipped_in_a_row) == (False, 1)


class TestSeveralProcesses:
    """The reduction adds what another process votes: loss not finite, gradient not finite, told to stop."""

    @pytest.mark.parametrize(
        ("votes", "decision", "stops"),
        [
            ([0, 0, 0], Decision.TAKE, False),
            ([1, 0, 0], Decision.SKIP, False),
            ([0, 1, 0], Decision.SKIP, False),
            ([0, 0, 1], Decision.TAKE, True),
            ([1, 0, 1], Decision.SKIP, True),
        ],
    )
    def test_all_do_what_any_must(self, votes, decision, stops):
        guard = StepGuard(CPU, lambda own: own + torch.tensor(votes))
        assert decided(guard, [1.0]) == decision
        assert guard.must_stop == stops

    def test_an_evaluation_asks_for_the_word_to_stop_alone(self):
        assert StepGuard(CPU).any_process(told_to_stop=True)
        assert not StepGuard(CPU).any_process(told_to_stop=False)
        assert StepGuard(CPU, lambda own: own + 1).any_process(told_to_stop=False)
