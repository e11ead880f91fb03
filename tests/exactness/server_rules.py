"""FedNova, FedDyn, q-FedAvg, FedPer, FedRep, MOON; methods 14 to 18."""

import numpy as np

from tests.exactness.reference import (
    MODALITIES,
    FedAvg,
    cross_entropy,
    encode,
    gradient,
)


class ByBlock(FedAvg):
    """Records what clients end with; ``new_block`` is the server's rule."""

    def setup(self):
        self.records = {}

    def finish(self, i, params, own):
        self.records[i] = own

    def aggregate(self, trained):
        for name, old in dict(self.params).items():
            owners = [i for i in trained if self.owns(i, name)]
            if owners:
                moves = np.array([trained[i][name] - old for i in owners])
                self.params[name] = self.new_block(name, old, owners, moves)


class FedNova(ByBlock):
    """w_G + (sum_i p_i a_i) sum_i p_i (w_i - w_G) / a_i, a_i gradients long."""

    def length(self, i):
        buffer, total = 0.0, 0.0
        for _ in range(self.records[i].steps):  # of a constant gradient of 1
            buffer = self.momentum * buffer + 1.0
            total += buffer
        return total

    def new_block(self, name, old, owners, moves):
        n = np.array([len(self.clients[i].y) for i in owners], float)
        p, a = n / n.sum(), np.array([self.length(i) for i in owners])
        return old + (p @ a) * np.tensordot(p / a, moves, 1)


class FedDyn(ByBlock):
    """The paper's lambda_i and h, alpha times what the package keeps."""

    alpha = 0.1

    def setup(self):
        super().setup()

        def zeros():
            return {k: np.zeros_like(w) for k, w in self.params.items()}

        self.h, self.lambdas = zeros(), [zeros() for _ in self.clients]

    def correct(self, i, g, params, batch, own):
        return {
            k: g[k] - self.lambdas[i][k] + self.alpha * (params[k] - own.start[k])
            for k in g
        }

    def finish(self, i, params, own):
        for k in params:
            move = params[k] - own.start[k]
            self.lambdas[i][k] = self.lambdas[i][k] - self.alpha * move

    def new_block(self, name, old, owners, moves):
        everybody = sum(self.owns(i, name) for i in range(len(self.clients)))
        self.h[name] = self.h[name] - self.alpha * moves.sum(0) / everybody
        return old + moves.mean(0) - self.h[name] / self.alpha


class QFedAvg(ByBlock):
    """w_G + sum_i F_i^q L (w_i - w_G) / sum_i h_i."""

    q = 1.0
    lipschitz = None

    def begin(self, i, own):
        samples = self.all_samples(i)
        own.loss = cross_entropy(self.forward(own.start, samples).z, samples.y)

    def finish(self, i, params, own):
        super().finish(i, params, own)
        own.square = sum(((params[k] - own.start[k]) ** 2).sum() for k in params)

    def new_block(self, name, old, owners, moves):
        scale, top, bottom = self.lipschitz or 1 / self.lr, 0.0, 0.0
        for i, move in zip(owners, moves, strict=True):
            loss, square = self.records[i].loss, self.records[i].square
            top = top + loss**self.q * scale * move
            bottom += self.q * loss ** (self.q - 1) * scale**2 * square
            bottom += scale * loss**self.q
        return old + top / bottom


class FedPer(FedAvg):
    """The fusion stays at the client."""

    def setup(self):
        self.own = [dict(self.params) for _ in self.clients]

    def start(self, i):
        mine = {k: w for k, w in self.own[i].items() if k.startswith("fusion")}
        return self.params | mine

    def finish(self, i, params, own):
        self.own[i] = dict(params)

    def averaged(self, i, name):
        return self.owns(i, name) and not name.startswith("fusion")


class FedRep(FedPer):
    """First steps: the client's own layers; then the others. Momentum is per layer."""

    head_share = 0.5

    def train(self, i, epochs=None):
        epochs = epochs or self.epochs
        batches = [b for _ in range(epochs) for b in self.batches(i)]
        head_steps = np.round(self.head_share * len(batches))
        done = 0
        params, trains = dict(self.start(i)), self.trains
        buffers = {}
        for batch in batches:
            phase = done < head_steps
            g = gradient(lambda p, b=batch: self.loss(i, p, b, None), params)
            for name in g:
                if trains(i, name) and name.startswith("fusion") == phase:
                    d = g[name] + self.weight_decay * params[name]
                    buffers[name] = self.momentum * buffers.get(name, 0.0) + d
                    params[name] = params[name] - self.lr * buffers[name]
            done += 1
        return params, None


class Moon(FedAvg):
    """CE + mu mean_m -log softmax(cos / tau)[global against the last local model]."""

    mu, temperature = 1.0, 0.5

    def setup(self):
        self.last = [dict(self.params) for _ in self.clients]

    def extra(self, i, out, batch, own):
        terms = []
        for m in MODALITIES:
            if batch.has[m]:
                near, far = (
                    cosine(out.h[m], encode(w, m, batch.x[m])) / self.temperature
                    for w in (own.start, self.last[i])
                )
                terms.append(np.log(1 + np.exp(far - near)).mean(-1))
        return self.mu * sum(terms) / len(terms)

    def finish(self, i, params, own):
        self.last[i] = dict(params)


def cosine(a, b):
    """0 for a row of zeros, as where no unit of an encoder is active."""
    square = np.sum(a * a, -1)
    length = np.sqrt(np.where(np.real(square) > 1e-16, square, 1e-16))
    return (a * b).sum(-1) / length / np.maximum(np.linalg.norm(b, axis=-1), 1e-8)
