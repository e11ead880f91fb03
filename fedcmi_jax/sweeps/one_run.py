"""One run of a sweep, a cell's or a tuning trial's, in its own folder."""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jax.sharding import Mesh

from fedcmi_jax.experiment import seeds, training
from fedcmi_jax.experiment.callbacks import Callback
from fedcmi_jax.experiment.config import Config, to_dict, trains_in_turn
from fedcmi_jax.experiment.config_file import located
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.experiment.resume import is_finished
from fedcmi_jax.experiment.run_folder import is_run
from fedcmi_jax.experiment.sharing import Shared


class Trainer(NamedTuple):
    """What all runs of a sweep are trained with.

    Attributes:
      shared: What they have in common.
      mesh: Devices; None: one.
      spread: ``experiment.build``.
      callbacks: What follows every run.
      log: ``experiment.build``.
      stop: ``training.train``.
    """

    shared: Shared
    mesh: Mesh | None = None
    spread: bool = False
    callbacks: Sequence[Callback] = ()
    log: Callable[[str], None] = lambda text: None
    stop: list[int] | None = None

    def run(self, config: Config, folder: pathlib.Path) -> None:
        """Trains to the end what is not finished; the folder is as of ``fedcmi train``.

        Args:
          config: The run's, with one seed or several.
          folder: Its folder; made if need be. The caller holds a lock on it, or above.

        Raises:
          ValueError: Something is impossible, or the folder is another run's.
          training.Interrupted: A signal came; the last finished round is saved.
          training.DivergedError: Some seeds diverged; the others have finished.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if not is_run(folder):
            training.write_config(folder, config)
        elif to_dict(training.read_config(folder)) != to_dict(located(config)):
            raise ValueError(
                f"{folder}: its config.json is not that of the plan; put the file "
                "back, or remove the folder to train the cell again"
            )
        if is_finished(folder, config):
            return
        if trains_in_turn(config):
            seeds.train(
                config,
                folder,
                self.mesh,
                self.callbacks,
                self.log,
                self.shared,
                self.spread,
                self.stop,
            )
            return
        experiment = build(config, self.mesh, self.log, self.shared, self.spread)
        training.train(experiment, folder, self.callbacks, self.stop)
