import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def _one_compilation_per_program():
    """Shares compiled programs between tests of one session."""
    yield
    jax.clear_caches()
