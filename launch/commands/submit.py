"""The command submit."""

import os
from dataclasses import replace
from pathlib import Path

from datamodels.launch.commands.store import create, data_set_of
from datamodels.launch.commands.train import retry
from datamodels.launch.progress import notice
from datamodels.launch.request import Request
from datamodels.train import UserError


def submit(request: Request) -> int:
    """The same as `run` on SLURM: one stage after the other, each as an array with a gate behind it."""
    from datamodels.lasso import preflight_check
    from datamodels.launch.slurm import cancel, check_submittable, dry_run, run_gate, slurm_from
    from datamodels.launch.slurm import submit as submit_missing

    options = request.options
    request = replace(request, root=Path(os.path.abspath(request.root)))  # as the jobs will know it
    layout, cluster = request.layout, slurm_from(options["slurm"])
    if not options["gate"]:  # which goes by its plan alone
        chosen = cluster.clusters or os.environ.get("SBATCH_CLUSTERS") or os.environ.get("SLURM_CLUSTERS")
        cluster = replace(cluster, clusters=chosen)
    if options["dry_run"]:
        return dry_run(request, cluster)
    check_submittable(layout)
    if options["cancel"]:
        return cancel(layout)
    if options["gate"]:
        return run_gate(request.own_store(), layout, cluster, Path(options["gate"]))

    store = request.own_store() if layout.manifest.exists() else create(request, data_set_of(request.setting))
    try:
        preflight_check(store.setting, store.eras)
    except UserError as error:
        notice(f"the rows will be trained, but not fitted or evaluated: {error}")
    if options["retry_failed"]:
        retry(store, range(store.rows))
    return submit_missing(store, layout, cluster, request.split(store.arrays))
