# Tries everything that must not work in the sandbox, and prints the names of the attempts that succeed, or "closed". FACTS
# is prepended: the folders and files that may be read, the numbers of system calls, the user's home.
#
# Every attempt must be harmless if it succeeds.
import errno, os, socket, sys

def forbidden(attempt):
    """Returns an attempt that raises only if the system call itself is refused. Any other error counts as success, because
    it means that the kernel accepted the call."""
    def run():
        try:
            attempt()
        except OSError as e:
            if e.errno in (errno.EPERM, errno.ENOSYS): raise
    return run

def environment():
    if not set(os.environ) - {"LC_CTYPE"}: raise OSError  # Python itself sets that one

def open_files():
    for fd in range(3, 1024):
        try: return os.fstat(fd)
        except OSError: pass
    raise OSError

def folder():
    if not os.listdir("."): raise OSError

def readable(path):
    path = os.path.realpath(path)
    return any(path == own or path.startswith(own + "/") for own in FACTS["readable"])

def foreign_folders():
    """Lists a folder that is not the interpreter's own: on sys.path, a prefix, or a parent of one of its own folders."""
    around = [os.path.dirname(os.path.realpath(own)) for own in FACTS["readable"]]
    prefixes = [sys.prefix, sys.base_prefix, os.path.dirname(sys.prefix), FACTS["home"]]
    for path in [*sys.path, *prefixes, *around]:
        if os.path.isdir(path) and not readable(path):
            try: return os.listdir(path)
            except OSError: pass
    raise OSError

works = []
def try_all(attempts):
    for name, attempt in attempts.items():
        try:
            attempt()
            works.append(name)
        except OSError:
            pass

try_all({
    "writing a file": lambda: open("file", "w"),
    "writing outside": lambda: open(f"../arithmo-{os.getpid()}", "w"),
    "making a folder": lambda: os.mkdir("folder"),
    "reading other files": lambda: open("/etc/passwd").read(),
    "reading other folders": foreign_folders,
    "opening a path without reading (O_PATH)": forbidden(lambda: os.open("/etc/passwd", os.O_PATH)),
    "listing processes": lambda: os.listdir("/proc"),
    "reading /proc/self": lambda: open("/proc/self/environ").read(),
    "the network": lambda: socket.socket(),
    "a pair of sockets": lambda: socket.socketpair(),
    "a second process": lambda: os.fork() or os._exit(0),
    "signals to other processes": lambda: os.kill(os.getppid(), 0),
    "descriptors left open by other processes": open_files,
    "the environment": environment,
    "a working folder that is not empty": folder,
})

# Operations on descriptors that reach other processes: signals to an owner, leases that keep others from opening a file.
# All of them use one of Python's own files.
own = os.open(os.__file__, os.O_RDONLY)
try:
    import fcntl
    def control(command, argument=0):
        return forbidden(lambda: fcntl.fcntl(own, command, argument))
    def request(number, argument=bytes(8)):
        return forbidden(lambda: fcntl.ioctl(own, number, argument))
    try_all({
        "owners of descriptors (F_SETOWN)": control(8, os.getpid()),
        "owners of pipes (F_SETOWN)": forbidden(lambda: fcntl.fcntl(1, 8, os.getppid())),
        "owners of descriptors (F_SETOWN_EX)": control(15, bytes(8)),
        "signals of descriptors (F_SETSIG)": control(10),
        "asynchronous descriptors (F_SETFL)": control(4, os.O_ASYNC),
        "leases (F_SETLEASE)": control(1024, 0),
        "watching folders (F_NOTIFY)": control(1026),
        "the size of pipes (F_SETPIPE_SZ)": forbidden(lambda: fcntl.fcntl(1, 1031, 4096)),
        "locks (F_SETLK)": control(6, bytes(32)),
        "locks (F_OFD_SETLK)": control(37, bytes(32)),
        "locks (flock)": forbidden(lambda: fcntl.flock(own, fcntl.LOCK_SH | fcntl.LOCK_NB)),
        "owners of descriptors (FIOSETOWN)": request(0x8901),
        "owners of descriptors (SIOCSPGRP)": request(0x8902),
        "asynchronous descriptors (FIOASYNC)": request(0x5452),
        "typing into a terminal (TIOCSTI)": forbidden(lambda: fcntl.ioctl(0, 0x5412, b"\n")),
    })
except ImportError:
    pass

# Calls for which Python has no function. Their arguments are invalid, so that none has an effect.
try:
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    def call(number, *arguments):
        def run():
            ctypes.set_errno(0)
            all_arguments = [*arguments] + [-1] * (6 - len(arguments))
            if libc.syscall(*map(ctypes.c_long, [number, *all_arguments])) < 0:
                raise OSError(ctypes.get_errno(), "")
        return forbidden(run)
    parent = os.getppid()
    arguments = {
        "kill": (parent, 0), "tkill": (parent, 0), "tgkill": (parent, parent, 0),
        "prlimit64": (parent, 7, 0, 0), "sched_getaffinity": (parent, 0, 0), "clock_gettime": (~parent << 3 | 2, 0),
        "msgget": (-1, 0), "semget": (-1, 0, 0), "shmget": (-1, 0, 0), "madvise": (0, 0, 100), "inotify_init1": (0,),
    }
    try_all({
        f"the system call {name}": call(number, *arguments.get(name, ()))
        for name, number in FACTS["calls"].items()
    })
except (ImportError, OSError):
    pass

if "writing outside" in works: os.remove(f"../arithmo-{os.getpid()}")
print(", ".join(works) or "closed")
