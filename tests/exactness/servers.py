"""FedAvgM (arXiv 1909.06335); FedAdagrad, FedAdam, FedYogi (2003.00295, Alg. 2)."""

import numpy as np

from tests.exactness.reference import FedAvg


class FedAvgM(FedAvg):
    """v <- beta v + Delta;  x <- x + eta v."""

    server_lr, beta = 0.7, 0.9

    def setup(self):
        self.v = {k: np.zeros_like(w) for k, w in self.params.items()}

    def server_step(self, owned_deltas):
        for k, delta in owned_deltas.items():
            self.v[k] = self.beta * self.v[k] + delta
            self.params[k] = self.params[k] + self.server_lr * self.v[k]


class FedAdam(FedAvg):
    """m <- beta_1 m + (1 - beta_1) Delta;  x <- x + eta m / (sqrt(v) + tau).

    v <- beta_2 v + (1 - beta_2) Delta^2, here; m_0 = 0, v_0 = tau^2, and nothing is
    corrected for the start. A block that nobody owned this round keeps its parameters
    and both moments.
    """

    server_lr, beta_1, beta_2, tau = 0.03, 0.9, 0.99, 1e-3

    def setup(self):
        self.m = {k: np.zeros_like(w) for k, w in self.params.items()}
        self.v = {k: np.full_like(w, self.tau**2) for k, w in self.params.items()}

    def second(self, v, delta):
        return self.beta_2 * v + (1 - self.beta_2) * delta**2

    def server_step(self, owned_deltas):
        for k, delta in owned_deltas.items():
            self.m[k] = self.beta_1 * self.m[k] + (1 - self.beta_1) * delta
            self.v[k] = self.second(self.v[k], delta)
            step = self.m[k] / (np.sqrt(self.v[k]) + self.tau)
            self.params[k] = self.params[k] + self.server_lr * step


class FedYogi(FedAdam):
    def second(self, v, delta):
        return v - (1 - self.beta_2) * delta**2 * np.sign(v - delta**2)


class FedAdagrad(FedAdam):
    def second(self, v, delta):
        return v + delta**2
