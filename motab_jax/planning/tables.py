"""A plan as tables: what each program needs, what a step costs, what would fit."""

from rich.table import Table

from motab_jax.planning.search import Plan, Target

GIB = 2**30


def tables(plan: Plan, target: Target) -> list[Table]:
    """The tables of a plan, in the order in which they are read."""
    found = [] if plan.whole is None else [_programs(plan)]
    return [*found, _memory(plan), _phases(plan, target), *([_largest(plan)] if plan.largest else [])]


def _title(plan: Plan) -> str:
    sizes = plan.sizes
    mesh = f"data {sizes.data} x fsdp {sizes.fsdp} x tensor {sizes.tensor}"
    return f"{plan.target.name}: {plan.target.count} devices, {mesh}; {sizes.rows} rows of {sizes.prompt}+{sizes.new}"


def _programs(plan: Plan) -> Table:
    table = Table(title=_title(plan), caption="GiB on a device; collectives in a loop are counted once")
    for name in ("program", "arguments", "temporaries", "outputs", "beside", "in all", "fits", "copies", "collectives"):
        table.add_column(name, justify="left" if name in ("program", "collectives") else "right")
    assert plan.whole is not None
    for program in plan.whole.programs:
        fits = "yes" if program.needed <= plan.target.limit else "no"
        beside, needed = _gib(program.beside), _gib(program.needed)
        if program.facts is None:
            table.add_row(program.name, "", "", "", beside, needed, fits, "", "the compiler gave up")
            continue
        facts = program.facts
        kinds = [f"{n} {kind} ({_gib(facts.moved.get(kind, 0))})" for kind, n in facts.collectives.items()]
        table.add_row(
            program.name, _gib(facts.arguments), _gib(facts.temporaries), _gib(facts.outputs - facts.aliased), beside,
            needed, fits, str(facts.copies), ", ".join(kinds) or "none",
        )  # fmt: skip
    return table


def _memory(plan: Plan) -> Table:
    table = Table(title="A device's memory by arithmetic", caption="without temporaries")
    table.add_column("what")
    table.add_column("GiB", justify="right")
    for name, count in plan.memory.items():
        table.add_row(name, _gib(count))
    return table


def _phases(plan: Plan, target: Target) -> Table:
    caption = f"rooflines, not measurements; {100 * target.strayed:.0f}% of the tokens taken to be the teacher's"
    table = Table(title="A step at the least", caption=caption)
    for name in ("phase", "TFLOP", "GB of memory", "GB over links", "seconds", "bound by"):
        table.add_column(name, justify="left" if name in ("phase", "bound by") else "right")
    for phase in plan.phases:
        figures = (f"{phase.flops / 1e12:.3g}", f"{phase.bytes / 1e9:.3g}", f"{phase.linked / 1e9:.3g}")
        table.add_row(phase.name, *figures, f"{phase.seconds:.3g}", phase.binds)
    table.add_row("step", "", "", "", f"{plan.seconds:.3g}", "", style="bold")
    return table


def _largest(plan: Plan) -> Table:
    table = Table(title="The largest that fits, each by itself")
    table.add_column("key")
    table.add_column("value", justify="right")
    for name, value in plan.largest.items():
        table.add_row(f"rollout.{name}", str(value))
    return table


def _gib(count: float) -> str:
    return f"{count / GIB:.2f}"
