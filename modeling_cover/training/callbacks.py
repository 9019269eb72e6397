# SPDX-License-Identifier: Apache-2.0
"""What happens at the events of a run: where it resumes, where an epoch begins, and around each optimizer step."""

from typing import TYPE_CHECKING

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import HubStrategy

from .checkpoints import load_quarantine
from .optimization import skips_on_device
from .progress import CurvesCallback, PaceCallback
from .resuming import evaluation_is_due, log_is_due
from .run_state import load_unlogged
from .step_guard import Decision


if TYPE_CHECKING:
    from .trainer import CoverTrainer


def run_callbacks(trainer: "CoverTrainer") -> list[TrainerCallback]:
    """The callbacks of a run, in the order in which they must be called."""
    callbacks = [kind(trainer) for kind in (MixtureCallback, ResumeCallback, PublishCallback, GuardCallback)]
    # The pace first: where a run resumes, the others ask how often it logs and evaluates, which a checkpoint may have
    # as a share.
    return [PaceCallback(), *callbacks, CurvesCallback(trainer.head_names)]


class _OfTrainer(TrainerCallback):
    def __init__(self, trainer: "CoverTrainer"):
        self.trainer = trainer


class MixtureCallback(_OfTrainer):
    """Clears the quarantine of a new run, and restores that of a resumed one. Tells the sampler where an epoch begins,
    which accelerate does not do through every wrapper that a resumed run adds."""

    def on_train_begin(self, args, state, control, **kwargs):
        self._first_step = state.global_step
        quarantine, checkpoint = self.trainer.train_dataset.quarantine, self.trainer.resumed_from
        if quarantine is not None:
            if args.should_save and checkpoint is not None:
                load_quarantine(checkpoint, quarantine)
            elif args.should_save:
                quarantine.clear()
            self.trainer.accelerator.wait_for_everyone()

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        sampler = self.trainer.train_sampler
        sampler.set_epoch(int(state.epoch or 0))
        # Of the epoch in which a run resumes, Trainer draws what was trained on, too, and throws it away.
        is_resumed = state.global_step == self._first_step and not args.ignore_data_skip
        sampler.skip(state.global_step * sampler.step_size % len(sampler) if is_resumed else 0)
        if train_dataloader is not None and train_dataloader._iterator is not None:
            # Workers that stay are not seeded again. Where a run resumes they are started, and a seed is drawn for
            # them.
            torch.empty((), dtype=torch.int64).random_()


class ResumeCallback(_OfTrainer):
    """Logs and evaluates the step of the checkpoint that a run resumes from, where it was stopped before that."""

    def on_train_begin(self, args, state, control, **kwargs):
        trainer, metrics, guard = self.trainer, self.trainer.step_metrics, self.trainer.step_guard
        metrics.begin_session(state.global_step)
        guard.begin_session()
        if trainer.resumed_from is not None:
            load_unlogged(trainer.resumed_from, metrics, guard, args.process_index)
            epoch = trainer.train_sampler.steps_per_epoch
            if metrics.counts()["steps"] and log_is_due(args, state, epoch, trainer.has_ended):
                last = {name: value for name, value in metrics.last_step.items() if value is not None}
                trainer.log({"loss": 0.0, **last})
            if evaluation_is_due(args, state, epoch, trainer.has_ended):
                # As the run that wrote the checkpoint would have, had it not been stopped.
                control.should_log, control.should_evaluate, control.should_save = False, True, False
                trainer._maybe_log_save_evaluate(None, None, trainer.model, None, None, None, None)
                control.should_evaluate = False
                if state.best_global_step == state.global_step:
                    state.best_model_checkpoint = trainer.resumed_from
        metrics.start_clock(state.global_step)


class PublishCallback(_OfTrainer):
    """Publishes each save, in the background, unless only the end is to be."""

    def on_save(self, args, state, control, **kwargs):
        trainer = self.trainer
        if args.push_to_hub and args.hub_strategy != HubStrategy.END and state.is_world_process_zero:
            trainer.callback_handler.on_push_begin(args, state, control)
            trainer.publisher.publish_save(trainer.checkpoints.path(state.global_step), state)


class GuardCallback(_OfTrainer):
    """Has all processes take or skip a step together, and the average and the schedule go with the steps.

    Where the optimizer can skip a step on the device, the CPU goes on to the next one without knowing. It learns of
    the decision, see [`settle_step`], before the next step of the optimizer, or a log, a checkpoint or an evaluation.
    """

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.step_guard.begin_step()
        self.trainer.step_metrics.begin_step()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        trainer, guard = self.trainer, self.trainer.step_guard
        settle_step(trainer)
        scaler, optimizer = trainer.accelerator.scaler, trainer.optimizer
        scale = 1.0 if scaler is None else scaler.get_scale()
        is_bad = guard.vote(state.global_step, trainer.stop_signals.received, scale)
        self.waits = not skips_on_device(trainer.accelerator, optimizer)
        if not self.waits:
            optimizer.optimizer.found_inf = is_bad
        # An optimizer leaves alone what has no gradient: neither weights nor its own state change.
        elif guard.decide() != Decision.TAKE and not trainer.is_deepspeed_enabled:  # which has skipped it already
            model.zero_grad(set_to_none=True)
        trainer.note("optimizer step")

    def on_optimizer_step(self, args, state, control, lr_scheduler=None, **kwargs):
        if self.waits:
            settle_step(self.trainer)
        else:
            del self.trainer.optimizer.optimizer.found_inf
        # Where the scaler, or DeepSpeed, has skipped the step, Trainer would have the schedule fall behind the steps.
        if self.trainer.accelerator.optimizer_step_was_skipped:
            lr_scheduler.step()


def settle_step(trainer: "CoverTrainer") -> None:
    """Do what follows from the decision about the last step that was voted on, unless it is done.

    It may wait for the device. The weights must be those after the step.
    """
    guard = trainer.step_guard
    if not guard.is_open:
        return
    decision = guard.close()
    if decision == Decision.TAKE:
        trainer.step_metrics.take_step()
        if trainer.weight_average is not None:
            trainer.weight_average.update()
        return
    trainer.step_metrics.skip_step()
    if decision == Decision.SKIP:
        trainer.record.skipped_steps += 1
        if trainer.is_world_process_zero():
            guard.write_skipped(trainer.train_sampler, trainer.train_dataset)
        guard.check_skipped()


def settled_if_due(trainer: "CoverTrainer") -> bool:
    """Whether the step that was taken last is followed by a log, an evaluation or a checkpoint. If it is, or is the
    last one of all, it is settled. A run that was told to stop writes a checkpoint."""
    control, guard = trainer.control, trainer.step_guard
    is_due = control.should_log or control.should_evaluate or control.should_save
    if is_due or guard.must_stop or control.should_training_stop:
        settle_step(trainer)
    if guard.must_stop:  # an evaluation that is due is made up for by the run that resumes
        control.should_evaluate, control.should_save = False, True
    return is_due or guard.must_stop
