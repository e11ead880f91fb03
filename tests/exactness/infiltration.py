"""FedCMI in every option (methods 1.2 to 1.10)."""

import numpy as np
from scipy.optimize import brentq

from tests.exactness.reference import (
    MODALITIES,
    FedAvg,
    cross_entropy,
    log_softmax,
    other,
    score,
    share,
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
    gate, lam_scale, calibration, level = "none", "none", "none", "logits"
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
        own.softness = {"self": {m: 1.0 for m in MODALITIES}}
        own.softness["lesson"] = own.softness["self"]
        if self.calibration == "temperature":
            own.softness = self.fit(own, batch)
        logits = self.frozen(own, batch)
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
        lessons = self.lessons(own, batch)
        q = {m: true_class(softmax(lessons[m]), batch.y) for m in MODALITIES}
        own.gates = {m: np.ones(self.num_classes) for m in MODALITIES}
        for m in MODALITIES:
            taught = np.array([q[m][batch.y == c].mean() for c in present])
            own.gates[m][present] = taught > p[m]

    # 1.10
    def fit(self, own, batch):
        def best(z):
            def slope(t):
                q = softmax(z / t)
                return ((q * z).sum(-1) - true_class(z, batch.y)).mean()

            if slope(1.0) <= 0:
                return 1.0
            return 10.0 if slope(10.0) >= 0 else brentq(slope, 1.0, 10.0, xtol=1e-12)

        views = {"self": self.frozen(own, batch), "lesson": self.lessons(own, batch)}
        return {name: {m: best(z[m]) for m in MODALITIES} for name, z in views.items()}

    def frozen(self, own, batch):
        """The global model's logits, calibrated."""
        logits = self.forward(own.start, batch).self_logits
        return {m: z / own.softness["self"][m] for m, z in logits.items()}

    def lessons(self, own, batch):
        """Student -> what the global model would teach it."""
        out = self.forward(own.start, batch)
        if self.teacher not in ("fused", "fused_without_student"):
            logits = self.frozen(own, batch)
            return {m: logits[other(m)] for m in MODALITIES}
        found = {m: out.z for m in MODALITIES}
        if self.teacher == "fused_without_student":
            found = {m: share(own.start, other(m), out.s[other(m)]) for m in MODALITIES}
        return {m: z / own.softness["lesson"][m] for m, z in found.items()}

    # 1.4
    def extra(self, i, out, batch, own):
        if not self.is_multimodal(i):
            return 0.0
        heads = sum(cross_entropy(out.self_logits[m], batch.y) for m in MODALITIES)
        if self.t < self.warmup_rounds:
            return self.beta * heads
        return self.beta * heads + self.lam * self.infiltrate(out, batch, own)

    def infiltrate(self, out, batch, own):
        frozen, lessons = self.frozen(own, batch), self.lessons(own, batch)
        lead = self.dominant(out, frozen, batch.y, own)
        self.leads.append((lead, own.lead))
        if self.teacher == "local":
            frozen = {m: value(out.self_logits[m]) for m in MODALITIES}
            lessons = {m: frozen[other(m)] for m in MODALITIES}
        target = out.inf_logits if self.student == "infiltration" else out.self_logits
        T, weight = self.temperatures(batch.y, lead, own)
        learners = {
            "to_weak": [other(lead)],
            "to_strong": [lead],
            "both": [other(lead), lead],
        }[self.direction]
        total = 0.0
        for k in learners:
            opened = np.ones(len(batch.y))
            if self.gate == "sample":
                better = log_softmax(lessons[k]), log_softmax(frozen[k])
                opened = true_class(better[0], batch.y) > true_class(better[1], batch.y)
            if self.gate == "class":
                opened = own.gates[k][batch.y]
            taught = softmax(lessons[k] / T)
            h = -(taught * log_softmax(target[k] / T)).sum(-1)
            if self.level == "features":
                h = self.angle(own, out, batch, k) / T[:, 0]
            scale = 1.0
            if self.lam_scale == "gap":
                ahead = np.log(own.ratio) * (1 if k == "v" else -1)
                scale = np.clip(ahead, 0, 1)
            total = total + scale * (weight * opened * h).mean(-1)
        return total

    def angle(self, own, out, batch, k):
        """1 - cos(s_d^G, c_k)."""
        s = self.forward(own.start, batch).s[other(k)]
        c = (out.c if self.student == "infiltration" else out.s)[k]
        return 1 - (s * c).sum(-1) / np.sqrt((s * s).sum(-1) * (c * c).sum(-1))

    def dominant(self, out, frozen, y, own):
        """Who is ahead: audio where the ratio exceeds 1."""
        if self.dominance.startswith("batch"):
            logits = out.self_logits if self.dominance == "batch_local" else frozen
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
