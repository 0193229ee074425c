"""A plan as text: what `plan` prints without --json."""

from typing import Any

from datamodels.launch.progress import duration


def describe(found: dict[str, Any]) -> str:
    """A plan, as `plan()` returns it, as lines of text."""
    rate, fit, law = found["seconds_per_row"], found["fit"], found["expected"]
    lines = [("rows", f"{found['missing']:,} of {found['rows']:,} missing")]
    lines += [(name, f"{size} bytes") for name, size in found["bytes"].items()]
    lines.append(("store", f"{found['total_bytes']} bytes ({_amount(found['total_bytes'])})"))
    if rate is None:
        lines.append(("seconds a row", "not measured: `--probe 2` measures them"))
    else:
        at_a_time = (
            f"with {rate['concurrent_groups']} groups at a time"
            if rate["concurrent_groups"] > 1
            else "with one group at a time"
        )
        hours = f"{found['hours']:,.3g} for the missing rows, {found['hours_in_all']:,.3g} in all"
        lines += [
            (
                "seconds a row",
                f"{rate['seconds']:.3g} {at_a_time if rate['on_gpu'] else 'of one worker'} on {rate['device']}",
            ),
            ("measured by", rate["basis"]),
            (f"{found['hours_of']}-hours", hours),
        ]
    if found["money"] is not None:
        lines.append(("money", f"{found['money']:,.2f} for the missing rows"))

    weights, sums, matrix = (_amount(fit[key]) for key in ("bytes", "statistics_bytes", "matrix_bytes"))
    text = f"{weights} of disk for datamodels of the test examples, {sums} for sums"
    text += f"; {matrix} of memory for a matrix and up to 2 GB beside it" if fit["matrix_bytes"] else ""
    text += f"; `eval --curve` takes {_amount(fit['curve_bytes'])} of disk meanwhile" if fit["curve_bytes"] else ""
    text += f"; the last one took {duration(fit['seconds'])}" if fit["seconds"] is not None else ""
    lines.append(("fit", text))

    if law is None:
        lines.append(("LDS", "not known: run `datamodels eval CONFIG --curve` once some rows are done"))
    else:
        age = "" if law["current"] else ", of fewer rows or other options"
        text = f"{law['lds']:.3f} expected, from the curve of up to {law['measured_to']:,} models{age}"
        lines.append(("LDS", text))
    return "\n".join([*(f"{name:14} {value}" for name, value in lines), *_budget(found)])


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
        basis = rate["basis"] if rate else "not measured: `--probe 2` measures it"
        lines.append(f"{one['alpha']:>6g} {seconds:>8} {models:>10} {lds:>6}  {basis}")
    lines.append("The budget pays for training alone: fits, evaluation and the report are not in it.")
    return [*lines, "LDS is known where `eval --curve` has run at that alpha; each is for masks of its own alpha."]


def _amount(size: int) -> str:
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"
