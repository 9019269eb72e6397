# SPDX-License-Identifier: Apache-2.0
"""From files to batches: `sources` of rows, their `mixture`, and `samples` that are decoded and augmented."""
