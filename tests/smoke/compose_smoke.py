"""The composed service, asked as a user would: build, up, healthy, ask, restart, ask again, down.

    python tests/smoke/compose_smoke.py [--keep-volume]

Needs a Docker engine with compose and the project's environment (the images are drawn by
`cohort.synthetic`). Whatever happens, what it started is taken down; the demo's volume too, unless
it is to be kept for the next run. A compose project and a port of its own leave a running service
alone.
"""

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from cohort.rows import LesionImage
from cohort.synthetic import synthetic_source

PROJECT = Path(__file__).resolve().parents[2]
COMPOSE = ("docker", "compose", "-p", "slimp-smoke")
BUILD_S = 1800
# The demo's training is within.
UP_S = 1800
HEALTHY_S = 120
RESTART_S = 90
ANSWER_S = 60
NUM_IMAGES = 8
# A patient that the demo's cohort does not hold.
SEED = 77
# Of shares, risks and similarities; 1e-6 in fp32, more in the lower precisions.
TOLERANCE = 0.01

# Since the service last started.
requests_sent = 0

Answers = dict[str, Any]
Part = tuple[str, bytes | str]


def run(*command: str, timeout_s: float, quiet: bool = False) -> str:
    """Run a command in the project's root; its output is returned where it is quiet, else shown."""
    say(" ".join(command))
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env=os.environ | {"SLIMP_PORT": str(PORT)},
        stdout=subprocess.PIPE if quiet else None,
        text=True,
        timeout=timeout_s,
        check=True,
    )
    return (done.stdout or "").strip()


def compose(*arguments: str, timeout_s: float = 120, quiet: bool = False) -> str:
    return run(*COMPOSE, *arguments, timeout_s=timeout_s, quiet=quiet)


def say(text: str) -> None:
    print(f"smoke: {text}", flush=True)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


PORT = free_port()
ADDRESS = f"http://127.0.0.1:{PORT}"


def wait_until_healthy(timeout_s: float) -> None:
    """Return when the engine calls the service healthy."""
    container = compose("ps", "-q", "slimp", quiet=True)
    deadline = time.monotonic() + timeout_s
    inspect = ("docker", "inspect", "--format", "{{.State.Health.Status}}", container)
    while (status := run(*inspect, timeout_s=30, quiet=True)) != "healthy":
        if time.monotonic() > deadline:
            raise SystemExit(f"smoke: not healthy after {timeout_s:.0f} s, but {status}")
        time.sleep(2)


