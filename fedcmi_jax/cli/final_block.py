"""What a person sees of a run that is done."""

from fedcmi_jax.evaluation.glossary import explain
from fedcmi_jax.experiment.progress import modality_accuracies, percent
from fedcmi_jax.experiment.training import Summary


def final_block(summary: Summary) -> str:
    """The run's result in a few lines, and below it a line on every name in it."""
    r = summary.final
    named: dict[str, str] = {}

    def part(column: str, value: str) -> str:
        term = explain(column)
        named[term.shown] = term.meaning
        return f"{term.shown} {value}"

    def spread(name: str) -> str:
        mean, lowest = (percent(r.get(f"{name}_{what}")) for what in ("mean", "min"))
        return f"{mean} mean, {lowest} lowest"

    lines = [part("acc", f"{percent(r['acc'])} after {r['round']} rounds")]
    for m in modality_accuracies(r):
        views = [f"acc_{m}_{kind}" for kind in ("zero", "infiltration", "head")]
        parts = [part(view, percent(r[view])) for view in views if view in r]
        lines.append(f"  {m} {'  '.join(parts)}")
    parts = [
        part("macro_f1", f"{r['macro_f1']:.3f}"),
        part("worst_class", percent(r["worst_class"])),
        part("client_mean", spread("client")),
    ]
    lines.append(f"  {'  '.join(parts)}")
    if "personal_mean" in r:
        lines.append(f"  {part('personal_mean', spread('personal'))}")
    if "val_acc" in r:
        lines.append(f"  {part('val_acc', percent(r['val_acc']))}")
    if r.get("epsilon") is not None:
        lines.append(f"  {part('epsilon', format(r['epsilon'], '.3g'))}")
    if summary.best is not None:
        lines.append(
            f"  best round on validation {summary.best['round']}: "
            f"validation {percent(summary.best['val_acc'])}, "
            f"test {percent(summary.best['acc'])}"
        )
    if summary.stopped_early is not None:
        lines.append(
            f"  stopped early at round {summary.stopped_early}: validation had not "
            "improved for early_stop_rounds"
        )
    for name in ("client_test", "holdout"):
        if f"{name}_acc" in r:
            value = f"{percent(r[f'{name}_acc'])}, by client {spread(name)}"
            lines.append(f"  {part(f'{name}_acc', value)}")
    lines += [f"  {sign}" for sign in summary.signs]
    if summary.fixed_partition:
        lines.append("  on the partition of seed 0 (fixed_partition)")
    lines.append(f"run folder {summary.folder}")
    meanings = (f"  {shown}: {meaning}" for shown, meaning in named.items())
    return "\n".join([*lines, "where", *meanings])
