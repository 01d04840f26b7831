"""A Ray cluster on several hosts of one machine, each with a network, a name, processes and a /tmp
of its own.

As root a host is a set of namespaces joined by a bridge, so that nothing but the network and the
directories it is told to share reaches another; without root, hosts are nodes that share all but
their processes.
"""

import contextlib
import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from checkout import ROOT
from processes import wait_while_it_goes_on

ISOLATED = os.geteuid() == 0 and Path("/usr/sbin/ip").exists()
_PORT, _DASHBOARD = 6379, 8265
_GIVEN_UP, _STARTS = "The current node timed out during startup", 4
_COUNTER = itertools.count()

# What of /tmp the hosts keep (KEPT, separated by colons) is put back below their private one.
_ENTER = """
set -e
mount --make-rprivate /
mkdir -p /run/kept && mount -t tmpfs tmpfs /run/kept
IFS=:
number=0
for path in $KEPT; do
    mkdir /run/kept/$number; mount --bind "$path" /run/kept/$number
    number=$((number + 1))
done
mount -t tmpfs tmpfs /tmp
mount -t tmpfs -o size=1g tmpfs /dev/shm
number=0
for path in $KEPT; do
    mkdir -p "$path"; mount --bind /run/kept/$number "$path"
    number=$((number + 1))
done
unset IFS
mount --bind "$HOSTS_FILE" /etc/hosts
hostname "$HOST_NAME"
cd "$HOST_DIRECTORY"
exec "$@"
"""


