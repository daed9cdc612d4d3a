"""What an answer, or a scorer that runs one after all, may try; docs/attacks.md is the list."""

import asyncio
import ctypes
import errno
import json
import os
import pickle
import platform
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from spanwise.envs.base import Reply, Turn
from spanwise.envs.math import scoring_process
from spanwise.envs.math.answer_grammar import EXPRESSIONS, LITERALS, NUMBERS, is_readable
from spanwise.envs.math.confinement import filter_program
from spanwise.envs.math.questions import Questions
from spanwise.envs.math.reasoning_gym import ReasoningGym, _dataset, _loaded, _score

pytestmark = pytest.mark.processes

EVALUATING = sorted(EXPRESSIONS.keys() | LITERALS | NUMBERS.keys())

PROGRAMS = [
    'exec("import reasoning_gym.games.countdown as c; '
    'c.CountdownDataset.score_answer = lambda s, a, e: 1.0")',
    "__import__('os').kill(__import__('os').getppid(), 9)",
    "__import__('sys')._getframe(1).f_locals['entry']['answer']",
    "entry['answer']",
    "entry[str(dir()[0])]",
    "oracle_answer",
    "answer",
    "self",
    "().__class__.__base__.__subclasses__()",
    "[c for c in ().__class__.__base__.__subclasses__()]",
    "(lambda: [])()",
    "''.join(['a'] * 3)",
    "f'{__import__(\"os\").environ}'",
    "'{0.__class__}'.format(1)",
    "print",
    "N",
    "S('__import__(\"os\").getpid()')",
    "Integral(x, x)",
    "Derivative(x, x)",
    "x.subs(x, 1)",
    "x.__class__",
    "[nan]",
    "nan",
    "NaN",
    "Infinity",
    "1e999",
    "24 # 1 2 3 4",
    "0x18",
    "1_0",
    "٢٤",  # Arabic-Indic digits
    "²⁴",
    "5!",
    ".5",
    "factorial(10**7)",
    "\N{FULLWIDTH LATIN SMALL LETTER E}xec('1')",
]

BOMBS = [
    "9**9**9",
    "9**9**9**9",
    "(9**9)**(9**9)",
    "9**(9**9)",
    "2**99999999999",
    "(" * 100_000 + "1" + ")" * 100_000,
    "[" * 100_000 + "]" * 100_000,
    "-" * 100_000 + "1",
    "9" * 1_000_000,
    "1+" * 50_000 + "1",
    "{" * 50_000,
]


def small(task: str, **options: Any) -> ReasoningGym:
    sizes = {"train_questions": 3, "dev_questions": 2, "test_questions": 2}
    return ReasoningGym(task=task, **(sizes | options))


def replied(env: ReasoningGym | Questions, answer: str) -> Reply:
    text = f"<answer>{answer}</answer> \\boxed{{{answer}}}"
    return asyncio.run(env.reply(env.tasks("train")[0], [Turn(text=text)]))


def of_mathematics(folder: Path, **options: Any) -> Questions:
    file = folder / "train.jsonl"
    rows = ({"question": f"q {n} ?", "answer": "34"} for n in range(2))
    file.write_text("\n".join(map(json.dumps, rows)))
    return Questions(train_file=file, num_held_out=0, **options)


@pytest.mark.slow
@pytest.mark.parametrize("task", EVALUATING)
def test_no_program_is_paid_or_left_out_and_the_next_answer_is_scored_as_before(task: str):
    env = small(task)
    right = env.tasks("train")[0].answers[0]
    for program in PROGRAMS:
        reply = replied(env, program)
        assert reply.failure is None, (program, reply.failure)
        assert reply.reward is not None and reply.reward < 0.1, (program, reply.reward)
        assert not reply.success
    assert replied(env, right).reward == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("task", ["countdown", "intermediate_integration", "n_queens"])
def test_a_bomb_is_malformed_or_wrong_but_never_left_out(task: str):
    env = small(task, deadline_s=2.0)
    for bomb in BOMBS:
        reply = replied(env, bomb)
        assert reply.failure is None, (bomb[:20], reply.failure)
        assert reply.reward is not None and reply.reward < 0.1 and not reply.success
    assert replied(env, env.tasks("train")[0].answers[0]).reward == 1.0


@pytest.mark.parametrize(
    ("task", "bomb"),
    [
        ("coin_flip", "1e99999999999"),  # Fraction computes the power
        ("intermediate_integration", "(9**9)**(9**(9**9))"),
        ("game_of_life", "{}"),  # its scorer raises KeyError
    ],
)
def test_what_breaks_a_scorer_is_malformed_scores_0_and_is_counted(task: str, bomb: str):
    reply = replied(small(task, deadline_s=3.0), bomb)
    assert (reply.stop, reply.reward, reply.success) == ("malformed", 0.0, False)
    assert reply.failure is None


