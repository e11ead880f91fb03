"""FedProx, SCAFFOLD, FedProto, Power-of-Choice, FedMSplit style; methods 3-5, 9, 10."""

import numpy as np

from tests.exactness.reference import (
    MODALITIES,
    FedAvg,
    class_means,
    cross_entropy,
    encode,
    prototype_logits,
    softmax,
)


class FedProx(FedAvg):
    """g <- g + mu (w - w_G)."""

    mu = 0.0

    def correct(self, i, g, params, batch, own):
        return {k: g[k] + self.mu * (params[k] - own.start[k]) for k in g}


class Scaffold(FedAvg):
    """g <- g + c - c_i;  c_i+ = c_i - c + scale (w_G - w_i) / (K_i lr)."""

    variate_scale = None
    weights = "data"

    def setup(self):
        def zeros():
            return {k: np.zeros_like(w) for k, w in self.params.items()}

        self.c, self.c_i = zeros(), [zeros() for _ in self.clients]
        self.moves = {}

    def correct(self, i, g, params, batch, own):
        return {k: g[k] + self.c[k] - self.c_i[i][k] for k in g}

    def scale(self, steps):
        """1 / G(K): fresh momentum makes the mean step G gradients long."""
        if self.variate_scale is not None:
            return self.variate_scale
        s, m = np.arange(1, steps + 1), self.momentum
        return 1 / np.mean((1 - m**s) / (1 - m))

    def finish(self, i, params, own):
        self.moves[i] = {}
        for k in params:
            if self.trains(i, k):
                mean_gradient = (own.start[k] - params[k]) / (own.steps * self.lr)
                self.moves[i][k] = self.scale(own.steps) * mean_gradient - self.c[k]
                self.c_i[i][k] = self.c_i[i][k] + self.moves[i][k]

    def merge(self, cohort):
        for k in self.c:
            trained = [i for i in cohort if k in self.moves[i]]
            if trained:
                n = [self.weight(i) if self.weights == "data" else 1 for i in trained]
                moves = np.array([self.moves[i][k] for i in trained])
                share = len(cohort) / len(self.clients)
                self.c[k] = self.c[k] + share * np.tensordot(n, moves, 1) / np.sum(n)


class FedProto(FedAvg):
    """CE(z, y) + lam sum_m of a distance of h_m to the global class means Pbar_m."""

    lam = 1.0
    form = "distance_ce"
    first_round, last_round = 1, 10**9

    def setup(self):
        self.known = {m: np.zeros(self.num_classes, bool) for m in MODALITIES}
        self.prototypes = {m: np.zeros((self.num_classes, 4)) for m in MODALITIES}
        self.uploads = []

    def extra(self, i, out, batch, own):
        if not self.first_round <= self.t <= self.last_round:
            return 0.0
        form = getattr(self, self.form)
        own_modalities = [m for m in MODALITIES if batch.has[m]]
        return self.lam * sum(form(out.h[m], m, batch.y) for m in own_modalities)

    def distance_ce(self, h, m, y):
        return cross_entropy(prototype_logits(h, self.prototypes[m], self.known[m]), y)

    def sample_mse(self, h, m, y):
        """A sample whose class has no prototype is at distance 0."""
        squares = ((h - self.prototypes[m][y]) ** 2).mean(-1)
        return (squares * self.known[m][y]).mean(-1)

    def prototype_mse(self, h, m, y):
        """Of the batch's own class means: sum_c mean_f (P_m[c] - Pbar_m[c])^2."""
        total = 0.0
        for c in set(y.tolist()):
            if self.known[m][c]:
                gap = h[..., y == c, :].mean(-2) - self.prototypes[m][c]
                total = total + (gap**2).mean(-1)
        return total

    def finish(self, i, params, own):
        c = self.clients[i]
        for m in MODALITIES:
            if c.has[m]:
                h = encode(params, m, c.x[m])
                self.uploads.append((m, *class_means(h, c.y, self.num_classes)))

    def merge(self, cohort):
        for m in MODALITIES:
            own = [(mean, n) for k, mean, n in self.uploads if k == m]
            n = sum((n for _, n in own), np.zeros(self.num_classes))
            sums = sum((n[:, None] * mean for mean, n in own), 0.0)
            seen = n > 0
            self.prototypes[m] = np.where(
                seen[:, None], sums / np.maximum(n, 1)[:, None], self.prototypes[m]
            )
            self.known[m] |= seen
        self.uploads = []


class PowerOfChoice(FedAvg):
    """The K clients with the greatest loss of the global model; all are candidates."""

    average = "uniform"

    def choose(self, k):
        losses = [
            cross_entropy(self.forward(self.params, s := self.all_samples(i)).z, s.y)
            for i in range(len(self.clients))
        ]
        return sorted(np.argsort(losses)[-k:].tolist())

    def weight(self, i):
        return len(self.clients[i].y) if self.average == "by_size" else 1


class FedMSplitStyle(FedAvg):
    """Personal models whose blocks are mixed along cosine similarities."""

    eta, tau = 0.5, 0.5

    def setup(self):
        self.theta = [dict(self.params) for _ in self.clients]

    def start(self, i):
        return self.theta[i]

    def finish(self, i, params, own):
        self.theta[i] = dict(params)

    def merge(self, cohort):
        blocks = {}
        for name in self.params:
            kind, m = name.split("/")[:2]
            blocks.setdefault(kind if kind == "fusion" else (kind, m), []).append(name)
        for names in blocks.values():
            owners = [i for i in cohort if self.owns(i, names[0])]
            if owners:
                self.mix(owners, names)

    def mix(self, owners, names):
        vectors = np.array(
            [np.concatenate([self.theta[i][k].ravel() for k in names]) for i in owners]
        )
        centred = vectors - vectors.mean(0)
        unit = centred / np.maximum(np.linalg.norm(centred, axis=1), 1e-12)[:, None]
        mixed = (1 - self.eta) * vectors
        mixed = mixed + self.eta * softmax(unit @ unit.T / self.tau) @ vectors
        for i, vector in zip(owners, mixed, strict=True):
            for k in names:
                w = self.theta[i][k]
                self.theta[i][k], vector = (
                    vector[: w.size].reshape(w.shape),
                    vector[w.size :],
                )
