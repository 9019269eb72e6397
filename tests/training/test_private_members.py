# SPDX-License-Identifier: Apache-2.0
"""The private members of other libraries that the package stands on: one that changes fails here, by its name."""

import ast
import inspect
from importlib.metadata import version
from pathlib import Path

import modeling_cover
import pytest
from modeling_cover import CoverTrainer
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.integrations import deepspeed as deepspeed_integration


# As `CoverTrainer` overrides them: in transformers 5.23 and 5.24.
SIGNATURES = {
    "_get_train_sampler": ["self", "train_dataset"],
    "_get_eval_sampler": ["self", "eval_dataset"],
    "_get_grad_norm": ["self", "model", "grad_norm"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_prepare_for_training": ["self", "max_steps", "train_dataloader", "resume_from_checkpoint"],
    "_load_rng_state": ["self", "checkpoint"],
    "_run_epoch": [
        *("self", "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial"),
        *("ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"),
        "steps_trained_in_current_epoch",
    ],
    "_maybe_log_save_evaluate": [
        *("self", "tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time"),
        "learning_rate",
    ],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_best_model": ["self"],
    "_finalize_training": ["self", "trial", "num_train_samples", "start_time"],
}  # fmt: skip


class TestTransformers:
    @pytest.mark.parametrize("name", SIGNATURES)
    def test_each_private_member_of_the_trainer_is_as_it_was(self, name):
        member = getattr(Trainer, name, None)
        assert member is not None, f"transformers {version('transformers')} has no Trainer.{name}"
        assert list(inspect.signature(member).parameters) == SIGNATURES[name]

    @pytest.mark.parametrize("name", SIGNATURES)
    def test_it_is_called_where_a_run_needs_it(self, name):
        """One that is there and not called any more would be overridden in vain."""
        source = inspect.getsource(inspect.getmodule(Trainer))
        assert f"self.{name}" in source

    def test_no_other_is_overridden(self):
        own = {name for name in vars(CoverTrainer) if name.startswith("_") and not name.startswith("__")}
        assert {name for name in own if hasattr(Trainer, name)} == set(SIGNATURES)

    def test_each_is_listed_with_its_reason(self):
        source = inspect.getsource(CoverTrainer)
        listed = [line.split()[1] for line in source.splitlines() if line.startswith("    #   _")]
        assert listed == list(SIGNATURES)

    def test_no_other_is_used(self):
        """Attributes that Trainer sets on itself among them."""
        trainers = set(dir(Trainer)) | _attributes(inspect.getsource(inspect.getmodule(Trainer)))
        root = Path(modeling_cover.__file__).parent
        used = {
            name
            for path in (root / "training" / "trainer.py", root / "training" / "callbacks.py")
            for name in _attributes(path.read_text(encoding="utf-8"))
        }
        private = {name for name in used & trainers if name.startswith("_") and not name.startswith("__")}
        assert private == set(SIGNATURES)


def _attributes(source: str) -> set[str]:
    """The names that a module looks up on `self`, `trainer` or `super()`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", None)
            is_super = isinstance(owner, ast.Call) and getattr(owner.func, "id", None) == "super"
            if name in ("self", "trainer") or is_super:
                found.add(node.attr)
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return found


class TestOthers:
    def test_deepspeeds_configuration_can_be_taken_away_for_a_while(self):
        """`whole_parameters` puts it back; transformers has a function to unset it, and none to ask for it."""
        assert "_hf_deepspeed_config_weak_ref" in vars(deepspeed_integration)

    def test_a_data_loader_keeps_the_workers_that_stay(self):
        """Whether there are any decides whether a seed is drawn for them: see `MixtureCallback`."""
        assert DataLoader([0])._iterator is None


class TestDeepSpeed:
    def test_its_private_members_are_those_of_the_version_that_they_were_seen_on(self):
        """`training/zero.py` alone uses them: nothing public sets the state of an optimizer that has taken no step."""
        from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
        from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

        seen_on = "0.19"
        sources = {cls: inspect.getsource(cls) for cls in (DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3)}
        members = {
            DeepSpeedZeroOptimizer: (
                "_lazy_init_hp_params_optimizer_state",
                "single_partition_of_fp32_groups",
                "bit16_groups",
                "update_lp_params",
            ),
            DeepSpeedZeroOptimizer_Stage3: (
                "_partition_all_parameters",
                "_reassign_or_swap_out_partitioned_parameters",
                "fp32_partitioned_groups_flat",
                "fp16_groups",
                "sub_group_to_group_id",
                "persistent_parameters",
            ),
        }
        missing = [name for cls, names in members.items() for name in names if name not in sources[cls]]
        assert not missing, f"seen on DeepSpeed {seen_on}, this is {version('deepspeed')}"

    def test_no_other_file_imports_it(self):
        root = Path(modeling_cover.__file__).parent
        using = [path.name for path in root.rglob("*.py") if "import deepspeed" in path.read_text(encoding="utf-8")]
        using += [path.name for path in root.rglob("*.py") if "from deepspeed" in path.read_text(encoding="utf-8")]
        assert set(using) == {"zero.py"}