def test_a_scorer_that_fails_for_the_reference_too_is_a_failure_and_not_a_reward(
    monkeypatch: pytest.MonkeyPatch,
):
    env = small("countdown", deadline_s=0.5)
    for broken, kind in ((sleeps, "reward_timeout"), (pays_two, "reward_error")):
        monkeypatch.setattr("spanwise.envs.math.reasoning_gym._score", broken)
        reply = replied(env, "1+1")
        assert reply.stop == "failure" and reply.failure is not None
        assert reply.failure.kind == kind, reply.failure


def sleeps(*_: object) -> float:
    time.sleep(60)
    return 1.0


def pays_two(*_: object) -> float:
    raise ArithmeticError("the score is 2.0, not between 0 and 1")


def test_a_bomb_of_mathematics_is_malformed_and_the_next_comparison_works(tmp_path: Path):
    env = of_mathematics(tmp_path, deadline_s=1.5)
    for bomb in ("9^{9^{9^{9}}}", "10^{7}!!", "{" * 20_000 + "1" + "}" * 20_000, "9" * 100_000):
        reply = replied(env, bomb)
        assert reply.failure is None and reply.reward == 0.0, (bomb[:20], reply)
    assert replied(of_mathematics(tmp_path, deadline_s=30.0), "34").reward == 1.0


def test_nothing_that_is_compared_as_mathematics_is_evaluated():
    script = (
        "import sys\n"
        "from spanwise.envs.math.scoring import math_verdict\n"
        "def hook(event, arguments):\n"
        "    if event in ('compile', 'exec') and 'getpid' in str(arguments): print(event)\n"
        "sys.addaudithook(hook)\n"
        "eval('__import__(\"os\").getpid()')\n"  # the hook does hear
        "for answer in sys.argv[1:]:\n"
        "    try: math_verdict(answer, ['34'])\n"
        "    except Exception: pass\n"
    )
    program = "__import__('os').getpid()"
    forms = ["{}", r"\text{{{}}}", r"\{{{}\}}", "x={}", r"\mathrm{{{}}}", "({},1)", r"\sin({})"]
    command = [sys.executable, "-c", script, *(form.format(program) for form in forms)]
    heard = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert heard == ["compile"] or heard == ["compile", "exec"]  # those of the hook's own trial


NO_ORACLE = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""Tasks whose records have no answer."""

REFUSED = {"composite"}


def own_answer_scores(name: str) -> list[float]:
    """Scores of the package's own answers, as ``ReasoningGym`` would score them."""
    options = {"seed": 0, "size": 3}
    dataset = _dataset(name, options)
    scores: list[float] = []
    for entry in (dataset[index] for index in range(3)):
        answer = entry["answer"].strip()
        readable = is_readable(name, answer, entry["answer"])
        record = b64encode(pickle.dumps(entry)).decode()
        scores.append(_score(name, json.dumps({}), answer, record) if readable else -1.0)
    return scores


@pytest.mark.slow
def test_the_packages_own_answer_to_every_task_is_right():
    from reasoning_gym.factory import DATASETS

    names = sorted(DATASETS.keys() - NO_ORACLE - REFUSED)
    assert len(names) > 95

    async def scored(name: str) -> list[float]:
        try:
            return await scoring_process.scored(
                own_answer_scores, name, preload=(_loaded,), deadline_s=60.0
            )
        except scoring_process.ScoringError as error:
            return [str(error)]  # type: ignore[list-item]

    async def all_scores() -> dict[str, list[float]]:
        return dict(zip(names, await asyncio.gather(*map(scored, names)), strict=True))

    scores = asyncio.run(all_scores())
    assert {name: found for name, found in scores.items() if found != [1.0] * 3} == {}


# A scorer that runs the answer after all. Each function is what the answer would do; each
# raises, or is ended, before it has done harm.


def ends_its_parent() -> None:
    os.kill(os.getppid(), signal.SIGKILL)


def ends_a_group() -> None:
    os.killpg(os.getpgid(os.getppid()), signal.SIGKILL)


def signals_by_descriptor() -> None:
    signal.pidfd_send_signal(os.pidfd_open(os.getppid()), signal.SIGKILL)


def forks() -> None:
    os.fork()


def forks_many_times() -> None:
    for _ in range(50):
        if os.fork() == 0:
            os._exit(0)


def starts_a_program() -> None:
    subprocess.run(["true"], check=True)


def becomes_a_program() -> None:
    os.execv("/bin/true", ["true"])


