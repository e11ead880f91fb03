import functools

import jax
import pytest

import fedcmi_jax as fc
from tests.exactness.problem import Problem, Scene
from tests.exactness.reference import MODALITIES
from tests.exactness.selection import BMSFed

# References are met up to rounding.
pytestmark = pytest.mark.up_to_rounding

COHORT = 5
UNBALANCED = Scene(
    sizes=(20, 9, 24, 8, 16, 22),
    has=((1, 1), (1, 0), (1, 1), (1, 1), (1, 1), (1, 1)),
    noise_a=(1.5, 1.0, 3.0, 1.0, 1.5, 1.5),
    noise_v=(3.0, 1.0, 1.0, 2.0, 3.0, 3.0),
)
"""The first modality is ahead on average, but not everywhere."""
BOTH_KINDS = UNBALANCED._replace(
    has=((1, 1), (1, 0), (1, 1), (0, 1), (1, 1), (1, 1)),
)


class Observed:
    """BMSFed that says which modalities its cohort trains; rounds do not report it."""

    def __init__(self):
        self.cohort = None

    def __call__(self, **options):
        method = fc.methods.bmsfed(**options)

        def merge(cohort, upload):
            jax.debug.callback(self.record, cohort.ids, cohort.participation)
            return method.merge(cohort, upload)

        return method._replace(merge=merge)

    def record(self, ids, use):
        rows = {int(i): row for i, row in zip(ids, use, strict=True)}
        self.cohort = {
            i: {m: int(x) for m, x in zip(MODALITIES, rows[i], strict=True)}
            for i in sorted(rows)
        }


def possible(theirs, ids):
    """The cohorts that the first pick's pool, or uniform drawing, allows."""
    if theirs.selection == "uniform":
        return [{i: theirs.kept(i) for i in ids}]
    everybody = range(len(theirs.clients))
    pools = [[j for j in everybody if j != left_out] for left_out in everybody]
    return [theirs.choices(COHORT, pool) for pool in pools]


@functools.cache
def problem(scene, *static):
    observed = Observed()
    return observed, Problem(
        observed, dict(static), scene=scene, clients_per_round=COHORT
    )


@pytest.mark.slow
@pytest.mark.parametrize(("momentum", "alpha"), [(0.9, 1.0), (0.0, 2.0)])
@pytest.mark.parametrize(
    ("scene", "static"),
    [
        (UNBALANCED, {"threshold": 1.0}),
        (BOTH_KINDS, {"threshold": 1.0}),
        (UNBALANCED, {"threshold": 1.0, "stale_single_updates": True}),
        (BOTH_KINDS, {"selection": "submodular"}),
        (UNBALANCED, {"selection": "submodular", "grad_epochs": 2}),
        (BOTH_KINDS, {"selection": "uniform", "drop_threshold": 1.2}),
    ],
)
def test_bmsfed(scene, static, momentum, alpha):
    observed, compiled = problem(scene, *static.items())
    restricted = 0

    def cohort(info, theirs):
        nonlocal restricted
        jax.effects_barrier()
        chosen = observed.cohort
        assert list(chosen) == sorted(info.cohort.tolist())
        assert chosen in possible(theirs, chosen)
        restricted += sum(chosen[i] != theirs.can(i) for i in chosen)
        return chosen

    compiled.run(BMSFed, momentum=momentum, cohort=cohort, alpha=alpha)
    if static.get("selection") == "submodular":
        assert not restricted
    elif momentum:
        assert restricted
