import contextlib
import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zoo import files

# Runs `write(directory)` in a child process that dies at the n-th step which changes the disk.
HARNESS = """
import os, sys
from pathlib import Path
from zoo import files

count = 0
def dying(function):
    def step(*args, **kwargs):
        global count
        count += 1
        if count == int(sys.argv[2]):
            os._exit(9)
        return function(*args, **kwargs)
    return step

os.fsync, os.replace, os.rmdir, os.unlink = map(dying, (os.fsync, os.replace, os.rmdir, os.unlink))
Path.write_bytes, Path.mkdir = dying(Path.write_bytes), dying(Path.mkdir)
root = Path(sys.argv[1])
"""
WRITE_FILE = """
with files.atomic_file(root / "a.txt") as temporary:
    temporary.write_bytes(b"new")
"""
WRITE_DIRECTORY = """
with files.atomic_directory(root / "d") as temporary:
    (temporary / "a.txt").write_bytes(b"new")
    (temporary / "b.txt").write_bytes(b"new")
"""


def run_until_step(code, root, step):
    return subprocess.run([sys.executable, "-c", HARNESS + code, str(root), str(step)], check=False).returncode


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("content", [b"", b"abc", b"x" * (3 << 20)])
def test_sha256_is_the_files(tmp_path, content):
    path = tmp_path / "a"
    path.write_bytes(content)

    assert files.sha256(path) == hashlib.sha256(content).hexdigest()
    assert files.sha256(str(path)) == hashlib.sha256(content).hexdigest()


def test_atomic_file_appears_whole_and_keeps_the_suffix(tmp_path):
    path = tmp_path / "deep" / "model.weights.h5"
    with files.atomic_file(path) as temporary:
        assert temporary.name.endswith(".weights.h5")
        assert temporary.parent == path.parent
        temporary.write_bytes(b"half")
        assert not path.exists()

    assert path.read_bytes() == b"half"
    assert names(path.parent) == ["model.weights.h5"]


def test_atomic_file_has_ordinary_permissions(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    with files.atomic_file(tmp_path / "a") as temporary:
        temporary.write_bytes(b"")

    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_atomic_file_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), files.atomic_file(path) as temporary:
        temporary.write_bytes(b"new")
        raise KeyboardInterrupt

    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_atomic_file_that_was_never_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), files.atomic_file(tmp_path / "a"):
        pass

    assert names(tmp_path) == []


def test_atomic_file_refuses_a_directory(tmp_path):
    with pytest.raises(ValueError, match="not a directory"), files.atomic_file(tmp_path):
        pass


def test_atomic_directory_replaces_all_of_the_old_one(tmp_path):
    path = tmp_path / "d"
    for content in ("one", "two"):
        with files.atomic_directory(path) as temporary:
            (temporary / "inner").mkdir()
            (temporary / "inner" / content).write_text(content)

    assert names(path / "inner") == ["two"]
    assert names(tmp_path) == ["d"]


def test_atomic_directory_replaces_what_a_link_points_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with files.atomic_directory(tmp_path / "link") as temporary:
        (temporary / "a").write_bytes(b"")

    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "real") == ["a"]


def test_atomic_directory_failure_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "d"
    path.mkdir()
    (path / "old").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), files.atomic_directory(path) as temporary:
        (temporary / "new").write_bytes(b"new")
        raise ZeroDivisionError

    assert names(tmp_path) == ["d"]
    assert names(path) == ["old"]


def test_atomic_directory_refuses_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(ValueError, match="not a file"), files.atomic_directory(tmp_path / "a"):
        pass


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("nth", [1, 2])
def test_full_disk_leaves_the_old_directory_and_nothing_else(tmp_path, monkeypatch, call, nth):
    path = tmp_path / "d"
    with files.atomic_directory(path) as temporary:
        (temporary / "a").write_bytes(b"old")
    original, calls = getattr(os, call), []

    def failing(*args):
        calls.append(args)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(OSError, match="No space left"), files.atomic_directory(path) as temporary:
        (temporary / "a").write_bytes(b"new")

    assert names(tmp_path) == ["d"]
    assert (path / "a").read_bytes() == b"old"


def test_writer_stopped_by_the_systems_size_limit_leaves_nothing(tmp_path):
    code = """
import resource, signal, sys
from zoo import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with files.atomic_file(sys.argv[1]) as temporary:
    temporary.write_bytes(bytes(5000))
"""
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, check=False
    )

    assert "File too large" in done.stderr
    assert names(tmp_path) == []


def test_file_writer_killed_at_every_step_leaves_old_or_new(tmp_path):
    path = tmp_path / "a.txt"
    seen = set()
    for step in range(1, 20):
        path.write_bytes(b"old")
        code = run_until_step(WRITE_FILE, tmp_path, step)
        seen.add(path.read_bytes())
        if code == 0:
            break
        assert code == 9
    else:
        pytest.fail("never came to the end")

    assert step > 4
    assert seen == {b"old", b"new"}


def test_directory_writer_killed_at_every_step_leaves_old_or_new(tmp_path):
    path = tmp_path / "d"
    seen = set()
    for step in range(1, 30):
        with files.atomic_directory(path) as temporary:
            (temporary / "a.txt").write_bytes(b"old")
            (temporary / "b.txt").write_bytes(b"old")
        code = run_until_step(WRITE_DIRECTORY, tmp_path, step)
        files.restore_directory(path)
        contents = {(path / "a.txt").read_bytes(), (path / "b.txt").read_bytes()}
        assert len(contents) == 1, f"torn at step {step}"
        seen |= contents
        if code == 0:
            break
        assert code == 9
    else:
        pytest.fail("never came to the end")

    assert step > 9
    assert seen == {b"old", b"new"}
    assert not path.with_name(".d.replaced").exists()


def test_killed_from_outside_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    code = """
import sys, time
from zoo import files
with files.atomic_file(sys.argv[1]) as temporary:
    temporary.write_bytes(b"new")
    print("written", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)

    assert path.read_bytes() == b"old"


def test_check_writable_makes_nothing(tmp_path):
    assert files.check_writable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert files.check_writable(str(tmp_path)) == tmp_path
    assert names(tmp_path) == []


def test_check_writable_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert files.check_writable("out") == Path("out")


def test_check_writable_refuses_a_file_in_the_way(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    for directory in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(ValueError, match=r"`directory` must not be a file.*Received: directory="):
            files.check_writable(directory)


def test_check_writable_refuses_what_cannot_be_written(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def refusing(dir):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", lambda dir: refusing(dir).__enter__())
    with pytest.raises(ValueError, match="`directory` must be writable: Permission denied"):
        files.check_writable(tmp_path)
