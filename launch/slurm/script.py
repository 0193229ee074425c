"""The scripts that are handed to sbatch, and what else lies in a plan's folder.

A script is HEAD, with the #SBATCH lines and the check that the node sees the store, then TRAIN, FIT, EVAL or ASK.
`submit --dry-run` prints them as they are submitted. Whatever comes from a user is quoted, for bash and for sbatch.
"""

import os
import re
import shlex
import string
import sys
from pathlib import Path

import yaml

from datamodels.lasso import split_and_output
from datamodels.launch.slurm.config import After, Slurm, slurm_from
from datamodels.launch.slurm.tasks import GATE, Plan
from datamodels.train import Setting, UserError, expanded, from_dict
from datamodels.train.store import Layout

CLUSTER = "slurm.yaml"
SETTING = "setting.yaml"

HEAD = """\
#!/bin/bash
@{options}

plan=@{plan}
@{path}
if ! grep -qsF '"id": "@{store}"' @{manifest}; then
  echo "error: $(hostname) does not find the store of $plan, @{store}: it is not visible here, or another one now" >&2
  exit 2
fi
@{setup}
"""

TRAIN = """\
# Trains the rows that are missing in one line of @{list}. Done rows stay done,
# whatever happens to this job and however often it runs.
task=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$plan"/@{list})
@{datamodels} train @{setting} --rows "$task" @{workers} &
worker=$!
# SLURM signals the time limit (USR1) and preemption (TERM) to this shell, whose traps only run while it waits.
heard='' ended=''
trap 'heard=yes; kill -TERM "$worker" 2>/dev/null' USR1
trap 'heard=yes ended=yes; kill -TERM "$worker" 2>/dev/null' TERM
wait "$worker"; code=$?
while [ -n "$heard" ]; do heard=''; wait "$worker"; code=$?; done
# 75: rows are left; above 128: the worker was killed. After TERM it is for SLURM to say whether the job comes back.
if [ -z "$ended" ] && { [ "$code" -eq 75 ] || [ "$code" -gt 128 ]; }; then
  [ "${SLURM_RESTART_COUNT:-0}" -ge @{requeues} ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""

FIT = """\
# Fits the targets in one line of @{list}; the last one joins the pieces.
task=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$plan"/@{list})
export OMP_NUM_THREADS=@{cpus} NUMBA_NUM_THREADS=@{cpus}
exec @{datamodels} fit @{setting} --split @{split} --targets "$task"
"""

EVAL = """\
# Judges the datamodels on the evaluation rows, if there are any, and writes the report.
export OMP_NUM_THREADS=@{cpus} NUMBA_NUM_THREADS=@{cpus}
result=@{result}
if [ @{eval_models} -gt 0 ]; then
  @{datamodels} eval @{setting} --split @{split} --json > "$result.$$" || exit
  mv "$result.$$" "$result" || exit
fi
exec @{datamodels} report @{setting} --split @{split}
"""

ASK = """\
# The gate: asks the store what is left to do once the jobs before it have ended, well or not, and submits that.
@{datamodels} submit @{setting} --slurm "$plan"/slurm.yaml --gate "$plan"
code=$?
# 75: SLURM did not answer or took no more jobs, or someone else submits. The gate comes back then, a bounded number of
# times, after 0, 1, 2, ... and at most 10 minutes.
again=${SLURM_RESTART_COUNT:-0}
if [ "$code" -eq 75 ] && [ "$again" -lt @{requeues} ]; then
  minutes=$((again < 10 ? again : 10))
  for pause in $((60 * minutes)) 30 120; do sleep "$pause"; scontrol requeue "$SLURM_JOB_ID" && break; done
fi
exit "$code"
"""


GPU_OPTIONS = ("--gres=", "--gres ", "--gpus=", "--gpus ", "--gpus-per-", "-G")
"""Options of a user's that ask for GPUs instead of ours: SLURM gives what both ask for, or refuses them together."""


class _Bash(string.Template):
    """Text with @{name} where something is put in; $ is bash's own."""

    delimiter = "@"


