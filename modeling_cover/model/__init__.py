# SPDX-License-Identifier: Apache-2.0
"""The model and what feeds it, from a file's bytes to logits: all that is saved beside every checkpoint.

The modules import one another and nothing else of the package, since a checkpoint on the Hub is a flat folder.
"""
