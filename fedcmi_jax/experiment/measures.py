"""What a run's model is measured on: test, validation, clients' own samples."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedcmi_jax.evaluation.client_tests import (
    ClientHits,
    Personal,
    build_client_program,
    build_client_tester,
    summarise_clients,
)
from fedcmi_jax.evaluation.metrics import (
    Evaluation,
    Programs,
    build_evaluator,
    build_programs,
)
from fedcmi_jax.evaluation.summary import summarise
from fedcmi_jax.evaluation.views import Metric
from fedcmi_jax.experiment.split import ClientSplit
from fedcmi_jax.federation import Federation
from fedcmi_jax.types import Array, Model, Params, PyTree

CLIENTS = "clients"
"""Name of the clients' accuracies, [N], among the metrics; never in a line."""


class Compiled(NamedTuple):
    """Compiled functions of a model's evaluations; data are their arguments.

    Attributes:
      views: Of the test and the validation split.
      own: Of clients' own samples, with their own models if they keep any.
      others: Of samples of clients that do not take part.
    """

    views: Programs
    own: Callable[..., Array]
    others: Callable[..., Array]


class Measures(NamedTuple):
    """The evaluations of a run.

    Attributes:
      evaluate: ``(params, batch_stats, memory=None) -> Evaluation`` of the test split.
      validate: The same of the samples held out for choices, without the clients';
        None: there are none.
      testers: Prefix of columns -> ``(params, batch_stats, memory) -> ClientHits``:
        ``client_test``, ``holdout``, those that there are.
      compiled: What they run.
    """

    evaluate: Callable[..., Evaluation]
    validate: Callable[..., Evaluation] | None
    testers: dict[str, Callable[..., ClientHits]]
    compiled: Compiled

    def all(
        self,
        params: Params,
        batch_stats: Params,
        memory: PyTree,
        each_client: bool = False,
    ) -> dict[str, Any]:
        """Every column of a metrics line that says how good a model is.

        Args:
          params: The model to evaluate.
          batch_stats: Its BatchNorm statistics.
          memory: [N, ...] of all clients, for methods with personal models; else None.
          each_client: Also ``CLIENTS``, which is for the client log only.

        Returns:
          ``evaluation.summarise`` of the test split; the numbers (not the lists) of the
          validation split with the prefix ``val_``; ``summarise_clients`` of the rest.
        """
        tested = self.evaluate(params, batch_stats, memory)
        result: dict[str, Any] = summarise(tested)
        if each_client:
            result[CLIENTS] = np.asarray(tested.client_accuracy)
        if self.validate is not None:
            held_out = summarise(self.validate(params, batch_stats))
            result |= {
                f"val_{name}": value
                for name, value in held_out.items()
                if not isinstance(value, list)
            }
        for name, test in self.testers.items():
            result |= summarise_clients(name, test(params, batch_stats, memory))
        return result


def compiled_measures(
    model: Model,
    personal: Personal | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Compiled:
    """The functions of a model's evaluations; they compile when they are first called.

    Args:
      model: The model.
      personal: ``Method.start`` of a method with personal models; None: there are none.
      metrics: A script's own, of the test and the validation split.

    Raises:
      ValueError: See ``build_programs``.
    """
    return Compiled(
        build_programs(model, personal, metrics),
        build_client_program(model, personal),
        build_client_program(model),
    )


def build_measures(
    split: ClientSplit,
    federation: Federation,
    model: Model,
    *,
    compiled: Compiled,
    personal: Personal | None = None,
    stream: bool = False,
) -> Measures:
    """Builds the evaluations that a split data set allows; compiles nothing yet.

    Args:
      split: Which client has what, and what is held out.
      federation: Of it, on one device.
      model: The model.
      compiled: ``compiled_measures`` of the same model and ``personal``.
      personal: ``Method.start`` of a method with personal models; None: there are none.
      stream: Send test and validation samples batch by batch.

    Returns:
      The evaluations.
    """
    train = split.dataset.train
    evaluator = functools.partial(
        build_evaluator, model, stream=stream, programs=compiled.views
    )
    validate: Callable[..., Evaluation] | None = None
    if split.validation is not None:
        rows = np.sort(split.validation.rows)  # neighbours, for a memory map
        validate = evaluator(train, None, rows=rows)
    testers = {}
    if split.client_test is not None:
        testers["client_test"] = build_client_tester(
            model,
            train,
            split.client_test,
            split.available,
            personal=personal,
            program=compiled.own,
        )
    if split.holdout is not None and split.holdout_available is not None:
        testers["holdout"] = build_client_tester(
            model,
            train,
            split.holdout,
            split.holdout_available,
            program=compiled.others,
        )
    evaluate = evaluator(split.dataset.test, federation)
    return Measures(evaluate, validate, testers, compiled)
