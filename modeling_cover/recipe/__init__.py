# SPDX-License-Identifier: Apache-2.0
"""What a recipe, a YAML file, may say: records and their checks, which do no work."""
