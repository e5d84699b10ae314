"""A plan as tables: what each program needs, what a step costs, what would fit."""

from rich.table import Table

from motab_jax.planning.search import Plan

GIB = 2**30


def tables(plan: Plan) -> list[Table]:
    """The tables of a plan, in the order in which they are shown."""
    programs = [] if plan.compiled is None else [_programs(plan)]
    return [*programs, _memory(plan), _costs(plan), *([_largest(plan)] if plan.largest else [])]


def _title(plan: Plan) -> str:
    sizes = plan.sizes
    mesh = f"data {sizes.data} x fsdp {sizes.fsdp} x tensor {sizes.tensor}"
    return f"{plan.target.name}: {plan.target.count} devices, {mesh}; {sizes.rows} rows of {sizes.prompt}+{sizes.new}"


def _programs(plan: Plan) -> Table:
    table = Table(title=_title(plan), caption="GiB on a device; collectives in a loop are counted once")
    for name in (
        "program", "arguments", "temporaries", "outputs", "other arrays", "in all", "fits", "copies", "collectives"
    ):  # fmt: skip
        table.add_column(name, justify="left" if name in ("program", "collectives") else "right")
    for program in plan.programs:
        fits = "yes" if program.needed_bytes <= plan.target.limit else "no"
        other, needed = _gib(program.other_live_bytes), _gib(program.needed_bytes)
        if program.facts is None:
            table.add_row(program.name, "", "", "", other, needed, fits, "", "the compiler ran out of memory")
            continue
        facts = program.facts
        kinds = [f"{n} {kind} ({_gib(facts.collective_bytes.get(kind, 0))})" for kind, n in facts.collectives.items()]
        table.add_row(
            program.name, _gib(facts.arguments), _gib(facts.temporaries), _gib(facts.outputs - facts.aliased), other,
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


def _costs(plan: Plan) -> Table:
    share = 100 * plan.target.teacher_share
    caption = f"rooflines, not measurements; {share:.0f}% of the tokens taken to be the teacher's"
    table = Table(title="A step at the least", caption=caption)
    for name in ("phase", "TFLOP", "GB of memory", "GB over links", "seconds", "bound by"):
        table.add_column(name, justify="left" if name in ("phase", "bound by") else "right")
    for cost in plan.costs:
        figures = (f"{cost.flops / 1e12:.3g}", f"{cost.bytes / 1e9:.3g}", f"{cost.link_bytes / 1e9:.3g}")
        table.add_row(cost.name, *figures, f"{cost.seconds:.3g}", cost.bound_by)
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
