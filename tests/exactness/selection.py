"""BMSFed with its public code's six defects repaired (methods 11)."""

import numpy as np

from tests.exactness.modulation import FedPMR
from tests.exactness.reference import (
    MODALITIES,
    class_means,
    cross_entropy,
    encode,
    other,
    prototype_logits,
)


class BMSFed(FedPMR):
    """Cohorts, and modalities to train, by facility location and balance."""

    alpha, threshold, grad_epochs = 2.0, 1.0, 1
    selection = "balanced"
    drop_threshold = None
    stale_single_updates = False

    def setup(self):
        n = len(self.clients)
        self.use = [dict(self.clients[i].has) for i in range(n)]
        self.survey()

    # Whatever asks for a client's modalities gets those that it trains in this round.
    def has(self, i):
        return self.use[i]

    def can(self, i):
        return self.clients[i].has

    def loses(self, i, params):
        """w_G - w_i, the encoders' parts."""
        return {
            m: np.concatenate(
                [(self.params[k] - params[k]).ravel() for k in self.of_encoder(m)]
            )
            for m in MODALITIES
        }

    def of_encoder(self, m):
        return [k for k in self.params if k.startswith(f"encoder/{m}/")]

    def survey(self):
        """Round 0: everybody's G_i, b_i and class means, under the initial model."""
        clients = range(len(self.clients))
        self.surveying = True
        self.single, self.joint = [], []
        for i in clients:
            params, _ = self.train(i, self.grad_epochs)
            g = self.loses(i, params)
            self.single.append(g)
            self.joint.append(np.concatenate([g[m] for m in MODALITIES]))
        self.b = [self.balance(i, self.params) for i in clients]
        self.surveying = False
        self.global_means = {m: np.zeros((self.num_classes, 4)) for m in MODALITIES}
        self.global_known = {m: np.zeros(self.num_classes, bool) for m in MODALITIES}
        self.collect({i: self.params for i in clients})

    def means(self, i, params):
        c = self.clients[i]
        h = {m: encode(params, m, c.x[m]) for m in MODALITIES}
        return h, {m: class_means(h[m], c.y, self.num_classes) for m in MODALITIES}

    def balance(self, i, params):
        """acc_a / acc_v by the nearest own class mean, at least 1 / n each."""
        if sum(self.can(i).values()) < 2:
            return 1.0
        y = self.clients[i].y
        h, means = self.means(i, params)
        accuracy = {}
        for m in MODALITIES:
            mean, count = means[m]
            guess = prototype_logits(h[m], mean, count > 0).argmax(-1)
            accuracy[m] = max((guess == y).mean(), 1 / len(y))
        return accuracy["a"] / accuracy["v"]

    def collect(self, models):
        """Pbar of these clients' class means; a class that none has keeps its own."""
        totals = {m: np.zeros_like(self.global_means[m]) for m in MODALITIES}
        counts = {m: np.zeros(self.num_classes) for m in MODALITIES}
        for i, params in models.items():
            _, means = self.means(i, params)
            for m in MODALITIES:
                if self.can(i)[m]:
                    mean, n = means[m]
                    totals[m] += n[:, None] * mean
                    counts[m] += n
        for m in MODALITIES:
            seen = counts[m] > 0
            self.global_means[m][seen] = totals[m][seen] / counts[m][seen, None]
            self.global_known[m] |= seen

    # Local training: the initial model's own class means in the survey, the global
    # ones afterwards.
    def begin(self, i, own):
        if self.surveying:
            super().begin(i, own)

    def epoch_end(self, i, params, own):
        pass

    def extra(self, i, out, batch, own):
        if self.surveying:
            means, known = own.prototypes, dict.fromkeys(MODALITIES, own.known)
        else:
            means, known = self.global_means, self.global_known
        if sum(batch.has.values()) == 2:
            return self.rebalance(out, batch, means, known)
        (m,) = (m for m in MODALITIES if batch.has[m])
        d = prototype_logits(out.h[m], means[m], known[m])
        return self.alpha * cross_entropy(d, batch.y)

    # Selection.
    def distances(self, vectors):
        vectors = np.array(vectors)
        return np.linalg.norm(vectors[:, None] - vectors, axis=-1)

    def choices(self, k, first_pool):
        """Greedy cohort {client: modalities}, if the first pick sees only that pool."""
        n = np.array([len(c.y) for c in self.clients])
        b = (n * self.b).sum() / n.sum()
        w = "v" if b > 1 else "a"
        joint = self.distances(self.joint)
        single = self.distances([g[w] for g in self.single])
        cover = np.full(len(n), np.inf)
        cover_w = np.full(len(n), np.inf)
        chosen = {}

        def best(cover, d, pool):
            return min(pool, key=lambda j: np.minimum(cover, d[:, j]).sum())

        for _ in range(k):
            pool = [j for j in first_pool if j not in chosen]
            first_pool = range(len(n))
            j, j_w = best(cover, joint, pool), best(cover_w, single, pool)
            ahead = self.b[j_w] if w == "v" else 1 / self.b[j_w]
            if self.selection == "balanced" and ahead > self.threshold:
                chosen[j_w] = {w: 1, other(w): 0}
                cover_w = np.minimum(cover_w, single[:, j_w])
            else:
                chosen[j] = dict(self.can(j))
                cover = np.minimum(cover, joint[:, j])
        return chosen

    def kept(self, i):
        """What a client trains if only its own imbalance counts."""
        b, keep = self.balance(i, self.params), dict(self.can(i))
        if self.drop_threshold and b > self.drop_threshold:
            keep["a"] = 0
        if self.drop_threshold and b < 1 / self.drop_threshold:
            keep["v"] = 0
        return keep

    def round(self, cohort):
        """One round of a cohort {client: modalities}."""
        for i, use in cohort.items():
            self.use[i] = use
        self.trained = {}
        super().round(list(cohort))

    def finish(self, i, params, own):
        self.trained[i] = params

    def merge(self, cohort):
        for i, params in self.trained.items():
            g, multimodal = self.loses(i, params), self.is_multimodal(i)
            if self.use[i] == self.can(i):
                self.joint[i] = np.concatenate([g[m] for m in MODALITIES])
            if not multimodal or not self.stale_single_updates:
                for m in MODALITIES:
                    if self.use[i][m]:
                        self.single[i][m] = g[m]
            self.b[i] = self.balance(i, params)
        self.collect(self.trained)
