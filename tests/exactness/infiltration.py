"""FedCMI in every option (methods 1.2 to 1.9)."""

import numpy as np

from tests.exactness.reference import (
    MODALITIES,
    FedAvg,
    cross_entropy,
    log_softmax,
    other,
    score,
    softmax,
    true_class,
    two_projector,
    value,
)


class FedCMI(FedAvg):
    """CE(z, y) + beta sum_m CE(g_m(s_m), y) + lam L_inf, and mu (w - w_G)."""

    forward = staticmethod(two_projector)
    lam, beta, gamma, mu = 1.0, 2.0, 2.0, 0.01
    temperature, fixed_temperature, min_temperature = "class", 1.0, 0.1
    direction, student, teacher = "to_weak", "infiltration", "global"
    dominance, on_disagreement, ratio_mean = "batch_local", "keep", "arithmetic"
    warmup_rounds = 1
    personal_infiltration = head_owner_multimodal_only = False

    def setup(self):
        self.private = [dict(self.params) for _ in self.clients]
        self.server_ratio, self.ratios = None, {}
        self.leads = []

    # 1.3: what a client measures with the round's global model.
    def begin(self, i, own):
        if not self.is_multimodal(i):
            return
        batch = self.all_samples(i)
        logits = self.forward(own.start, batch).self_logits
        q = {m: true_class(softmax(logits[m]), batch.y) for m in MODALITIES}
        present = np.unique(batch.y)
        p = {
            m: np.array([q[m][batch.y == c].mean() for c in present])
            for m in MODALITIES
        }
        r = np.clip(p["a"], 1e-8, 1) / np.clip(p["v"], 1e-8, 1)
        if self.ratio_mean == "arithmetic":
            own.ratio = r.mean()
        else:
            own.ratio = np.exp(np.log(r).mean())
        own.lead = "a" if own.ratio > 1 else "v"
        u = r / own.ratio if own.ratio > 1 else own.ratio / r
        own.sharpness = np.ones(self.num_classes)
        own.sharpness[present] = 1 + self.gamma * np.log(np.maximum(u, 1))
        own.temperature = np.maximum(1 / own.sharpness, self.min_temperature)
        self.ratios[i] = own.ratio

    # 1.4
    def extra(self, i, out, batch, own):
        if not self.is_multimodal(i):
            return 0.0
        heads = sum(cross_entropy(out.self_logits[m], batch.y) for m in MODALITIES)
        if self.t < self.warmup_rounds:
            return self.beta * heads
        return self.beta * heads + self.lam * self.infiltrate(out, batch, own)

    def infiltrate(self, out, batch, own):
        frozen = self.forward(own.start, batch)
        lead = self.dominant(out, frozen, batch.y, own)
        self.leads.append((lead, own.lead))
        source = frozen if self.teacher == "global" else out
        target = out.inf_logits if self.student == "infiltration" else out.self_logits
        T, weight = self.temperatures(batch.y, lead, own)
        learners = {
            "to_weak": [other(lead)],
            "to_strong": [lead],
            "both": [other(lead), lead],
        }[self.direction]
        total = 0.0
        for k in learners:
            taught = softmax(value(source.self_logits[other(k)]) / T)
            h = -(taught * log_softmax(target[k] / T)).sum(-1)
            total = total + (weight * h).mean(-1)
        return total

    def dominant(self, out, frozen, y, own):
        """Who is ahead: audio where the ratio exceeds 1."""
        if self.dominance.startswith("batch"):
            logits = (out if self.dominance == "batch_local" else frozen).self_logits
            return "a" if score(logits["a"], y) > score(logits["v"], y) else "v"
        ratio = own.ratio if self.dominance == "round_global" else self.server_ratio
        return "a" if ratio > 1 else "v"

    def temperatures(self, y, lead, own):
        """T [B, 1] of every sample, and how much it counts [B]."""
        neutral = self.on_disagreement == "neutral" and lead != own.lead
        one = np.ones(len(y))
        T, weight = one, one
        if self.temperature in ("fixed", "weights"):
            T = self.fixed_temperature * one
        if self.temperature == "class" and not neutral:
            T = own.temperature[y]
        if self.temperature == "weights" and not neutral:
            weight = own.sharpness[y]
        return T[:, None], weight

    def correct(self, i, g, params, batch, own):
        return {k: g[k] + self.mu * (params[k] - own.start[k]) for k in g}

    # 1.6, D3, D8
    def merge(self, cohort):
        measured = [i for i in cohort if self.is_multimodal(i)]
        if measured:
            n = [self.weight(i) for i in measured]
            ratios = [self.ratios[i] for i in measured]
            self.server_ratio = np.average(ratios, weights=n)

    def is_private(self, name):
        kind = name.split("/")[0]
        return self.personal_infiltration and kind in ("infiltration_projector", "head")

    def start(self, i):
        return {
            k: self.private[i][k] if self.is_private(k) else w
            for k, w in self.params.items()
        }

    def finish(self, i, params, own):
        self.private[i] = dict(params)

    def averaged(self, i, name):
        if self.is_private(name):
            return False
        only = self.head_owner_multimodal_only and name.startswith("head/")
        return self.owns(i, name) and (self.is_multimodal(i) or not only)

    def deployed(self):
        """The model to evaluate: private blocks as their owners' mean by samples."""
        params = dict(self.params)
        for k in filter(self.is_private, params):
            owners = [i for i in range(len(self.clients)) if self.owns(i, k)]
            n = [self.weight(i) for i in owners]
            blocks = [self.private[i][k] for i in owners]
            params[k] = np.average(blocks, axis=0, weights=n)
        return params