def starts_a_session() -> None:
    if os.posix_spawn("/bin/sleep", ["sleep", "60"], {}, setsid=True):
        raise SystemExit(0)


def starts_a_shell_by_c(file: str) -> None:
    ctypes.CDLL(None).system(f"touch {file}".encode())
    raise PermissionError


def opens_to_write(file: str) -> None:
    open(file, "w").close()


def opens_to_append(file: str) -> None:
    open(file, "a").close()


def makes_by_reading(file: str) -> None:
    os.open(file, os.O_CREAT)


def empties_by_reading(file: str) -> None:
    os.open(Path(file).with_name("kept"), os.O_TRUNC)


def makes_a_folder(file: str) -> None:
    os.mkdir(file)


def makes_a_link(file: str) -> None:
    os.symlink("/etc/hostname", file)


def makes_a_pipe(file: str) -> None:
    os.mkfifo(file)


def writes_its_memory_file() -> None:
    with open("/proc/self/mem", "r+b"):
        pass


def writes_its_parents_memory() -> None:
    with open(f"/proc/{os.getppid()}/mem", "r+b"):
        pass


def traces_its_parent() -> None:
    if ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == -1:
        raise PermissionError


def sends_by_udp() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"secret", ("127.0.0.1", 9))


def makes_a_pair() -> None:
    socket.socketpair()


def raises_its_limits() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (1 << 30, 1 << 30))


def starts_a_thread() -> None:
    threading.Thread(target=time.sleep, args=(60,)).start()


def takes_much_memory() -> None:
    bytearray(5 << 30)


def takes_memory_bit_by_bit() -> None:
    kept: list[bytearray] = []
    for _ in range(1000):
        kept.append(bytearray(1 << 22))


def calls_unseen_numbers() -> None:
    """Processes by x32's number and by clone3; io_uring; another process's memory."""
    calls = {
        "x86_64": (0x40000039, 435, 425, 310, 311),
        "aarch64": (0x40000039, 435, 425, 270, 271),
    }
    libc = ctypes.CDLL(None, use_errno=True)
    for call in calls[platform.machine()]:
        assert libc.syscall(call, 0, 0, 0, 0, 0, 0) == -1
        assert ctypes.get_errno() == errno.EPERM, call
    raise PermissionError


HARMLESS_ALONE = [
    ends_its_parent, ends_a_group, signals_by_descriptor, forks, forks_many_times,
    starts_a_program, becomes_a_program, starts_a_session, writes_its_memory_file,
    writes_its_parents_memory, traces_its_parent, sends_by_udp, makes_a_pair, raises_its_limits,
    starts_a_thread, takes_much_memory, takes_memory_bit_by_bit, calls_unseen_numbers,
]  # fmt: skip
ON_A_FILE = [
    starts_a_shell_by_c, opens_to_write, opens_to_append, makes_by_reading, empties_by_reading,
    makes_a_folder, makes_a_link, makes_a_pipe,
]  # fmt: skip


def computed(function: Callable[..., Any], *arguments: Any, deadline_s: float = 30.0) -> Any:
    scored = scoring_process.scored(function, *arguments, preload=(len, ""), deadline_s=deadline_s)
    return asyncio.run(scored)


def origin_id() -> int:
    return os.getppid()


linux = pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")


@linux
@pytest.mark.parametrize("attack", HARMLESS_ALONE)
def test_what_a_score_does_not_need_is_refused(attack: Callable[[], None]):
    refused = r"PermissionError|MemoryError|not allowed to raise|can't start new thread"
    with pytest.raises(scoring_process.ScoringError, match=refused):
        computed(attack)
    assert computed(len, "next") == 4


@linux
@pytest.mark.parametrize("attack", ON_A_FILE)
def test_a_score_writes_no_file(attack: Callable[[str], None], tmp_path: Path):
    (tmp_path / "kept").write_text("precious")
    with pytest.raises(scoring_process.ScoringError, match="PermissionError"):
        computed(attack, str(tmp_path / "made"))
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "precious"


def environment() -> list[str]:
    return sorted(os.environ)


def test_secrets_of_the_run_are_not_in_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scoring_process, "_threads", ThreadPoolExecutor(1))
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    seen = computed(environment)
    known = {"PYTHONHASHSEED", "OMP_NUM_THREADS", "LC_CTYPE", *scoring_process.KEPT_VARIABLES}
    assert "HF_TOKEN" not in seen and set(seen) <= known


def changes_the_scorer() -> str:
    scoring_process.json.dumps = lambda value: "[1.0, null]"  # type: ignore
    scoring_process.computed = 1  # type: ignore[attr-defined]
    return "done"


def is_changed() -> bool:
    return hasattr(scoring_process, "computed")


