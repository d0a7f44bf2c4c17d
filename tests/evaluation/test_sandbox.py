"""Escapes that were tried and stopped; each beside a control that shows the same code works unconfined.

All attacks are harmless: they read a file of this test, knock at a socket of this test, or use up a limit.
"""

from __future__ import annotations

# ruff: noqa: E501 (an attack is a program in one string)
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glasshouse.evaluation import sandbox
from glasshouse.evaluation._jail import wire
from glasshouse.evaluation.sandbox import Limits, SandboxUnavailable, run_command, run_python
from glasshouse.runtime.errors import InputError

pytestmark = pytest.mark.skipif(bool(sandbox._problem()), reason=f"no sandbox here: {sandbox._problem()}")

FAST = Limits(cpu_seconds=1, wall_seconds=8)
REPORT = "\nprint('ESCAPED' if result else 'HELD')\n"


def bare(code: str, cwd: Path, **env: str) -> str:
    """The same code in a plain interpreter: what an attack does when nothing holds it."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code + REPORT], cwd=cwd, env=env, capture_output=True, text=True
    )
    return done.stdout.strip().splitlines()[-1]


def left_over() -> list[int]:
    """Processes of our sandboxes that still run, wherever they hang in the tree."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if sandbox._jail_host.mark() in (entry / "cmdline").read_text():
                    found.append(int(entry.name))
    return found


# -- what a run gives ----------------------------------------------------------------------------------------


def test_harmless_code_runs_and_checks_pass():
    code = "import json, math\ndef area(r):\n    return round(math.pi * r * r, 2)\nNAMES = ('a', {1, 2})\n"
    found = run_python(code + "print(json.dumps(area(1)))", check="assert area(2) == 12.57\nresult = NAMES")
    assert (found.status, found.value, found.stdout) == ("passed", ("a", {1, 2}), "3.14\n")
    assert found.passed and 0 < found.usage["cpu_seconds"] < 3 and found.usage["memory_mb"] > 1
    plain = run_python("import sys\nresult = [sys.stdin.read(), open('in/x.bin', 'rb').read()]", stdin="héllo",
                       files={"in/x.bin": b"\x00\xff"})  # fmt: skip
    assert plain.status == "finished" and not plain.passed and plain.value == ["héllo", b"\x00\xff"]


@pytest.mark.parametrize(
    ("code", "check", "status", "reason"),
    [
        ("def f(): return 1", "assert f() == 1\nassert f() == 2, 'two'", "failed", "check line 2: two"),
        ("def f(): return 1 / 0", "f()", "error", "ZeroDivisionError"),
        ("def f(): return 1 / 0", "try:\n    f()\nexcept ZeroDivisionError:\n    pass", "passed", ""),
        ("def f(:", "", "error", "SyntaxError"),
        ("raise ValueError('no')", "", "error", "ValueError: no"),
        ("def g(): pass", "f()", "error", "NameError"),
        ("def f(n): return f(n + 1)", "f(0)", "error", "RecursionError"),
        ("class E(Exception): pass\ndef f(): raise E('own')", "f()", "error", "E: own"),
    ],
)
def test_failures_are_told_apart(code, check, status, reason):
    found = run_python(code, check=check)
    assert found.status == status and reason in found.reason


def test_values_cross_as_copies_of_plain_data():
    code = "def same(x): return x\ndef odd(): return object()\ndef change(x):\n    x.append(1)\n    return x"
    check = """
for value in (None, True, -3, 10**30, 0.1, float('inf'), 1j, 'a\\n', b'\\0', [1, [2]], (1, (2,)), {1, 2},
              frozenset({3}), {1: 'a', (2, 3): [4]}, 'é', [], (), {}):
    assert same(value) == value and type(same(value)) is type(value), value
x = [0]
assert change(x) == [0, 1] and x == [0]
assert not odd() == odd() and (odd() != None)
try:
    bool(odd())
except TypeError:
    result = 'told'
"""
    found = run_python(code, check=check)
    assert (found.status, found.value) == ("passed", "told"), found


