"""FedAvg of a tiny two-modality model in NumPy float64, written from methods 0.

Nothing here comes from the package. Every other method is a subclass that overrides
the steps it changes. Parameters are a flat dict ``path -> array``, and gradients are
taken by complex step: the loss is evaluated once for all P parameters, number k of
them moved by ih, and its imaginary part over h is the gradient, exact to rounding. So
a loss is written as in its paper, for arrays with a leading axis [P] or none, and
``value`` is the stop-gradient.
"""

from types import SimpleNamespace

import numpy as np

MODALITIES = ("a", "v")
TINY = 1e-30


def other(m):
    return "v" if m == "a" else "a"


def gradient(loss, params):
    """d loss / d params; ``loss`` maps params with a leading axis to that axis."""
    total = sum(w.size for w in params.values())
    moved, start, places = {}, 0, {}
    for name, w in params.items():
        copies = np.tile(w.ravel().astype(complex), (total, 1))
        places[name] = np.arange(start, start + w.size)
        copies[places[name], np.arange(w.size)] += 1j * TINY
        moved[name] = copies.reshape(total, *w.shape)
        start += w.size
    slopes = np.imag(loss(moved)) / TINY
    return {name: slopes[places[name]].reshape(w.shape) for name, w in params.items()}


def dense(params, path, x):
    return x @ params[path + "/kernel"] + params[path + "/bias"][..., None, :]


def relu(x):
    return np.where(np.real(x) > 0, x, 0.0)


def log_softmax(z):
    z = z - np.real(z).max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def softmax(z):
    return np.exp(log_softmax(z))


def true_class(z, y):
    """z_j[y_j]."""
    return z[..., np.arange(len(y)), y]


def cross_entropy(z, y):
    """CE(z, y), mean over the batch."""
    return -true_class(log_softmax(z), y).mean(-1)


def value(z):
    """sg(z): the number itself, which all moved copies of the parameters share."""
    return np.real(z if z.ndim == 2 else z[0])


def score(z, y):
    """sum_j softmax(z)_j[y_j], without gradient."""
    return true_class(softmax(value(z)), y).sum()


def encode(params, m, x):
    return relu(dense(params, f"encoder/{m}/dense0", x))


def fuse(params, left, right):
    return dense(params, "fusion/out", np.concatenate([left, right], -1))


def classifier(params, batch):
    """z = W [h_a; h_v] + b, a missing modality's half zero (methods 0.3)."""
    h = {m: encode(params, m, batch.x[m]) for m in MODALITIES}
    z = fuse(params, *(h[m] * batch.has[m] for m in MODALITIES))
    return SimpleNamespace(z=z, h=h)


def two_projector(params, batch):
    """Self- (s) and infiltration (c) projections, their logits, and z (methods 1.2)."""
    h = {m: encode(params, m, batch.x[m]) for m in MODALITIES}
    s = {m: dense(params, f"self_projector/{m}/dense0", h[m]) for m in MODALITIES}
    c = {
        m: dense(params, f"infiltration_projector/{m}/dense0", h[m]) for m in MODALITIES
    }
    z = fuse(params, *(s[m] if batch.has[m] else c[other(m)] for m in MODALITIES))
    return SimpleNamespace(
        z=z,
        h=h,
        s=s,
        c=c,
        self_logits={m: dense(params, f"head/{m}/out", s[m]) for m in MODALITIES},
        inf_logits={m: dense(params, f"head/{m}/out", c[m]) for m in MODALITIES},
    )


def share(params, m, part):
    """z_m = W_m p_m + b / 2, modality m's share of the fused logits."""
    left, right = np.split(params["fusion/out/kernel"], 2, axis=-2)
    return part @ (left if m == "a" else right) + params["fusion/out/bias"] / 2


def class_means(h, y, num_classes):
    """[C, F] means of the features by class, and [C] counts."""
    counts = np.bincount(y, minlength=num_classes)
    sums = np.zeros((num_classes, h.shape[-1]))
    np.add.at(sums, y, h)
    return sums / np.maximum(counts, 1)[:, None], counts


def prototype_logits(h, prototypes, known):
    """-||h - P[c]||_2, its slope 0 at 0; a class without prototype cannot be meant."""
    squares = ((h[..., :, None, :] - prototypes) ** 2).sum(-1)
    return np.where(known, -np.sqrt(squares + 1e-12), -1e9)