def test_what_a_score_changes_in_its_process_does_not_reach_the_next():
    computed(changes_the_scorer)
    assert computed(is_changed) is False


def memory_of(process: int) -> bytes:
    parts: list[bytes] = []
    with open(f"/proc/{process}/maps") as maps, open(f"/proc/{process}/mem", "rb") as memory:
        for line in maps:
            span, rights, *_ = line.split()
            if rights.startswith("rw"):
                first, last = (int(end, 16) for end in span.split("-"))
                memory.seek(first)
                parts.append(memory.read(last - first))
    return b"".join(parts)


@linux
def test_the_process_that_is_forked_sees_no_answer_and_no_reference(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(scoring_process, "_threads", ThreadPoolExecutor(1))
    scored = scoring_process.scored

    async def asked() -> int:
        preload = (len, "what it was preloaded with")
        secret = "the reference of a question"
        assert await scored(len, secret, preload=preload, deadline_s=9) == 27
        return await scored(origin_id, preload=preload, deadline_s=9)

    memory = memory_of(asyncio.run(asked()))
    assert b"what it was preloaded with" in memory
    assert b"the reference of a question" not in memory


def endless() -> int:
    return sum(iter(int, 1))


def test_a_score_past_its_deadline_is_ended_and_the_next_needs_no_new_start(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(scoring_process, "_threads", ThreadPoolExecutor(1))
    origin = computed(origin_id)
    with pytest.raises(scoring_process.ScoringTimeout, match=r"no answer in 0\.5 s"):
        computed(endless, deadline_s=0.5)
    assert computed(origin_id) == origin
    os.kill(origin, signal.SIGKILL)  # the origin itself is replaced
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and Path(f"/proc/{origin}/exe").exists():
        time.sleep(0.02)
    assert computed(origin_id) not in (origin, os.getpid())


@linux
def test_a_score_that_runs_ends_with_the_process_that_it_was_forked_from(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(scoring_process, "_threads", ThreadPoolExecutor(1))
    origin = computed(origin_id)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(computed, endless, deadline_s=60.0)
        children = Path(f"/proc/{origin}/task/{origin}/children")
        while not (found := children.read_text().split()):
            time.sleep(0.01)
        time.sleep(0.5)  # until it computes
        os.kill(origin, signal.SIGKILL)
        with pytest.raises(scoring_process.ScoringError, match="died of SIGKILL"):
            running.result(timeout=10)
    deadline = time.monotonic() + 10
    while (alive := _is_alive(int(found[0]))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive


def session_and_process() -> list[int]:
    return [os.getsid(0), os.getpid()]


def test_a_score_leads_a_session_so_that_what_it_starts_is_ended_with_it():
    session, process = scoring_process.generated(session_and_process, preload=(len, ""))
    assert session == process != os.getsid(0)


def test_the_processes_end_with_the_one_that_asks(tmp_path: Path):
    script = (
        "import asyncio, os, sys\n"
        "from tests.envs.math.test_attacks_on_scoring import origin_id, scoring_process\n"
        "print(asyncio.run(scoring_process.scored(origin_id, preload=(len, ''), deadline_s=9)))\n"
        "sys.stdout.flush(); os.kill(os.getpid(), 9)\n"
    )
    root = str(Path(__file__).parents[3])
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
    )
    origin, deadline = int(run.stdout), time.monotonic() + 10
    while (alive := _is_alive(origin)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()


def test_a_module_of_the_current_folder_does_not_stand_in_for_the_standard_librarys(
    tmp_path: Path,
):
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')\n")
    script = (
        "import asyncio, json, sys; sys.path.insert(0, '')\n"
        "from spanwise.envs.math.scoring_process import scored\n"
        "print(asyncio.run(scored(len, 'four', preload=(len, ''), deadline_s=30)))\n"
    )
    root = str(Path(__file__).parents[3])
    command = [sys.executable, "-P", "-c", script]
    environment = {**os.environ, "PYTHONPATH": root}
    run = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, text=True)
    assert run.stdout == "4\n", run.stderr


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_jump_of_the_filter_lands_on_a_decision(machine: str):
    lines = [struct.unpack("=HBBI", line) for line in _chunks(filter_program(machine), 8)]
    refuse, permit = len(lines) - 2, len(lines) - 1
    assert lines[refuse][3] == 0x50001 and lines[permit][3] == 0x7FFF0000
    for at, (code, yes, no, _) in enumerate(lines):
        if code in (0x15, 0x45) and at > 7:
            assert (at + 1 + yes, at + 1 + no) == (permit, at + 1)
    assert 7 + lines[6][2] == permit and 5 + lines[4][2] == 8


def _chunks(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]
