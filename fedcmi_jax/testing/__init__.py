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

``check_off_switch(my_method(strength=0.0))``: switched off, it is FedAvg.
``AGGREGATOR_CHECKS`` are the same for aggregators, of a ``Combination``.
"""

from fedcmi_jax.testing.aggregators import AGGREGATOR_CHECKS as AGGREGATOR_CHECKS
from fedcmi_jax.testing.aggregators import Combination as Combination
from fedcmi_jax.testing.conformance import CHECKS as CHECKS
from fedcmi_jax.testing.conformance import Case as Case
from fedcmi_jax.testing.off_switch import check_off_switch as check_off_switch
