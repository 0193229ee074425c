"""A private SLURM on this machine, for tests: loopback only, no accounting, made-up GPUs, stopped by its own pids."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")

_CONF = """\
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=5
SlurmctldTimeout=5
SlurmdTimeout=5
MaxArraySize={max_array}
GresTypes=gpu
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000 Gres=gpu:2
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=10
PartitionName=vip Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Why there can be no SLURM here, or None."""
    if absent := [program for program in PROGRAMS if not shutil.which(program, path=_path())]:
        return f"no {', '.join(absent)}: apt-get install slurmctld slurmd slurm-client"
    if os.geteuid() != 0:
        return "a SLURM of one's own is started as root"
    return None


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Cluster:
    """Two nodes of two CPUs and two made-up GPUs each."""

    NODES = ("n1", "n2")

    def __init__(self, folder: Path, max_array: int) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}
        for name in ("state", *(f"spool.{node}" for node in self.NODES)):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o755)
        (folder / "slurm.conf").write_text(_CONF.format(folder=folder, ports=_free_ports(3), max_array=max_array))
        self._make_gpus()
        self.guard = subprocess.Popen([sys.executable, __file__, str(folder)], stdin=subprocess.PIPE)
        """Ends everything, jobs included, once its input is closed: when the process that started the cluster ends."""
        self.start("slurmctld")
        for node in self.NODES:
            self.start(node)
        self.wait_until_idle()

    def _make_gpus(self) -> None:
        """Device files that behave as /dev/null; SLURM takes the number from their names."""
        files = [self.folder / f"nvidia{number}" for number in range(2)]
        for file in files:
            with contextlib.suppress(PermissionError):
                os.mknod(file, 0o666 | 0o020000, os.makedev(1, 3))
            file.touch()
        lines = [f"NodeName={node} Name=gpu File={self.folder}/nvidia[0-1] AutoDetect=off" for node in self.NODES]
        (self.folder / "gres.conf").write_text("\n".join(lines) + "\n")

    def start(self, name: str) -> None:
        """Start `slurmctld`, or the slurmd of a node."""
        program = ["slurmctld"] if name == "slurmctld" else ["slurmd", "-N", name]
        with open(self.folder / "start.log", "a") as log:
            subprocess.run(program, env=self.environment, check=True, stdout=log, stderr=log, timeout=30)

    def pid(self, name: str) -> int:
        file = self.folder / ("slurmctld.pid" if name == "slurmctld" else f"slurmd.{name}.pid")
        return int(file.read_text())

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """End `slurmctld`, or the slurmd of a node, and wait until it has ended."""
        pid = self.pid(name)
        os.kill(pid, number)
        self.wait(lambda: alive(pid), False)

    def restart_nodes(self) -> None:
        """Restart every slurmd once no job runs, and take back every node that was drained.

        A slurmd refuses a number that it has run until slurmctld ends that job ("Duplicate jobid", and the node is
        drained). A slurmctld that was killed never ends the jobs that it forgot, and gives their numbers again.
        """
        self.wait(self.processes, [])
        for node in self.NODES:
            self.kill(node)
            self.start(node)
            self.ask("scontrol", "update", f"nodename={node}", "state=resume")
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        self.wait(lambda: self.ask("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").split(), [*self.NODES])

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout

    def wait(self, found: Callable[[], object], expected: object = True, seconds: float = 300.0) -> None:
        """Until `found()` is what is expected."""
        deadline = time.monotonic() + seconds
        while (last := found()) != expected:
            assert time.monotonic() < deadline, f"{last!r} after {seconds:g} s, expected {expected!r}:\n{self.state()}"
            time.sleep(0.2)

    def state(self) -> str:
        return self.ask("squeue", "-t", "all", "-r", "-o", "%i %T %N %r %o") + self.ask("sinfo", "-N", "-l")

    def processes(self) -> list[int]:
        """Processes of jobs of this cluster, whoever their parent is by now."""
        return _processes(self.folder)


def _processes(folder: Path) -> list[int]:
    mark = f"SLURM_CONF={folder / 'slurm.conf'}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (process / "environ").read_bytes().split(b"\0")
            is_step = (process / "comm").read_text().strip() == "slurmstepd"
            if mark in environment and (is_step or any(entry[:13] == b"SLURM_JOB_ID=" for entry in environment)):
                found.append(int(process.name))
    return found


def _end(folder: Path) -> None:
    """End the daemons by their pids, and the jobs, which would outlive them."""
    for file in folder.glob("*.pid"):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(file.read_text()), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (left := _processes(folder)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def running(folder: Path, max_array: int) -> Iterator[Cluster]:
    """A cluster that is stopped at the end."""
    cluster = Cluster(folder, max_array)
    try:
        yield cluster
    finally:
        cluster.guard.communicate()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()  # ends when the process that started the cluster does
    _end(Path(sys.argv[1]))