def form(parts: list[Part]) -> tuple[bytes, str]:
    """Return a multipart body and its content type; a part of bytes is a file."""
    boundary = uuid.uuid4().hex
    body = b""
    for name, content in parts:
        header = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'
        if isinstance(content, bytes):
            header += '; filename="lesion.png"\r\nContent-Type: image/png'
        data = content.encode() if isinstance(content, str) else content
        body += header.encode() + b"\r\n\r\n" + data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def post(path: str, parts: list[Part]) -> tuple[int, Answers]:
    """Return the status and the answer, without what names the request."""
    global requests_sent
    requests_sent += 1
    body, content_type = form(parts)
    request = urllib.request.Request(ADDRESS + path, body, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as response:
            status, raw = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, raw = error.code, error.read()
    answer = json.loads(raw)
    del answer["request_id"]
    return status, answer


def one_patient() -> list[LesionImage]:
    """Return pictures of different lesions of one synthetic patient."""
    first: dict[str, LesionImage] = {}
    for row in synthetic_source(patients=1, seed=SEED).rows():
        if isinstance(row, LesionImage):
            first.setdefault(row.lesion_id, row)
    return list(islice(first.values(), NUM_IMAGES))


def ask(lesions: list[LesionImage]) -> Answers:
    """Ask each endpoint and check what any sound answer holds."""
    answers: Answers = {}
    for position, lesion in enumerate(lesions[:3]):
        record = json.dumps(dict(lesion.record))
        answers[f"classify-{position}"] = post("/classify", [("image", lesion.image)])
        answers[f"classify-{position}-metadata"] = post(
            "/classify", [("image", lesion.image), ("metadata", record)]
        )
    answers["similar"] = post("/similar", [("image", lesions[0].image), ("k", "5")])
    answers["risk"] = post("/risk", [("images", lesion.image) for lesion in lesions])
    wrong = post("/classify", [("image", b"this is a text file, not a picture")])
    check(wrong[0] in (400, 415) and "code" in wrong[1], "a text file is refused", wrong)
    check_answers(answers, len(lesions))
    return answers


def check_answers(answers: Answers, num_lesions: int) -> None:
    for name, (status, answer) in answers.items():
        check(status == 200, f"{name} answers 200", answer)
    classified = [a for name, (_, a) in answers.items() if name.startswith("classify")]
    for answer in (a for a in classified if a["status"] == "answered"):
        check(abs(sum(answer["probabilities"].values()) - 1) < 1e-4, "shares sum to 1", answer)
    check(any(a["status"] == "answered" for a in classified), "a lesion is judged", classified)
    sources = {m["source"] for a in classified for m in a["metadata"].values()}
    check({"given", "extrapolated"} <= sources, "metadata is given and extrapolated", sources)
    check(len(answers["similar"][1]["hits"]) == 5, "five lesions are similar", answers["similar"])
    risk = answers["risk"][1]
    check(len(risk["lesions"]) == num_lesions, "every lesion has its risk", risk)
    check(risk["patient"]["context"] == "enough", "the lesions are each other's context", risk)


def differences(before: Any, after: Any, at: str = "") -> Iterator[str]:
    """Name each place where two answers say something else.

    How many pictures one run takes is measured anew at every start, and a run of more sums in
    another order: numbers agree to what the variant's precision carries, not to the last bit.
    """
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        for key in before:
            yield from differences(before[key], after[key], f"{at}.{key}")
    elif isinstance(before, list | tuple) and len(before) == len(after):
        for position, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f"{at}[{position}]")
    elif isinstance(before, float) and isinstance(after, float):
        if not math.isclose(before, after, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield f"{at}: {before} then {after}"
    elif before != after:
        yield f"{at}: {before} then {after}"


def check(holds: bool, what: str, seen: object) -> None:
    if not holds:
        raise SystemExit(f"smoke: expected that {what}, got {seen}")


def watch_connections() -> None:
    """Check that the service has asked for no name and opened no connection since it started.

    The kernel counts both for the container from its first moment. Its own health check is the one
    that opens connections, all to the service: each is counted as opened and as accepted. What was
    accepted beside those are the requests of this test; an attempt to reach anybody else would be
    opened and not accepted.
    """
    global requests_sent
    for _ in range(5):
        seen = network_counts()
        check(seen["Udp OutDatagrams"] == seen["Udp6OutDatagrams"] == 0, "no name asked for", seen)
        outgoing = seen["Tcp ActiveOpens"] - (seen["Tcp PassiveOpens"] - requests_sent)
        if outgoing == 0:
            break
        # A health check was under way.
        time.sleep(1)
    check(outgoing == 0, "no connection was opened to anybody else", (outgoing, seen))
    say(f"{seen['Tcp ActiveOpens']} connections opened, all by the health check; no datagram sent")
    requests_sent = 0


def network_counts() -> dict[str, int]:
    """Return what the kernel has counted in the service's network since the container started."""
    code = "print(open('/proc/net/snmp').read(), open('/proc/net/snmp6').read())"
    lines = compose("exec", "-T", "slimp", "python", "-c", code, quiet=True).splitlines()
    counts = {line.split()[0]: int(line.split()[1]) for line in lines if len(line.split()) == 2}
    for kind in ("Tcp:", "Udp:"):
        names, values = (line.split() for line in lines if line.strip().startswith(kind))
        counts |= {f"{kind[:-1]} {n}": int(v) for n, v in zip(names[1:], values[1:], strict=True)}
    return counts


def check_confinement() -> None:
    """Check that the service cannot write its own files, and is nobody special."""
    code = (
        "import os, pathlib\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "capabilities = next(l.split()[1] for l in status.splitlines() if l.startswith('CapEff'))\n"
        "try:\n    pathlib.Path('/opt/slimp/x').write_text('x')\n    read_only = False\n"
        "except OSError:\n    read_only = True\n"
        "print(os.getuid(), int(capabilities, 16), read_only)"
    )
    said = compose("exec", "-T", "slimp", "python", "-c", code, quiet=True)
    check(said == "10001 0 True", "it is user 10001, without rights, on a read-only system", said)


def refuse_to_be_open() -> None:
    """Check that a service published to other machines does not start without keys."""
    command = ("run", "--rm", "--no-deps", "-e", "SLIMP_PUBLISH=0.0.0.0", "slimp")
    done = subprocess.run(
        [*COMPOSE, *command],
        cwd=PROJECT,
        env=os.environ | {"SLIMP_PORT": str(PORT)},
        capture_output=True,
        text=True,
        timeout=UP_S,
        check=False,
    )
    check(done.returncode == 1 and "SLIMP_AUTH" in done.stderr, "it refuses", done)


def smoke() -> None:
    """Go through the whole life of the composed service."""
    compose("build", timeout_s=BUILD_S)
    compose("up", "-d", timeout_s=UP_S)
    wait_until_healthy(HEALTHY_S)
    torch_free = "import sys, service.app; sys.exit('torch' in sys.modules)"
    compose("exec", "-T", "slimp", "python", "-c", torch_free)
    check_confinement()
    lesions = one_patient()
    before = ask(lesions)
    watch_connections()
    refuse_to_be_open()
    compose("restart", "slimp")
    wait_until_healthy(RESTART_S)
    after = ask(lesions)
    watch_connections()
    changed = list(differences(before, after))
    check(not changed, "answers outlive a restart", changed)
    say(f"{len(before)} requests answered alike before and after a restart")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep-volume", action="store_true", help="leave the demo for next time")
    keep_volume = parser.parse_args().keep_volume
    try:
        smoke()
    except BaseException:
        subprocess.run([*COMPOSE, "logs", "--tail", "40"], cwd=PROJECT, timeout=60, check=False)
        raise
    finally:
        compose("down", *([] if keep_volume else ["-v"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
