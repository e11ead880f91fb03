"""Parameters of tests that take long."""

import functools

import pytest

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
