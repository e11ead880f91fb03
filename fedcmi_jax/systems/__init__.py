"""What devices and networks do to a round: clients that are away, slow or lost (22).

All of it is drawn from the seed, and none of it takes time here: a round's seconds are
computed from each client's speed and bandwidth. Off, nothing of this is compiled.
"""

from fedcmi_jax.systems.effects import REGISTRY as REGISTRY
from fedcmi_jax.systems.effects import Late as Late
from fedcmi_jax.systems.effects import Systems as Systems
from fedcmi_jax.systems.effects import check as check
from fedcmi_jax.systems.effects import (
    check_choice_of_clients as check_choice_of_clients,
)
from fedcmi_jax.systems.effects import none as none
from fedcmi_jax.systems.effects import present as present
from fedcmi_jax.systems.effects import simulated as simulated
from fedcmi_jax.systems.effects import speeds as speeds
from fedcmi_jax.systems.table import Table as Table
from fedcmi_jax.systems.table import read_table as read_table
from fedcmi_jax.systems.timing import MOST_STEPS as MOST_STEPS
from fedcmi_jax.systems.timing import Clock as Clock
from fedcmi_jax.systems.timing import Outcome as Outcome
from fedcmi_jax.systems.timing import clock as clock
from fedcmi_jax.systems.timing import most_steps as most_steps
from fedcmi_jax.systems.timing import outcome as outcome
from fedcmi_jax.systems.timing import start as start
from fedcmi_jax.systems.timing import traffic as traffic
