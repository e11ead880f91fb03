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
    # Also what compiles in a blink: there are hundreds of such programs, and every
    # module starts without those of the others.
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax  # noqa: E402
import jaxlib  # noqa: E402
import pytest  # noqa: E402
from jax._src import compiler  # noqa: E402
from packaging.version import Version  # noqa: E402
from xdist.scheduler import LoadScopeScheduling  # noqa: E402

from fedcmi_jax import backend  # noqa: E402
from fedcmi_jax.testing.problem import FAST_COMPILE  # noqa: E402

# XLA reads its flags at the first use of a device; processes that tests start inherit.
backend.guard()
jax.config.update("jax_numpy_rank_promotion", "raise")
# For the tests of the client axis; everything else runs on the first one.
jax.config.update("jax_num_cpu_devices", 8)


UP_TO_ROUNDING = dict(FAST_COMPILE)
if Version(jaxlib.__version__) < Version("0.11.1"):  # later ones know it no more
    UP_TO_ROUNDING["xla_cpu_use_fusion_emitters"] = False
"""Half of what it takes by default, where there are emitters to switch off. Two
programs that are equal otherwise, a method switched off and FedAvg, may then differ in
the last bit."""


class _Flags:
    """Compiles with ``options`` what says nothing else.

    Stands in for a private function of JAX; without it, tests take longer.
    """

    def __init__(self):
        self.options, self.inner = {}, getattr(compiler, "get_compile_options", None)
        if self.inner:
            compiler.get_compile_options = self

    def __call__(self, *args, env_options_overrides=None, **kwargs):
        options = {k: str(v) for k, v in self.options.items()}
        options |= env_options_overrides or {}
        return self.inner(*args, env_options_overrides=options or None, **kwargs)


_FLAGS = _Flags()

LONG = (
    *("test_peers", "test_clients", "test_equalities", "test_run", "test_bench"),
    *("test_models", "test_methods", "test_launch", "test_checkpoint", "test_exchange"),
    *("test_seeds", "test_glossary", "test_fedcmi", "test_reference", "test_streaming"),
    *("test_server_rules", "test_baselines", "test_selection", "test_evaluation"),
    *("test_cli", "test_aggregate", "test_local", "test_augment"),
)
"""Files that take longest. They go first, so that workers end together."""


def flags(item):
    """What a test compiles with."""
    if item.get_closest_marker("shipped_flags"):
        return {}
    return UP_TO_ROUNDING if item.get_closest_marker("up_to_rounding") else FAST_COMPILE


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Tests of bits that users rely on compile as users do; before any fixture."""
    options = flags(item)
    if options != _FLAGS.options:
        _FLAGS.options = options
        jax.clear_caches()


def pytest_collection_modifyitems(items):
    """Starts with what takes longest."""
    rank = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONG)))


class ByProgram(LoadScopeScheduling):
    """Keeps what shares compiled programs in one worker: a file, or a method of it.

    xdist's own groups (``--dist=loadgroup``) are lost with pytest 9.2: it cannot put
    them into the names of tests any more (pytest-dev/pytest-xdist#1386).
    """

    def _split_scope(self, nodeid):
        file, _, test = nodeid.partition("::")
        if file.endswith("conformance/test_methods.py"):
            return f"{file} {test.partition('[')[2].partition('-')[0].rstrip(']')}"
        return file


def pytest_xdist_make_scheduler(config, log):
    return ByProgram(config, log)


@pytest.fixture(autouse=True, scope="module")
def _programs_do_not_pile_up():
    """Thousands of compiled programs in one process exhaust its memory mappings."""
    yield
    jax.clear_caches()
