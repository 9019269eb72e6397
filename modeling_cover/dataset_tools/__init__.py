# SPDX-License-Identifier: Apache-2.0
"""What is done to datasets before training: they are checked, and made small.

`checking` looks for what is wrong with them (`cover check`), `preparation` writes compact copies of them
(`cover prepare`); both go through all rows with a `row_pool`.
"""
