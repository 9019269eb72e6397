# SPDX-License-Identifier: Apache-2.0
"""The subcommands of `cover`: a module for each, whose `main` reads the command line. `cover.py` lists them."""