# -- files, devices, environment -----------------------------------------------------------------------------

FILES = {
    "read a file outside": "try:\n    result = open({secret!r}).read() == 'secret'\nexcept OSError:\n    result = False",
    "know that it exists": "import os\nresult = os.path.exists({secret!r})",
    "list its folder": "import os\ntry:\n    result = bool(os.listdir({folder!r}))\nexcept OSError:\n    result = False",
    "write outside": "try:\n    open({folder!r} + '/new', 'w').close()\n    result = True\nexcept OSError:\n    result = False",
    "change its mode": "import os\ntry:\n    os.chmod({secret!r}, 0o600)\n    result = True\nexcept OSError:\n    result = False",
    "read /etc": "try:\n    result = bool(open('/etc/passwd').read())\nexcept OSError:\n    result = False",
    "follow a link out": (
        "import os\ntry:\n    os.symlink('/etc/passwd', 'link')\n    result = bool(open('link').read())\n"
        "except OSError:\n    result = False"
    ),
    "climb out": (
        "import os\ntry:\n    os.chdir('../' * 40)\n    result = os.path.exists({secret!r}.lstrip('/'))\n"
        "except OSError:\n    result = False"
    ),
    "read the parent's files through /proc": (
        "import os\nresult = False\nfor name in ('environ', 'root' + {secret!r}, 'cwd', 'maps'):\n"
        "    try:\n        open(f'/proc/{{os.getppid()}}/{{name}}').read()\n        result = True\n"
        "    except OSError:\n        pass"
    ),
    "run a program": (
        "import os\ntry:\n    result = os.spawnv(os.P_WAIT, '/bin/sh', ['sh', '-c', 'exit 0']) == 0\n"
        "except OSError:\n    result = False"
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", FILES)
def test_files_outside_are_out_of_reach(attack, tmp_path):
    secret = tmp_path / "kept" / "secret"
    secret.parent.mkdir()
    secret.write_text("secret")
    secret.chmod(0o644)
    code = FILES[attack].format(secret=str(secret), folder=str(secret.parent))
    found = run_python(code)
    assert (found.status, found.value) == ("finished", False), found
    assert sorted(p.name for p in secret.parent.iterdir()) == ["secret"]
    assert secret.stat().st_mode & 0o777 == 0o644
    work = tmp_path / "work"
    work.mkdir()
    assert bare(code, work) == "ESCAPED"  # unconfined, the same code does it


def test_the_parents_environment_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("GLASSHOUSE_TEST_SECRET", "s3cret")
    code = "import os\nresult = 's3cret' in str(dict(os.environ))"
    found = run_python(code + "\nnames = sorted(os.environ)\nprint(names)")
    assert found.value is False and found.stdout.strip() in ("[]", "['LC_CTYPE']")
    assert bare(code, tmp_path, **os.environ) == "ESCAPED"


def test_files_may_be_written_only_up_to_the_limit():
    code = (
        "try:\n    with open('x', 'wb') as f:\n        f.write(b'x' * 5000)\n    result = True\n"
        "except OSError:\n    result = False"
    )
    assert run_python(code).value is False
    assert run_python(code, limits=Limits(file_kb=8)).value is True
    many = "n = 0\ntry:\n    while n < 9999:\n        with open(str(n), 'wb') as f: f.write(b'x' * 4096)\n        n += 1\nexcept OSError:\n    pass\nresult = n"
    assert 50 < run_python(many, limits=Limits(file_kb=8, work_kb=1024)).value <= 256


@pytest.mark.parametrize("name", ["../x", "/etc/x", "", "a/../../x", "a\0b"])
def test_given_files_stay_in_the_folder(name):
    with pytest.raises(InputError, match="leaves the folder"):
        run_python("", files={name: ""})


# -- network -------------------------------------------------------------------------------------------------

NETWORK = {
    "tcp": "s = socket.socket()\n    s.settimeout(1)\n    s.connect(('127.0.0.1', {tcp}))\n    s.sendall(b'out')",
    "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'out', ('127.0.0.1', {udp}))",
    "abstract unix": "socket.socket(socket.AF_UNIX).connect('\\0{abstract}')",
    "listen": "s = socket.socket()\n    s.bind(('127.0.0.1', 0))\n    s.listen()",
}


@pytest.mark.parametrize("attack", NETWORK)
def test_no_network_of_any_kind(attack, tmp_path):
    name = f"glasshouse-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp, \
            socket.socket(socket.AF_UNIX) as local:  # fmt: skip
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(5)
        local.bind(f"\0{name}")
        local.listen()
        action = NETWORK[attack].format(tcp=tcp.getsockname()[1], udp=udp.getsockname()[1], abstract=name)
        code = f"import socket\ntry:\n    {action}\n    result = True\nexcept OSError:\n    result = False"
        found = run_python(code)
        assert found.status == "finished"
        if attack != "udp":
            assert found.value is False
        udp.setblocking(False)
        with pytest.raises(BlockingIOError):
            udp.recv(10)
        udp.settimeout(5)
        assert bare(code, tmp_path) == "ESCAPED"
        if attack == "udp":
            assert udp.recv(10) == b"out"


# -- limits --------------------------------------------------------------------------------------------------


def test_memory_is_limited():
    code = "x = bytearray({} << 20)\nresult = len(x)"
    assert run_python(code.format(2048)).status == "memory"
    assert run_python("def f(): return len(bytearray(2 << 30))", check="f()").status == "memory"
    assert run_python(code.format(64)).value == 64 << 20


def test_processor_time_is_limited():
    # A busy machine gives a second of its processor late: the clock must not end the run before that.
    limits = Limits(cpu_seconds=1, wall_seconds=120)
    found = run_python("def f():\n    while True: pass", check="f()", limits=limits)
    assert found.status == "cpu" and found.usage["cpu_seconds"] >= 0.9
    stubborn = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert run_python(stubborn, limits=limits).status == "cpu"
    assert run_python("result = sum(range(10**5))", limits=limits).status == "finished"


def test_sleeping_code_is_ended_by_the_clock():
    found = run_python("import time\ntime.sleep(60)", limits=Limits(wall_seconds=0.7))
    assert found.status == "timeout" and "0.7 seconds" in found.reason
    assert not left_over()


def test_a_fork_bomb_hits_its_limit_and_leaves_nothing():
    bomb = (
        "import os, time\nmade = 0\ntry:\n    while made < 500:\n        if os.fork() == 0:\n"
        "            while True:\n                time.sleep(60)\n        made += 1\nexcept OSError:\n    pass\nresult = made"
    )
    found = run_python(bomb, limits=Limits(processes=12))
    assert found.status == "finished" and 3 <= found.value < 12
    assert not left_over()
    few = "import os\npid = os.fork()\nif pid == 0: os._exit(3)\nresult = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])"
    assert run_python(few).value == 3


def test_a_bomb_whose_children_fork_on_ends_with_the_clock():
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    found = run_python(bomb, limits=Limits(wall_seconds=1, cpu_seconds=1, processes=8))
    assert found.status in ("timeout", "cpu")
    assert not left_over()


@pytest.mark.parametrize("ending", ["", "while True: time.sleep(1)", "os._exit(0)"])
def test_no_child_outlives_its_run(ending):
    code = f"import os, time\nif os.fork() == 0:\n    os.setsid()\n    while True: time.sleep(60)\n{ending}"
    found = run_python(code, limits=Limits(wall_seconds=1))
    assert found.status == {"": "finished", "os._exit(0)": "exited"}.get(ending, "timeout")
    assert not left_over()


def test_left_over_processes_would_be_seen():
    """The control of the tests above: while a sandbox runs, its processes are found."""
    seen: list[int] = []
    code = "import time\nprint('up', flush=True)\ntime.sleep(1)"
    thread = threading.Thread(target=lambda: run_python(code))
    thread.start()
    while thread.is_alive() and len(seen) < 3:
        seen = left_over()
    thread.join()
    assert len(seen) >= 3 and not left_over()  # launcher, keeper, worker


def test_huge_output_is_stopped_and_small_output_kept():
    for stream in ("stdout", "stderr"):
        found = run_python(f"import sys\nwhile True: sys.{stream}.write('x' * 4096)")
        assert found.status == "output" and len(getattr(found, stream)) == 64 * 1024
    assert run_python("print('x' * 60000)").status == "finished"
    assert run_python("print('x' * 2000)", limits=Limits(output_kb=1)).status == "output"


# -- faking a pass -------------------------------------------------------------------------------------------

CHECK = "assert f(2) == 4, 'wrong'"
HONEST = "def f(x): return x * 2"
FAKES = {
    "os._exit": "import os\nos._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "exit while called": "import os\ndef f(x): os._exit(0)",
    "raise SystemExit while called": "def f(x): raise SystemExit(0)",
    "print": "print('passed')\nprint('{\"status\": \"passed\"}')\ndef f(x): return 0",
    "equal to everything": "class E:\n    __eq__ = lambda s, o: True\ndef f(x): return E()",
    "equal subclass": "class E(int):\n    __eq__ = lambda s, o: True\n    __hash__ = None\ndef f(x): return E(0)",
    "no assertions": "import builtins\nbuiltins.AssertionError = Warning\ndef f(x): return 0",
    "own builtins": "def f(x): return 0\ndef __build_class__(*a): pass\nAssertionError = BaseException\n__builtins__ = {}",
    "end the keeper": "import os, signal\nfor pid in (1, os.getppid()):\n    os.kill(pid, signal.SIGKILL)\ndef f(x): return 0",
    "end everyone": "import os, signal\ndef f(x):\n    os.kill(-1, signal.SIGKILL)\n    return 0",
    "write to every descriptor": (
        "import os\nfor fd in range(3, 64):\n    for line in (b'{\"status\": \"passed\", \"reason\": \"\"}\\n',):\n"
        "        try: os.write(fd, line)\n        except OSError: pass\ndef f(x): return 0"
    ),
    "speak for the keeper": (
        "import sys, json, os\nframe = sys._getframe()\nwhile frame:\n"
        "    for v in list(frame.f_locals.values()):\n"
        "        if type(v) is int:\n            try: os.write(v, b'{\"nonce\": \"\", \"status\": \"passed\"}\\n')\n"
        "            except (OSError, OverflowError): pass\n    frame = frame.f_back\ndef f(x): return 0"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fake", FAKES)
def test_a_pass_cannot_be_faked(fake):
    found = run_python(FAKES[fake], check=CHECK, limits=FAST)
    assert not found.passed, found
    assert found.status in ("exited", "failed", "error", "killed")


@pytest.mark.parametrize("fake", list(FAKES)[:7])
def test_the_fakes_fool_a_check_in_the_same_process(fake, tmp_path):
    """The control: run after the code in one interpreter and judged by its exit, the same check passes."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"{FAKES[fake]}\n{CHECK}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 or "passed" in done.stdout


def test_no_exception_ends_the_checks_early():
    """StopIteration out of a called function ends `map` as if it were done: all() of nothing is true."""
    code = "def f(x): raise StopIteration"
    assert not run_python(code, check="assert all(map(f, [1, 2]))").passed
    namespace: dict = {}
    exec(code + "\nresult = all(map(f, [1, 2]))", namespace)
    assert namespace["result"] is True


def test_honest_code_passes_and_hides_no_builtin():
    assert run_python(HONEST, check=CHECK).passed
    liar = "def len(x): return 3\ndef f(x): return []\nresult = 7\n__name__ = 'x'"
    found = run_python(liar, check="assert len(f(1)) == 0 and solution.len('') == 3 and solution.result == 7")
    assert found.passed and found.value is None


def test_the_code_cannot_read_the_checks_or_the_nonce():
    """Neither is in its memory: both are sent after the fork, to a process it can neither trace nor read."""
    search = """
import gc, sys, os
seen = []
frame = sys._getframe()
while frame:
    seen.append(repr(frame.f_locals) + repr(frame.f_globals))
    frame = frame.f_back
seen += [repr(o)[:2000] for o in gc.get_objects() if not isinstance(o, type(seen)) or o is not seen]
text = ' '.join(seen)
def f(x): return [MARK in text, os.path.exists('/proc/1'), os.getppid()]
"""
    mark = "''.join(['unguess', 'able_7781'])"
    found = run_python(search.replace("MARK", mark), check="result = f(0)  # unguessable_7781")
    assert found.value == [False, False, 1]
    control = search.replace("MARK", mark) + "\nimport types\n"
    kept = run_python("held = 'unguessable_7781'\n" + control, check="result = f(0)")
    assert kept.value[0] is True  # the search does find what is in its own process


def test_the_keeper_cannot_be_traced_or_read():
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
class Vec(ctypes.Structure):
    _fields_ = [('base', ctypes.c_void_p), ('len', ctypes.c_size_t)]
held = ctypes.create_string_buffer(b'x' * 8)
def read(pid, address):
    into = ctypes.create_string_buffer(8)
    here, there = Vec(ctypes.addressof(into), 8), Vec(address, 8)
    return libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
def f():
    import os
    return {'attach': libc.ptrace(16, 1, None, None), 'read': read(1, ctypes.addressof(held)),
            'itself': read(os.getpid(), ctypes.addressof(held)),
            'root': [libc.setuid(0), libc.setgid(0)], 'mount': libc.mount(b'none', b'/work', b'tmpfs', 0, None),
            'inner mount': libc.unshare(0x10020000) or libc.mount(b'none', b'/work', b'tmpfs', 0, None)}
"""
    found = run_python(code, check="result = f()")
    assert found.value == {
        "attach": -1, "read": -1, "itself": 8, "root": [-1, -1], "mount": -1, "inner mount": -1,
    }  # fmt: skip


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*wire._DECODERS, "other"]), inner, max_size=2)
    ),
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_any_message_is_decoded_or_refused(form):
    with contextlib.suppress(wire.Gone):
        wire.decode(form)


