"""The machine: the file that stdout leads to, and the disk with all that can happen to it."""

from __future__ import annotations

import builtins
import errno
import os
import random
import stat
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .basics import HOUR, MINUTE, Killed, checkpoints_in, read_file

if TYPE_CHECKING:
    from .ledger import Entry, Ledger
    from .process import Process
    from .world import World


class Stream:
    """A file that stdout leads to."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self.path = path
        self.ledger = ledger
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self.tail = b""  # of a line that is not whole
        self.is_torn = False  # the tail is what a process left that ended in the middle of a write
        self.size = self.synced = os.fstat(self.fd).st_size
        # Where the lines end that a power failure may take
        self.unsynced: list[tuple[int, Entry]] = []
        self.orphans: set = (
            set()
        )  # of these, ids of what no checkpoint will cover: its process ended
        self.changed = 0.0  # s, by the local clock

    def write(self, data: Any, process: Process) -> int:
        os.write(self.fd, data)
        start = self.size - len(self.tail)
        *lines, tail = (self.tail + bytes(data)).split(b"\n")
        for number, line in enumerate(lines):
            start += len(line) + 1
            is_half = self.is_torn and line == self.tail
            # Where it cannot be read, one is ended that may have been cut short
            is_empty = not line and process.world.disk.is_unreadable
            is_end_of_torn = number == 0 and (is_half or is_empty)
            self.is_torn = False
            if is_end_of_torn:
                continue
            entry = self.ledger.took(line)
            self.ledger.counted(entry, process, line)
            process.unsaved.append(entry)
            self.unsynced.append((start, entry))
        self.tail = tail
        self.size += len(data)
        self.touch(process.world.wall())
        return len(data)

    def touch(self, when: float) -> None:
        self.changed = when
        os.utime(self.fd, (when, when))

    def read(self) -> bytes:
        return os.pread(self.fd, self.size, 0)

    def sync(self) -> None:
        self.synced = self.size
        self.unsynced.clear()
        self.orphans.clear()

    def truncated(self) -> None:
        self.size = 0
        self.sync()

    def process_ended(self) -> None:
        self.is_torn = bool(self.tail)

    def power_fails(self, draw: random.Random, unsaved: set) -> None:
        """Lose what was not synced, or the last part of it."""
        size = draw.choice((self.synced, self.size, draw.randint(self.synced, self.size)))
        for end, entry in self.unsynced:
            if end <= size:
                continue
            entry.written -= 1
            if id(entry) not in unsaved | self.orphans:
                raise entry.failure("is lost in a power failure, and the checkpoint is beyond it")
        os.truncate(self.path, size)
        self.touch(self.changed)
        data = self.path.read_bytes()[-100_000:]
        self.tail = data[data.rfind(b"\n") + 1 :]
        self.is_torn = bool(self.tail)
        self.size = size
        self.sync()

    def close(self) -> None:
        os.close(self.fd)


class Disk(types.SimpleNamespace):
    """What the collector has for `os`: the real one, but for the calls between which it can end,
    that take time, or that can fail."""

    def __init__(self, world: World) -> None:
        super().__init__(**{name: value for name, value in vars(os).items() if name != "environ"})
        self.world = world
        self.durable: set = set()  # inodes that were synced since they were written
        # Of the last minute, unless their folder was synced since: when, what was there before, and
        # the floor of that
        self.renamed: dict[str, list[tuple[float, bytes | None, dict[str, float]]]] = {}
        self.contents: dict[str, bytes] = {}  # of what was renamed
        self.floor: dict[str, float] = {}  # what the checkpoint file goes by
        # Written since then, when: again, once a power failure undoes that
        self.undone: list[tuple[float, Entry]] = []
        self.hollow: set = set()  # files of which a power failure leaves the name only
        self.is_full = False
        self.is_output_full = False  # stdout leads to another disk than the checkpoint file's
        self.is_unreadable = False  # stdout's file
        self.folder_errno = 0  # of syncing or opening the folder
        self.left: int | None = None  # calls until the process is killed
        replaced = ("open", "write", "fsync", "replace", "rename", "unlink", "isatty", "close")
        for name in replaced:
            setattr(self, name, getattr(self, "_" + name))

    @property
    def environ(self) -> dict[str, str]:
        return self.world.process.environ

    def strike(self) -> None:
        """A call that the process may not survive."""
        self.world.process.check_alive()
        if self.left is None:
            return
        self.left -= 1
        if self.left < 0:
            self.left = None
            self.world.die(self.world.process)

    def _isatty(self, fd: int) -> bool:
        return False

    def _open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        self.strike()
        if self.folder_errno == errno.EACCES and os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        is_new = flags & os.O_CREAT and not os.path.exists(path)
        if self.is_full and is_new and self.world.draw.random() < 0.3:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        fd = os.open(path, flags, mode, **more)
        self.world.process.files.add(fd)
        return fd

    def _close(self, fd: int) -> None:
        self.world.process.files.discard(fd)
        os.close(fd)

    def open_file(self, file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        """In place of the built-in open."""
        if not isinstance(file, int) and set(mode) & set("wax+"):
            self.strike()
        is_output = str(file).startswith(("/dev/fd/", str(self.world.output.path)))
        if self.is_unreadable and is_output:
            raise PermissionError(errno.EACCES, "Permission denied", file)
        opened = builtins.open(file, mode, *more, **named)
        self.world.process.files.discard(opened.fileno())  # it is closed with the object
        return opened

    def _write(self, fd: int, data: Any) -> int:
        world = self.world
        if fd == 2:
            world.said(bytes(data).decode(errors="replace"))
            return len(data)
        stream, process = world.streams.get(fd), world.process
        if stream is None:
            self.strike()
            return os.write(fd, data)
        try:
            self.strike()
        except Killed:
            if (
                world.booted < world.time
            ):  # or the power has failed, and nothing is written any more
                stream.write(data[: world.draw.randint(0, len(data))], process)
                world.forgive(process)
            raise
        if self.is_full or self.is_output_full:
            room = world.draw.choice((0, 0, len(data) // 2))
            if not room:
                world.forgive(process)  # the page in flight
                raise OSError(errno.ENOSPC, "No space left on device")
            data = data[:room]
        return stream.write(data, process)

    def _fsync(self, fd: int) -> None:
        self.strike()
        world = self.world
        world.process.sleep(world.latency.uniform(0, 0.02))
        stream = world.streams.get(fd)
        status = None if stream else os.fstat(fd)
        if status and stat.S_ISDIR(status.st_mode):
            if self.folder_errno:
                raise OSError(self.folder_errno, os.strerror(self.folder_errno))
            self.settled()
        elif self.is_full or (stream and self.is_output_full):
            if stream:
                world.forgive(world.process)
            raise OSError(errno.ENOSPC, "No space left on device")
        elif stream:
            stream.sync()
        else:
            self.durable.add(status.st_ino)

    def _replace(self, source: str, target: str) -> None:
        self.strike()
        world = self.world
        is_durable = os.stat(source).st_ino in self.durable
        before = self.contents.pop(target, None) or read_file(target)
        content = read_file(source) or b""
        os.replace(source, target)
        self.contents[target] = content
        self.durable.clear()
        recent = [one for one in self.renamed.get(target, []) if one[0] > world.time - MINUTE]
        self.renamed[target] = [*recent, (world.time, before, self.floor)]
        self.floor = dict(world.ledger.floor)
        if is_durable:
            self.hollow.discard(target)
        else:
            self.hollow.add(target)
        if target == world.checkpoint_file:
            world.saved(content)

    _rename = _replace

    def _unlink(self, path: str) -> None:
        self.strike()
        os.unlink(path)

    def settled(self) -> None:
        """What was renamed is so for good."""
        self.renamed.clear()
        self.undone = []

    def changed(self) -> None:
        """Files were changed by others than the collector."""
        self.settled()
        self.contents.clear()

    def power_fails(self, draw: random.Random) -> None:
        """A folder that cannot be synced loses the last minute: by then every file system has
        written it down."""
        world = self.world
        unsaved = {id(entry) for process in world.processes for entry in process.unsaved}
        for target in self.hollow:
            os.truncate(target, 0)
        for target, recent in self.renamed.items():
            before = next((one for one in recent if one[0] > world.time - MINUTE), None)
            if before and draw.random() < 0.5:
                unsaved |= self.undo(target, before[1], before[2])
        self.changed()
        for stream in world.streams.values():
            stream.power_fails(draw, unsaved)

    def undo(self, target: str, content: bytes | None, floor: dict[str, float]) -> set:
        """A file is again what it was; return ids of what was written since, and comes again."""
        world = self.world
        if content is None:
            Path(target).unlink()
        else:
            Path(target).write_bytes(content)
        if target != world.checkpoint_file:
            return set()
        self.floor = dict(floor or world.ledger.floor)
        world.ledger.floor = dict(self.floor)
        again = [entry for at, entry in self.undone if at > world.time - MINUTE]
        for entry in again:
            entry.allowed += 1
        restored = checkpoints_in(content or b"")
        for name, at in world.checkpoints.items():
            if restored.get(name, 0.0) < at - HOUR:  # a --since is undone with it
                world.ledger.again_from(name, restored.get(name, 0.0))
        return {id(entry) for entry in again}