class FedAvg:
    """Local SGD and the ownership-weighted mean (methods 0.6, 0.7).

    Attributes:
      clients: Records of x {m: [n, f]}, y [n], has {m: 0 or 1}; all in float64.
      params: The global parameters.
      t: The round, from 0.
    """

    momentum = 0.9
    weight_decay = 1e-4
    epochs = 2
    batch_size = 4
    lr = 0.1
    forward = staticmethod(classifier)

    def __init__(self, clients, params, num_classes, **options):
        self.clients, self.num_classes, self.t = clients, num_classes, 0
        self.params = {name: np.array(w, np.float64) for name, w in params.items()}
        for name, value in options.items():
            if not hasattr(self, name):
                raise TypeError(f"{type(self).__name__} has no option {name}")
            setattr(self, name, value)
        self.setup()

    # What a method overrides. ``own`` is what the client keeps during one round.
    def setup(self):
        pass

    def begin(self, i, own):
        pass

    def extra(self, i, out, batch, own):
        """Added to the cross-entropy of the fused logits."""
        return 0.0

    def loss(self, i, params, batch, own):
        out = self.forward(params, batch)
        return cross_entropy(out.z, batch.y) + self.extra(i, out, batch, own)

    def correct(self, i, g, params, batch, own):
        """From the loss's gradient to what SGD takes."""
        return g

    def epoch_end(self, i, params, own):
        pass

    def finish(self, i, params, own):
        pass

    def merge(self, cohort):
        pass

    def weight(self, i):
        return len(self.clients[i].y)

    def start(self, i):
        """The parameters that client i receives."""
        return self.params

    def server_step(self, owned_deltas):
        """From mean deltas of the blocks that somebody owned to new parameters."""
        for name, delta in owned_deltas.items():
            self.params[name] = self.params[name] + delta

    # What stays.
    def has(self, i):
        return self.clients[i].has

    def is_multimodal(self, i):
        return sum(self.has(i).values()) == 2

    def owns(self, i, name):
        kind, m = name.split("/")[:2]
        return True if kind == "fusion" else bool(self.has(i)[m])

    def trains(self, i, name):
        head = name.startswith("head/")
        return self.owns(i, name) and (not head or self.is_multimodal(i))

    def all_samples(self, i):
        c = self.clients[i]
        return SimpleNamespace(x=c.x, y=c.y, has=self.has(i))

    def batches(self, i):
        c = self.clients[i]
        for start in range(0, len(c.y), self.batch_size):
            rows = slice(start, start + self.batch_size)
            x = {m: c.x[m][rows] for m in MODALITIES}
            yield SimpleNamespace(x=x, y=c.y[rows], has=self.has(i), rows=rows)

    def train(self, i, epochs=None):
        """Client i's parameters after its local training, and its record."""
        params, own = dict(self.start(i)), SimpleNamespace(steps=0)
        own.start = dict(params)
        names = [name for name in params if self.trains(i, name)]
        buffer = {name: 0.0 for name in names}
        self.begin(i, own)
        for _ in range(epochs or self.epochs):
            for batch in self.batches(i):
                g = gradient(lambda p, b=batch: self.loss(i, p, b, own), params)
                g = self.correct(i, g, params, batch, own)
                for name in names:
                    d = g[name] + self.weight_decay * params[name]
                    buffer[name] = self.momentum * buffer[name] + d
                    params[name] = params[name] - self.lr * buffer[name]
                own.steps += 1
            self.epoch_end(i, params, own)
        return params, own

    def round(self, cohort):
        """One round of these clients."""
        trained = {}
        for i in cohort:
            trained[i], own = self.train(i)
            self.finish(i, trained[i], own)
        self.merge(cohort)
        self.aggregate(trained)
        self.t += 1

    def averaged(self, i, name):
        """Whether client i counts in the mean of a block."""
        return self.owns(i, name)

    def aggregate(self, trained):
        deltas = {}
        for name, old in self.params.items():
            owners = [i for i in trained if self.averaged(i, name)]
            if owners:
                n = np.array([self.weight(i) for i in owners], float)
                moves = np.array([trained[i][name] - old for i in owners])
                deltas[name] = np.tensordot(n / n.sum(), moves, 1)
        self.server_step(deltas)
