"""OGM-GE, PMR and AGM in their federated form (methods 6 to 8)."""

from types import SimpleNamespace

import numpy as np

from tests.exactness.reference import (
    MODALITIES,
    FedAvg,
    class_means,
    cross_entropy,
    encode,
    log_softmax,
    other,
    prototype_logits,
    score,
    softmax,
    true_class,
    value,
)


class FedOGM(FedAvg):
    """k_m = 1 - tanh(alpha rho_m) scales the stronger encoder's kernels; no noise."""

    alpha = 1.0
    ge = False

    def scores(self, params, batch):
        """Of z_m = W_m h_m + b / 2."""
        h = self.forward(params, batch).h
        rows = dict(
            zip(MODALITIES, np.split(params["fusion/out/kernel"], 2), strict=True)
        )
        half = params["fusion/out/bias"] / 2
        return {m: score(h[m] @ rows[m] + half, batch.y) for m in MODALITIES}

    def correct(self, i, g, params, batch, own):
        if not self.is_multimodal(i):
            return g
        s = self.scores(params, batch)
        g = dict(g)
        for m in MODALITIES:
            rho = s[m] / s[other(m)]
            if rho > 1:
                name = f"encoder/{m}/dense0/kernel"
                g[name] = g[name] * (1 - np.tanh(self.alpha * rho))
        return g


class FedPMR(FedAvg):
    """CE(z, y) + alpha a_m CE(-||h_m - P_m||, y) for the modality m that is behind."""

    alpha = 1.0
    coefficient = "switch"
    keep = 0.0
    entropy, entropy_rounds = 0.0, 0

    def measure(self, i, params):
        c = self.clients[i]
        return {
            m: class_means(encode(params, m, c.x[m]), c.y, self.num_classes)[0]
            for m in MODALITIES
        }

    def begin(self, i, own):
        own.known = np.bincount(self.clients[i].y, minlength=self.num_classes) > 0
        own.prototypes = self.measure(i, own.start)

    def epoch_end(self, i, params, own):
        new = self.measure(i, params)
        for m in MODALITIES:
            own.prototypes[m] = (1 - self.keep) * new[m] + self.keep * own.prototypes[m]

    def extra(self, i, out, batch, own):
        if not self.is_multimodal(i):
            return 0.0
        return self.rebalance(out, batch, own.prototypes, {m: own.known for m in "av"})

    def rebalance(self, out, batch, prototypes, known):
        d = {m: prototype_logits(out.h[m], prototypes[m], known[m]) for m in MODALITIES}
        s = {m: score(d[m], batch.y) for m in MODALITIES}
        strong = max(MODALITIES, key=s.get)
        weak = other(strong)
        if self.coefficient == "switch":
            factor = float(s[weak] < s[strong])
        else:
            factor = np.clip(s[strong] / s[weak] - 1, 0, 1)
        loss = self.alpha * factor * cross_entropy(d[weak], batch.y)
        if self.t < self.entropy_rounds:
            log_q = log_softmax(d[strong])
            loss = loss + self.entropy * (np.exp(log_q) * log_q).sum(-1).mean(-1)
        return loss


class FedAGM(FedAvg):
    """Gradients that enter the Shapley responses m_a, m_v are scaled by k_a, k_v."""

    alpha = 1.0
    sign = "original"
    score_state = "persist"
    pad = "input"
    pad_grad = True

    def setup(self):
        self.mean = [dict.fromkeys(MODALITIES, 0.0) for _ in self.clients]
        self.count = [0] * len(self.clients)
        self.clipped = 0

    def begin(self, i, own):
        if self.score_state == "reset":
            self.mean[i] = dict.fromkeys(MODALITIES, 0.0)

    def alone(self, params, batch, m):
        """f with zeros in place of the other modality's input, or of its feature."""
        x, has = dict(batch.x), dict(batch.has)
        if self.pad == "input":
            x[other(m)] = np.zeros_like(x[other(m)])
        else:
            has[other(m)] = 0
        z = self.forward(params, SimpleNamespace(x=x, has=has)).z
        return z if self.pad_grad else value(z)

    def loss(self, i, params, batch, own):
        z = self.forward(params, batch).z
        if not self.is_multimodal(i):
            return cross_entropy(z, batch.y)
        f = {m: self.alone(params, batch, m) for m in MODALITIES}
        response = {m: (z - f[other(m)] + f[m]) / 2 for m in MODALITIES}
        own.s = {m: self.surprise(response[m], batch.y) for m in MODALITIES}
        return cross_entropy(
            sum(
                k * response[m] + (1 - k) * value(response[m])
                for m, k in self.factors(own.s, self.mean[i]).items()
            ),
            batch.y,
        )

    def surprise(self, z, y):
        """mean_j -log max(softmax(z)_j[y_j], 1e-8)."""
        p = true_class(softmax(value(z)), y)
        return -np.log(np.maximum(p, 1e-8)).mean()

    def factors(self, s, mean):
        swap = -1 if self.sign == "fl_port" else 1
        k = {}
        for m in MODALITIES:
            r = np.exp(swap * (s[other(m)] - s[m]))
            tau = np.exp(swap * (mean[other(m)] - mean[m]))
            k[m] = np.exp(self.alpha * min(tau - r, 10.0))
        return k

    def correct(self, i, g, params, batch, own):
        if not self.is_multimodal(i):
            return g
        self.count[i] += 1
        for m in MODALITIES:
            new = (own.s[m] - self.mean[i][m]) / self.count[i]
            self.mean[i][m] = self.mean[i][m] + new
        if np.abs(g["fusion/out/kernel"]).max() <= 1:
            return g
        self.clipped += 1
        norm = np.sqrt(sum((x**2).sum() for x in g.values()))
        return {k: x / max(norm, 1.0) for k, x in g.items()}
