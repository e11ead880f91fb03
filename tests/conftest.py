import atexit
import os
import shutil
import tempfile

# Tests compile the same small programs over and over: once is enough. Set before JAX is
# imported, so that workers and the processes which tests start share the cache; a run
# that names one in FEDCMI_TEST_CACHE leaves it to the next.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = os.environ.get("FEDCMI_TEST_CACHE")
    if not _CACHE:
        _CACHE = tempfile.mkdtemp(prefix="fedcmi-tests-")
        atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax  # noqa: E402
import pytest  # noqa: E402

from fedcmi_jax import backend  # noqa: E402

# XLA reads its flags at the first use of a device; processes that tests start inherit.
backend.guard()
jax.config.update("jax_numpy_rank_promotion", "raise")
# For the tests of the client axis; everything else runs on the first one.
jax.config.update("jax_num_cpu_devices", 8)


def pytest_collection_modifyitems(items):
    """Keeps what shares compiled programs in one worker: a file, or a method of it."""
    for item in items:
        values = getattr(item, "callspec", None)
        method = values.params.get("method", "") if values else ""
        item.add_marker(pytest.mark.xdist_group(f"{item.path.stem} {method}"))


@pytest.fixture(autouse=True, scope="module")
def _programs_do_not_pile_up():
    """Thousands of compiled programs in one process exhaust its memory mappings."""
    yield
    jax.clear_caches()
