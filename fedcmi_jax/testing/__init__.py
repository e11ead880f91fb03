"""What every method must satisfy, for our registry and for a user's own methods.

Needs the packages of the extra ``test``. In a test file of one's own::

    import pytest
    from fedcmi_jax import testing

    @pytest.fixture(scope="module")
    def case():
        return testing.Case(my_method())

    @pytest.mark.parametrize("check", testing.CHECKS.values(), ids=testing.CHECKS)
    def test_my_method(check, case):
        check(case)
"""

from fedcmi_jax.testing.conformance import CHECKS as CHECKS
from fedcmi_jax.testing.conformance import Case as Case