@given(PLAIN)
def test_plain_values_survive_the_wire(value):
    assert wire.decode(json.loads(json.dumps(wire.encode(value)))) == value


def test_messages_that_are_none_are_refused():
    for form in (1.5, {"float": "x"}, {"two": 1, "keys": 2}, {"set": [[1]]}, {"nothing": 1}, {"dict": [[1]]}):
        with pytest.raises(wire.Gone):
            wire.decode(form)
    deep = []
    for _ in range(200):
        deep = [deep]
    assert "opaque" in str(wire.encode(deep))
    assert run_python("def f(): return 'x' * (2 << 20)", check="f()").status in ("killed", "exited")


# -- refusal -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("landlock_version", 3, "Landlock is at version 3, 4 is needed"), ("landlock_version", 0, "version 0"),
     ("user_namespaces", False, "user namespaces are off")],
)  # fmt: skip
def test_without_the_kernels_help_code_is_refused(name, value, told, monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, name, lambda: value)
    sandbox._problem.cache_clear()
    marker = tmp_path / "ran"
    try:
        with pytest.raises(SandboxUnavailable, match=told):
            run_python(f"open({str(marker)!r}, 'w')")
        with pytest.raises(SandboxUnavailable, match=told):
            run_command(["touch", "ran"], tmp_path)
    finally:
        sandbox._problem.cache_clear()
    assert not marker.exists()