def files(plan: Plan, path: Path, layout: Layout) -> dict[str, str]:
    """All files of a plan besides plan.json, by name. Raises UserError for a root that cannot be written in a script.

    path: the folder that they will lie in; layout: with an absolute root.
    """
    require_path(layout)
    setting, cluster = from_dict(plan.setting), slurm_from(plan.cluster)
    gpus = cluster.gpus_for(setting)
    workers = cluster.workers if gpus else cluster.workers_for(setting)
    packages = shlex.quote(str(Path(sys.modules["datamodels"].__path__[0]).parent))
    name, output = split_and_output(plan.split)
    values = {
        "plan": shlex.quote(str(path)),
        "store": plan.store,
        "manifest": shlex.quote(str(layout.manifest)),
        "setup": "\n".join(cluster.setup),
        "setting": f'"$plan"/{SETTING} --root {shlex.quote(str(layout.root))}',
        "split": name if output == "margins" else f"{name} --output {output}",
        "workers": f"--workers {workers}" if workers else "",
        "requeues": cluster.requeues,
        "cpus": cluster.after.cpus,
        "eval_models": setting.eval_models,
        "result": shlex.quote(str(eval_path(layout, plan.split))),
    }

    def text(stage: str, body: str, array: int | None = None, **more: str) -> str:
        options = _options(plan, path, layout, stage, array)
        # A gate needs SLURM's commands, which a container lacks.
        python = cluster.python if stage != "gate" else None
        # -P: no module of the folder that `submit` was called in takes the place of one of ours.
        more["datamodels"] = f"{python or shlex.quote(sys.executable)} -P -m datamodels"
        # Another Python has packages of its own.
        more["path"] = "" if python else f"export PYTHONPATH={packages}${{PYTHONPATH:+:$PYTHONPATH}}"
        return _Bash(HEAD + body).substitute(values, options="\n".join(options), **more)

    body = {"train": TRAIN, "fit": FIT, "eval": EVAL}[plan.stage]
    made = {SETTING: _yaml(plan.setting), CLUSTER: _yaml(plan.cluster), GATE: text("gate", ASK)}
    for chunk, tasks in enumerate(plan.chunks):
        made[plan.script(chunk)] = text(plan.stage, body, len(tasks), list=plan.list_file(chunk))
        made[plan.list_file(chunk)] = "".join(f"{start}:{stop}\n" for start, stop in tasks)
    return made


def _options(plan: Plan, path: Path, layout: Layout, stage: str, array: int | None) -> list[str]:
    """The #SBATCH lines of a stage, as an array of so many elements, or as one job."""
    cluster = slurm_from(plan.cluster)
    job: Slurm | After = cluster if stage == "train" else cluster.after
    name = cluster.name or f"datamodels-{layout.dataset}-{layout.tag}"
    log = str(path / "logs").replace("%", "%%") + f"/{stage}_{'%j' if array is None else '%A_%a'}.log"
    asked = {
        "job-name": f"{name}-{stage}",
        "output": log,
        "open-mode": "append",
        "requeue": None,
        "propagate": "NONE",  # a login node's limits, as on CPU seconds, are not for jobs
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": str(job.cpus),
        "time": job.time,
    }
    optional = {"mem": job.memory, "partition": job.partition or cluster.partition, "account": cluster.account}
    optional["clusters"] = cluster.clusters
    asked |= {key: value for key, value in optional.items() if value}
    gpus = cluster.gpus_for(from_dict(plan.setting)) if stage == "train" else 0
    if gpus and not any(line.startswith(GPU_OPTIONS) for line in cluster.extra):
        asked["gres"] = f"gpu:{gpus}"
    if array is not None:
        _, throttle = side_by_side(len(plan.chunks), cluster.at_once)
        asked["array"] = f"0-{array - 1}" + (f"%{throttle}" if throttle else "")
    if stage == "train":
        asked["signal"] = f"B:USR1@{cluster.signal}"
    lines = [f"--{key}" if value is None else f"--{key}={sbatch_quoted(value)}" for key, value in asked.items()]
    return [f"#SBATCH {line}" for line in [*lines, *job.extra]]


def sbatch_quoted(text: str) -> str:
    """A value as sbatch reads it from an #SBATCH line."""
    if re.fullmatch(r"[\w./:=@%+,-]+", text, re.ASCII):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def side_by_side(arrays: int, at_once: int | None) -> tuple[int, int | None]:
    """How many of a plan's arrays may run side by side, and the throttle of each, to run `at_once` tasks in all."""
    width = min(arrays, at_once or arrays)
    return width, at_once // width if at_once else None


def portable(setting: Setting) -> dict[str, object]:
    """The resolved setting with absolute paths, so that it means the same in any folder."""

    def absolute(path: str, key: str) -> str:
        return os.path.abspath(expanded(path, key))

    content = setting.to_dict()
    for key in ("root", "packed"):
        content["data"][key] = absolute(content["data"][key], f"data.{key}")
    if setting.data.python:
        content["data"]["python"] = absolute(setting.data.python, "data.python")
    if setting.recipe.custom_network:
        content["recipe"]["network"] = absolute(setting.recipe.network, "recipe.network")
    for key in ("trainer", "groups", *(["mask"] if setting.own_masks else [])):
        if path := content[key]:
            content[key] = absolute(path, key)
    return content


def _yaml(content: object) -> str:
    return yaml.safe_dump(content, sort_keys=False)


def require_path(layout: Layout) -> None:
    """Raises UserError for a root that cannot be written in a script."""
    if not str(layout.folder).isprintable() or "\\" in str(layout.folder):
        raise UserError(
            f"--root is {str(layout.root)!r}: SLURM takes no path with a backslash, a line break, or characters that "
            "this locale lacks"
        )


def eval_path(layout: Layout, split: str) -> Path:
    """Where the result of a submitted `eval` lies."""
    return layout.folder / f"eval_{split}_{layout.tag}.json"
