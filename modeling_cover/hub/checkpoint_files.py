# SPDX-License-Identifier: Apache-2.0
"""Names of the files of a checkpoint's folder, beside those of transformers."""

SUMMARY_NAME = "training_summary.json"
CURVES_NAME = "training_curves.png"
SUMS_NAME = "SHA256SUMS"

# The folder of all that a run needs to resume and, in it, what of it is JSON.
TRAINING_STATE = "training_state"
STATE_NAME = "state.json"
QUARANTINE_NAME = "quarantine.jsonl"  # names files, so it is not published