def free_port() -> int:
    """A port of the loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
    return found


class Hosts:
    """A head without CPUs and hosts of one CPU each.

    Attributes: address: of the dashboard; shared: a directory that all see.

    gateway: the address under which the hosts reach this process.
    """

    def __init__(
        self, folder: Path, environment: dict[str, str], autoscaling: Path | None = None
    ) -> None:
        self._number = _free_number()
        self._bridge = f"sp{self._number}"
        self.gateway = f"10.77.{self._number}.254" if ISOLATED else "127.0.0.1"
        self.shared = folder / "shared"
        self.shared.mkdir(parents=True)
        self.token_file = self.shared / "token"
        self.token_file.write_text(secrets.token_hex(32))
        self.token_file.chmod(0o600)
        self._hosts_file = self.shared / "hosts"
        self._folder = folder
        names = "".join(f"{self.ip(i)} host-{i}\n" for i in range(16))
        self._hosts_file.write_text(f"127.0.0.1 localhost\n{names}")
        self.environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST_"))
        }
        self.environment |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            "RAY_worker_niceness": os.environ["RAY_worker_niceness"],  # noqa: SIM112
            # What nobody reads; a process of its own each, or a part of every process.
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_METRICS_ENABLED": "0",
            "RAY_enable_metrics_collection": "0",
            # A dead host is given up after seconds instead of half a minute.
            "RAY_health_check_initial_delay_ms": "2000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "4",
            "SPARSEPO_CACHE": "/tmp/cache" if ISOLATED else str(folder / "cache"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            **{key: value.replace("GATEWAY", self.gateway) for key, value in environment.items()},
        }
        self._head_options: list[str] = []
        if autoscaling is not None:
            (self.shared / "autoscaling.json").write_text(autoscaling.read_text())
            self._head_options = [f"--autoscaling-config={self.shared}/autoscaling.json"]
        self._port = _DASHBOARD if ISOLATED else free_port()
        self._gcs = _PORT if ISOLATED else free_port()
        self.address = f"http://{self.ip(0)}:{self._port}"
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._options: dict[int, tuple[str, ...]] = {}
        self._starts: Counter[int] = Counter()

    def start(self, workers: int) -> None:
        if ISOLATED:
            _ip(f"link add {self._bridge} type bridge")
            _ip(f"addr add {self.gateway}/24 dev {self._bridge}")
            _ip(f"link set {self._bridge} up")
        self._start(
            0,
            "--head",
            f"--port={self._gcs}",
            f"--dashboard-port={self._port}",
            f"--dashboard-host={self.ip(0)}",
            "--num-cpus=0",
            *self._head_options,
        )
        self._wait_for_dashboard()
        self._wait_for_hosts()
        self.complete(workers)

    def ip(self, number: int) -> str:
        return f"10.77.{self._number}.{number + 1}" if ISOLATED else "127.0.0.1"

    def start_host(self, number: int) -> None:
        self._start(number, f"--address={self.ip(0)}:{self._gcs}", "--num-cpus=1")

    def kill_host(self, number: int) -> None:
        """Every process of the host at once, as when it loses its power."""
        process = self._processes.pop(number)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._remove_network(number)

    def cut_off(self, number: int) -> None:
        """Its network is gone, its processes are not (without isolation they are)."""
        if ISOLATED:
            _ip(f"link set {self._bridge}v{number} down")
        else:
            os.killpg(self._processes[number].pid, signal.SIGKILL)

    def kinds(self) -> list[str]:
        """For every node that the head counts as alive, its kind in an autoscaler's terms."""
        return [str(node.get("nodeTypeName", "")) for node in self._nodes()]

    def complete(self, workers: int) -> None:
        """Start hosts in place of those that went, until the head counts so many and no other."""
        while len(self._processes) <= workers:
            self.start_host(max(self._processes) + 1)
        self._wait_for_hosts()

    def host_of(self, pid: int) -> int | None:
        """The host a process runs in; None without isolation, or if it has ended."""
        with contextlib.suppress(OSError):
            network = Path(f"/proc/{pid}/ns/net").readlink()
            for number, process in self._processes.items():
                if ISOLATED and Path(f"/proc/{process.pid}/ns/net").readlink() == network:
                    return number
        return None

    def command(self, number: int, *arguments: str) -> list[str]:
        """A command line that runs in a started host."""
        if not ISOLATED:
            return list(arguments)
        inside = subprocess.run(
            ["pgrep", "-P", str(self._processes[number].pid)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()[0]
        return [
            "nsenter",
            "--target",
            inside,
            "--net",
            "--mount",
            "--uts",
            "--pid",
            "--",
            *arguments,
        ]

    def stop(self) -> None:
        for number in list(self._processes):
            self.kill_host(number)
        if ISOLATED:
            subprocess.run(["ip", "link", "del", self._bridge], capture_output=True)

    def _start(self, number: int, *options: str) -> None:
        self._options[number] = options
        self._starts[number] += 1
        command = [
            sys.executable, str(Path(__file__).with_name("start_warm.py")),
            "--block", "--disable-usage-stats",
            f"--node-ip-address={self.ip(number)}",
            f"--object-store-memory={128 * 2**20}", "--num-gpus=0",
            "--include-log-monitor=false", *options,
        ]  # fmt: skip
        environment = {
            **self.environment,
            "KEPT": self._kept(),
            "HOSTS_FILE": str(self._hosts_file),
        }
        environment |= {"HOST_NAME": f"host-{number}", "HOST_DIRECTORY": str(ROOT)}
        if ISOLATED:
            self._add_network(number)
            namespace = f"{self._bridge}-{number}"
            own = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
            enter = ["unshare", *own, "bash", "-c", _ENTER, "enter"]
            command = ["ip", "netns", "exec", namespace, *enter, *command]
        else:
            command += (
                ["--dashboard-agent-listen-port=0", f"--temp-dir={self._folder}/ray"]
                if number == 0
                else ["--dashboard-agent-listen-port=0"]
            )
        with (self._folder / f"host-{number}.log").open("ab") as log:
            self._processes[number] = subprocess.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _kept(self) -> str:
        """The shared directory, and checkout and environment where they lie in /tmp too; outer
        ones first.
        """
        kept = {self.shared, ROOT, Path(sys.prefix), Path(sys.base_prefix)}
        return ":".join(sorted(str(path) for path in kept if path.is_relative_to("/tmp")))

    def _add_network(self, number: int) -> None:
        namespace, cable = f"{self._bridge}-{number}", f"{self._bridge}v{number}"
        _ip(f"netns add {namespace}")
        _ip(f"link add {cable} type veth peer name eth0 netns {namespace}")
        _ip(f"link set {cable} master {self._bridge} up")
        for line in (
            f"addr add {self.ip(number)}/24 dev eth0",
            "link set eth0 up",
            "link set lo up",
        ):
            _ip(f"-n {namespace} {line}")

    def _remove_network(self, number: int) -> None:
        if ISOLATED:
            subprocess.run(
                ["ip", "link", "del", f"{self._bridge}v{number}"], capture_output=True
            )  # or it outlives the namespace for a while
            _ip(f"netns del {self._bridge}-{number}")

    def _wait_for_hosts(self) -> None:
        """Until head and hosts are in the cluster, and none that has gone: a driver finds them and
        counts on no other from then on.
        """
        wanted = sorted(self.ip(number) for number in self._processes)
        count = len(wanted)  # hosts that are nodes of one machine have its address

        def is_complete() -> bool:
            alive = self._alive()
            return alive == wanted if ISOLATED else len(alive) == count

        wait_while_it_goes_on(is_complete, self._alive_and_well, 0.3)

    def _alive_and_well(self) -> tuple[list[str], int]:
        """The same, and how often a host was started; starts one again that has ended."""
        for number, process in list(self._processes.items()):
            if process.poll() is not None:
                self._start_again(number)
        return self._alive(), self._starts.total()

    def _alive(self) -> list[str]:
        """Addresses of the nodes that the head counts as alive."""
        with contextlib.suppress(OSError):  # a head that starts again does not answer
            return sorted(str(node.get("nodeManagerAddress")) for node in self._nodes())
        return []

    def _nodes(self) -> list[dict[str, object]]:
        """What the head says of every node that it counts as alive."""
        nodes = json.loads(self._answer("/nodes?view=summary"))["data"]["summary"]
        return [node["raylet"] for node in nodes if node["raylet"].get("state") == "ALIVE"]

    def _wait_for_dashboard(self) -> None:
        def answers() -> bool:
            if self._processes[0].poll() is not None:
                self._start_again(0)
            with contextlib.suppress(OSError):
                self._answer("/api/jobs/")
                return True
            return False

        logs = self._folder / "host-0.log"
        wait_while_it_goes_on(answers, lambda: logs.stat().st_size, 0.3)

    def _start_again(self, number: int) -> None:
        """A host that Ray gave up: it waits half a minute for the node's first word, no longer."""
        said = self._log(number)
        assert _GIVEN_UP in said and self._starts[number] < _STARTS, said
        self.kill_host(number)
        self._start(number, *self._options[number])

    def _answer(self, path: str) -> bytes:
        request = urllib.request.Request(
            f"{self.address}{path}",
            headers={"Authorization": f"Bearer {self.token_file.read_text()}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def _log(self, number: int) -> str:
        return (self._folder / f"host-{number}.log").read_text()[-3000:]


@contextlib.contextmanager
def hosts(
    folder: Path,
    workers: int,
    environment: dict[str, str] | None = None,
    autoscaling: Path | None = None,
) -> Iterator[Hosts]:
    """Started hosts, or a head alone whose machines come by an autoscaling configuration.

    GATEWAY in a variable of their environment is the address under which they reach this process.
    """
    found = Hosts(folder, environment or {}, autoscaling)
    try:
        found.start(workers)
        yield found
    finally:
        found.stop()


def _free_number() -> int:
    """Of a network that no other test has, nor one that was killed has left behind."""
    first = os.getpid() * 7 + next(_COUNTER)
    numbers = ((first + further) % 250 for further in range(250))
    return next(n for n in numbers if not Path(f"/sys/class/net/sp{n}").exists())


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True)