def test_a_sandbox_that_cannot_be_built_refuses(monkeypatch):
    monkeypatch.setattr(sandbox, "LIBRARIES", ("/lib", "/nowhere/\udcff"))
    monkeypatch.setattr(sandbox._jail_host, "_START", "import sys; sys.exit(3)  # {here}{a}{b}{c}")
    found = run_python("result = 1")
    assert (found.status, found.value) == ("killed", None)


@pytest.mark.parametrize(
    "options",
    [{"cpu_seconds": 0}, {"memory_mb": 1}, {"processes": 1.5}, {"wall_seconds": 0}, {"output_kb": -1}],
)
def test_senseless_limits_are_refused(options):
    with pytest.raises(InputError):
        Limits(**options)


def test_runs_do_not_disturb_each_other():
    found: dict[int, object] = {}

    def work(i: int) -> None:
        found[i] = run_python(f"def f(): return {i}", check="result = f()").value

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: i for i in range(6)}


# -- programs, and Inspect -----------------------------------------------------------------------------------


def test_programs_run_with_one_folder_to_write_to(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    (work / "in.txt").write_text("a\nb\n")
    found = run_command(
        ["sh", "-c", "wc -l < in.txt; echo made > out.txt; ls /etc /proc; cat"], work, stdin=b"end"
    )
    assert found.stdout.split()[0] == "2" and found.stdout.endswith("end") and found.code == 0
    assert (work / "out.txt").read_text() == "made\n" and "/etc" in found.stderr and "/proc" in found.stderr
    assert run_command(["false"], work).code == 1
    assert run_command(["no-such-program"], work).code == 127
    assert run_command(["sh", "-c", "kill -9 $$"], work).code == -signal.SIGKILL
    outside = run_command(["sh", "-c", f"echo x > {tmp_path}/x; touch /usr/x /x"], work)
    assert outside.code != 0 and not (tmp_path / "x").exists()
    with pytest.raises(InputError, match="is no folder in the sandbox"):
        run_command(["ls"], work, cwd=str(tmp_path))


def test_inspect_finds_the_sandbox_and_links_do_not_lead_out(tmp_path):
    from inspect_ai.util._sandbox.registry import registry_find_sandboxenv

    kind = registry_find_sandboxenv("glasshouse")
    secret = tmp_path / "secret"
    secret.write_text("secret")

    async def sample() -> None:
        envs = await kind.sample_init("t", None, {})
        box = envs["default"]
        await box.write_file("sub/dir/reward.py", "print('low')")
        done = await box.exec(
            ["sh", "-c", "sed -i s/low/high/ sub/dir/reward.py && python3 -V; pwd"], timeout=20
        )
        assert done.success and box.directory.name in done.stdout, done
        assert await box.read_file("sub/dir/reward.py") == "print('high')"
        assert await box.read_file(f"{box.directory.name}/sub/dir/reward.py", text=False) == b"print('high')"
        await box.write_file("sub/dir/reward.py", "again")
        assert (await box.exec(["cat", "dir/reward.py"], cwd="sub")).stdout == "again"
        assert (await box.exec(["cat"], input="said", env={"X": "1"})).stdout == "said"
        await box.exec(
            ["sh", "-c", f"ln -s {secret} link; ln -s {tmp_path} folder; ln -s reward.py sub/dir/inner"]
        )
        for name in ("link", "folder/secret", "../secret", str(secret)):
            with pytest.raises(PermissionError):
                await box.read_file(name)
            with pytest.raises(PermissionError):
                await box.write_file(name, "stolen")
        assert await box.read_file("sub/dir/inner") == "again"
        with pytest.raises(FileNotFoundError):
            await box.read_file("absent")
        with pytest.raises(TimeoutError):
            await box.exec(["sleep", "60"], timeout=1)
        done = await box.exec(["python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 1))"])
        assert not done.success
        await kind.sample_cleanup("t", None, envs, False)

    asyncio.run(sample())
    assert secret.read_text() == "secret" and not left_over()
