# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to the Hub and to other runtimes."""
