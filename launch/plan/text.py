"""A plan for people: what `plan` prints without --json."""

from typing import Any

from datamodels.launch.progress import duration


def describe(found: dict[str, Any]) -> str:
    """A plan as `Plan.to_json` has it."""
    lines = [("rows", f"{found['missing']:,} of {found['rows']:,} missing")]
    lines += [(name, f"{size} bytes") for name, size in found["bytes"].items()]
    lines += [("store", f"{found['total_bytes']} bytes ({_amount(found['total_bytes'])})")]
    lines += [*_training(found), ("fit", _fit(found["fit"])), ("LDS", _lds(found))]
    return "\n".join([*(f"{name:14} {value}" for name, value in lines), *_budget(found)])


def _training(found: dict[str, Any]) -> list[tuple[str, str]]:
    rate = found["seconds_per_row"]
    if rate is None:
        tables = f", `--device NAME` takes a table's: {', '.join(found['tables_of'])}" if found["tables_of"] else ""
        return [("seconds a row", f"not known here: `--probe 2` measures it{tables}")]
    lines = [
        ("seconds a row", f"{rate['seconds']:.3g} {_of(rate)} on {rate['device']}"),
        ("measured by", rate["basis"]),
        (
            f"{found['hours_of']}-hours",
            f"{found['hours']:,.3g} for the missing rows, {found['hours_in_all']:,.3g} in all",
        ),
    ]
    lines += [("money", f"{found['money']:,.2f} for the missing rows")] if found["money"] is not None else []
    return lines + ([("energy", f"{found['kwh']:,.3g} kWh for the missing rows")] if found["kwh"] is not None else [])


def _of(rate: dict[str, Any]) -> str:
    if not rate["on_gpu"]:
        return "of one worker"
    return f"with {rate['streams']} groups at once" if rate["streams"] > 1 else "one group at a time"


def _fit(fit: dict[str, Any]) -> str:
    took = f"; the last one took {duration(fit['seconds'])}" if fit["seconds"] is not None else ""
    matrix, kept, sums = (_amount(fit[key]) for key in ("matrix_bytes", "bytes", "statistics_bytes"))
    curve = f"; `eval --curve` takes {_amount(fit['curve_bytes'])} of disk meanwhile" if fit["curve_bytes"] else ""
    return (
        f"{kept} of disk for datamodels of the test examples, {sums} for sums; {matrix} of memory for a "
        f"matrix and up to 2 GB beside it{curve}{took}"
    )


def _lds(found: dict[str, Any]) -> str:
    law = found["expected"]
    if law is None:
        return "not known: `datamodels eval CONFIG --curve` tells it once some rows are done"
    age = "" if law["current"] else ", of fewer rows or other options"
    return f"{law['lds']:.3f} to be expected, by the curve up to {law['measured_to']:,} models{age}"


def _budget(found: dict[str, Any]) -> list[str]:
    if not found["budget"]:
        return []
    hours = f"{found['hours_of']}-hours" if found["hours_of"] else "hours"
    evaluation = found["rows"] - found["models"]
    lines = ["", f"{found['budget_hours']:,.4g} {hours} of training buy, beside {evaluation:,} evaluation models:"]
    lines.append(f"{'alpha':>6} {'seconds':>8} {'models':>10} {'LDS':>6}")
    for one in found["budget"]:
        rate, law = one["seconds_per_row"], one["expected"]
        seconds, models = (f"{rate['seconds']:.3g}", f"{one['models']:,}") if rate else ("-", "-")
        lds = f"{law['lds']:.3f}" if law else "-"
        why = rate["basis"] if rate else "not measured: `--probe 2` does"
        lines.append(f"{one['alpha']:>6g} {seconds:>8} {models:>10} {lds:>6}  {why}")
    lines.append("Fits, evaluation and the report come on top, and their time is not in it.")
    return [*lines, "LDS as far as `eval --curve` has been run at that alpha; each is for masks of its own alpha."]


def _amount(size: int) -> str:
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"
