# SPDX-License-Identifier: Apache-2.0
"""Training: one model on a mixture of datasets, exactly, on any number of processes, stopped and resumed at any
moment."""
