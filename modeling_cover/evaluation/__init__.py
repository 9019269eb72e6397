# SPDX-License-Identifier: Apache-2.0
"""How well a model does on a dataset: `views` of its rows, the `scores` of their classes, `metrics` and `plots` of
these."""
