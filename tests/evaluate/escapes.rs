//! Attempts to escape from the sandbox: ways that were open once, and similar ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use arithmo::eval::sandbox::{Limits, Outcome, Sandbox};

use crate::calls::{predictions, text};
use crate::programs::python_is_there;
use crate::signal::interrupted;
use crate::support::json_file;

fn open(python: &str) -> Sandbox {
    let launcher = Path::new(env!("CARGO_BIN_EXE_arithmo"));
    let limits = Limits { wall: Duration::from_secs(60), ..Limits::default() };
    Sandbox::open(launcher, python, limits).unwrap()
}

fn printed(sandbox: &Sandbox, program: &str) -> String {
    match sandbox.run(program).unwrap() {
        Outcome::Printed { output } => output,
        Outcome::Failed { reason } => panic!("{program}: {reason}"),
    }
}

/// A process outside the sandbox that must keep running. It is killed when dropped.
struct Victim(Child);

impl Victim {
    fn start() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().unwrap())
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Checks that a program cannot make another process the owner of a descriptor. The kernel signals the owner when the
/// descriptor is ready.
#[test]
fn no_descriptor_sends_a_signal_to_another_process() {
    if !python_is_there() {
        return;
    }
    let sandbox = open("python3");
    let mut victim = Victim::start();
    for owner in [
        "fcntl.fcntl(1, 8, PID)",
        "fcntl.fcntl(1, 15, struct.pack('ii', 1, PID))",
        "fcntl.ioctl(1, 0x8901, struct.pack('i', PID))",
        "fcntl.ioctl(1, 0x8902, struct.pack('i', PID))",
    ] {
        let attempts = [
            "fcntl.fcntl(1, 10, 9)",
            owner,
            "fcntl.fcntl(1, 4, fcntl.fcntl(1, 3) | 0o20000)",
            "fcntl.ioctl(1, 0x5452, struct.pack('i', 1))",
        ];
        let mut program = "import fcntl, struct\n".to_string();
        for attempt in attempts {
            let attempt = attempt.replace("PID", &victim.0.id().to_string());
            program += &format!(
                "try:\n    {attempt}\n    print({attempt:?})\nexcept PermissionError: pass\n"
            );
        }
        program += "for _ in range(60): print('x' * 100, flush=True)\n";
        let output = printed(&sandbox, &program);
        assert_eq!(output, format!("{}\n", "x".repeat(100)).repeat(60));
    }
    assert!(victim.is_running());
}

/// Checks that allowed system calls are refused with harmful arguments.
#[test]
fn harmful_system_call_arguments_are_refused() {
    if !python_is_there() {
        return;
    }
    let sandbox = open("python3");
    let attempts = [
        // leases, locks, notifications, pipes, seals
        "fcntl.fcntl(own, 1024, 0)",
        "fcntl.fcntl(own, 1024, 1)",
        "fcntl.fcntl(own, 6, bytes(32))",
        "fcntl.fcntl(own, 37, bytes(32))",
        "fcntl.fcntl(own, 1026, 0x3f)",
        "fcntl.fcntl(1, 1031, 1 << 20)",
        "fcntl.fcntl(1, 1033, 1)",
        "fcntl.fcntl(1, 4, os.O_NONBLOCK)",
        "fcntl.flock(own, fcntl.LOCK_SH)",
        // a 32-bit command with bits in the upper half
        "call(72, 1, 8 | 1 << 40, os.getppid())",
        // terminals
        "fcntl.ioctl(0, 0x5412, b'x')",
        "fcntl.ioctl(1, 0x5413, bytes(8))",
        // opening without reading, or with flags for more than reading
        "os.open('/etc', os.O_PATH)",
        "os.open(os.__file__, os.O_RDONLY | os.O_ASYNC)",
        "os.open(os.__file__, os.O_RDONLY | os.O_APPEND)",
        "os.open('.', os.O_TMPFILE)",
        "os.open(os.__file__, os.O_WRONLY)",
        // other processes
        "os.sched_getaffinity(os.getppid())",
        "os.sched_setaffinity(0, {0})",
        "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "os.nice(1)",
        "resource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
        "resource.prlimit(0, resource.RLIMIT_CPU, (1, 1))",
        "time.clock_gettime(~os.getppid() << 3 | 2)",
        "os.killpg(os.getpgid(0), 0)",
        "os.setsid()",
        "os.pidfd_open(os.getppid())",
        "signal.setitimer(signal.ITIMER_REAL, 1)",
        // memory that is locked, huge, damaged or shared
        "mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x2000)",
        "mmap.mmap(-1, 1 << 21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)",
        "mmap.mmap(-1, 4096).madvise(100)",
        "call(202, id(own), 1, 1)",
        // other programs
        "os.execv('/usr/bin/env', ['env'])",
    ];
    let mut program = "import ctypes, fcntl, mmap, os, resource, signal, time\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        def call(*arguments):\n\
        \x20   if libc.syscall(*map(ctypes.c_long, arguments)) < 0:\n\
        \x20       raise OSError(ctypes.get_errno(), '')\n\
        own = os.open(os.__file__, os.O_RDONLY)\n"
        .to_string();
    for attempt in attempts {
        if attempt.starts_with("call(") && cfg!(not(target_arch = "x86_64")) {
            continue;
        }
        program += &format!(
            "try:\n    {attempt}\n    print({attempt:?})\nexcept OSError as e:\n    if e.errno not in (1, 13): print({attempt:?}, repr(e))\n"
        );
    }
    assert_eq!(printed(&sandbox, &program), "");
    // System calls that Python itself makes still work.
    let program = "import fcntl, os, resource, time\n\
        own = os.open(os.__file__, os.O_RDONLY)\n\
        copy = fcntl.fcntl(own, fcntl.F_DUPFD, 20)\n\
        fcntl.fcntl(copy, fcntl.F_SETFD, 1)\n\
        print(os.get_inheritable(os.dup(copy)), os.isatty(1), fcntl.fcntl(own, fcntl.F_GETFL) & 3)\n\
        print(len(os.listdir(os.path.dirname(os.__file__))) > 0, resource.getrlimit(resource.RLIMIT_FSIZE))\n\
        print(time.monotonic() > 0, time.process_time() > 0, len(os.sched_getaffinity(0)) > 0)";
    assert_eq!(printed(&sandbox, program), "False False 0\nTrue (0, 0)\nTrue True True\n");
}

/// Calls every system call number that is not listed, in the 64-bit and x32 numbering, with harmless arguments. Checks
/// that all are refused.
#[test]
#[cfg(target_arch = "x86_64")]
fn unlisted_system_calls_are_refused() {
    if !python_is_there() {
        return;
    }
    // System calls that are allowed, some only with certain arguments. `syscalls.rs` says why.
    const LISTED: [u32; 68] = [
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 24, 25, 28, 32,
        33, 35, 39, 59, 60, 63, 72, 79, 89, 96, 98, 99, 100, 102, 104, 107, 108, 110, 131, 158,
        186, 202, 204, 217, 218, 228, 229, 230, 231, 257, 262, 267, 269, 271, 273, 291, 292, 302,
        318, 332, 334, 436, 439,
    ];
    // uretprobe and uprobe. The kernel does not filter them, and kills a program that calls them.
    const UNFILTERED: [u32; 2] = [335, 336];
    let program = format!(
        "import ctypes, errno\n\
         libc = ctypes.CDLL(None, use_errno=True)\n\
         listed = {LISTED:?} + {UNFILTERED:?}\n\
         made = []\n\
         for number in [*range(700), *range(0x40000000, 0x40000000 + 700), 1 << 31, (1 << 32) - 1]:\n\
         \x20   if number in listed: continue\n\
         \x20   ctypes.set_errno(0)\n\
         \x20   result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)\n\
         \x20   if result != -1 or ctypes.get_errno() != errno.EPERM: made.append((number, result, ctypes.get_errno()))\n\
         print(made)"
    );
    assert_eq!(printed(&open("python3"), &program), "[]\n");
}

/// Creates a virtual environment in `folder`. Returns its interpreter.
fn environment(folder: &Path) -> PathBuf {
    let status =
        Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(folder).status().unwrap();
    assert!(status.success());
    folder.join("bin/python")
}

fn site_packages(environment: &Path) -> PathBuf {
    let lib = fs::read_dir(environment.join("lib")).unwrap();
    lib.flatten().next().unwrap().path().join("site-packages")
}

/// Checks that an editable install, which adds the project's folder to `sys.path`, does not make that folder readable.
#[test]
fn editable_installs_do_not_make_projects_readable() {
    if !python_is_there() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let root = root.path().canonicalize().unwrap();
    let project = root.join("project");
    fs::create_dir_all(project.join(".git")).unwrap();
    fs::write(project.join(".env"), "API_KEY=secret").unwrap();
    fs::write(project.join("module.py"), "secret = 1").unwrap();
    let venv = project.join("venv");
    let python = environment(&venv);
    let packages = site_packages(&venv);
    fs::write(packages.join("__editable__.pth"), project.to_str().unwrap()).unwrap();
    fs::write(packages.join("loud.pth"), "import sys; print('loud')").unwrap();
    fs::write(packages.join("installed.py"), "value = 18").unwrap();
    let sandbox = open(python.to_str().unwrap());
    let program = format!(
        "import os, sys, installed\n\
         project = {project:?}\n\
         for attempt in (lambda: open(project + '/.env'), lambda: os.listdir(project), lambda: __import__('module')):\n\
         \x20   try: print(attempt())\n\
         \x20   except (OSError, ImportError): pass\n\
         print(project in sys.path, sys.prefix == project + '/venv', installed.value)",
        project = project.to_str().unwrap()
    );
    let output = printed(&sandbox, &program);
    assert!(output.ends_with("loud\nTrue True 18\n"), "{output}");
}

/// Checks a project whose folder is the prefix of its environment, as after `python -m venv .`.
#[test]
fn a_project_that_is_an_environment_is_not_readable() {
    if !python_is_there() {
        return;
    }
    let project = tempfile::tempdir().unwrap();
    let project = project.path().canonicalize().unwrap();
    let python = environment(&project);
    fs::write(project.join(".env"), "API_KEY=secret").unwrap();
    fs::write(site_packages(&project).join("installed.py"), "value = 18").unwrap();
    let sandbox = open(python.to_str().unwrap());
    let program = format!(
        "import sys, installed\n\
         try: print(open({env:?}).read())\n\
         except PermissionError: print(sys.prefix == {project:?}, installed.value)",
        env = project.join(".env").to_str().unwrap(),
        project = project.to_str().unwrap(),
    );
    assert_eq!(printed(&sandbox, &program), "True 18\n");
}

/// Checks the system's interpreter, whose prefix is /usr.
#[test]
fn a_prefix_is_not_readable_as_a_whole() {
    if !Path::new("/usr/bin/python3").exists() {
        return;
    }
    let sandbox = open("/usr/bin/python3");
    let program = "import os\n\
        for path in ('/usr', '/usr/bin', '/usr/share', '/usr/src', '/usr/local', '/', '/home', '/root', '/tmp'):\n\
        \x20   try: print(path, os.listdir(path))\n\
        \x20   except (PermissionError, FileNotFoundError): pass\n\
        import hashlib, json, math\n\
        print(hashlib.sha256(b'').hexdigest()[:8], math.comb(5, 2))";
    assert_eq!(printed(&sandbox, program), "e3b0c442 10\n");
}

/// Checks that the reason of a failure, which comes from the program's output, has a maximum length.
#[test]
fn failure_reasons_have_a_maximum_length() {
    if !python_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let answers = [
        " import sys\nsys.stderr.write('x' * 1000000)\nsys.exit(1)",
        " raise ValueError('y' * 1000000)",
        " print('z' * 60000)",
    ];
    let file = predictions(folder.path(), "gsm8k.jsonl", &answers);
    let args = ["evaluate", "gsm8k-pot", "--allow-code-execution", "--predictions"];
    crate::calls::printed(&[&args[..], &[text(&file)]].concat());
    let programs = json_file(&folder.path().join("programs.json"));
    for program in programs.as_array().unwrap().iter().take(2) {
        let reason = program["reason"].as_str().unwrap();
        assert!(reason.chars().count() <= 301, "{}", reason.len());
    }
    assert_eq!(programs[2]["output"].as_str().unwrap().len(), 60_001);
    let page = fs::read_to_string(folder.path().join("index.html")).unwrap();
    for letter in ["x", "y", "z"] {
        assert!(!page.contains(&letter.repeat(4001)), "{letter}");
    }
}

/// Checks that Ctrl-C ends a running program, and that the same command does not run finished ones again.
#[test]
#[cfg(unix)]
fn ctrl_c_ends_a_program_and_keeps_finished_ones() {
    if !python_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = " import time\nprint(18)\ntime.sleep(1e6)";
    let file = predictions(folder.path(), "gsm8k.jsonl", &[" print(7)", program]);
    let partial = folder.path().join("programs.partial.jsonl");
    let lines = || fs::read_to_string(&partial).map_or(0, |text| text.lines().count());
    let mut child = Command::new(env!("CARGO_BIN_EXE_arithmo"))
        .args(["evaluate", "gsm8k-pot", "--allow-code-execution"])
        .args(["--program-seconds", "3600", "--predictions", text(&file)])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The file has one line of settings and one for the first program.
    while lines() < 2 {
        assert!(child.try_wait().unwrap().is_none());
        thread::sleep(Duration::from_millis(10));
    }
    let output = interrupted(child);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{message}");
    assert!(message.contains("1 of 2 programs are kept"), "{message}");
    assert_eq!(lines(), 2);
    // A changed outcome shows that the kept one is used.
    let kept = fs::read_to_string(&partial).unwrap();
    let mut kept = kept.replace("7\\n", "70\\n").into_bytes();
    // The last line ends inside a character, as after a crash.
    kept.extend(b"[\"ab\", {\"outcome\": \"printed\", \"output\": \"\xc3");
    fs::write(&partial, kept).unwrap();
    let answers = [" print(7)", " print(1000)"];
    predictions(folder.path(), "gsm8k.jsonl", &answers);
    let args = ["evaluate", "gsm8k-pot", "--allow-code-execution"];
    let seconds = ["--program-seconds", "3600", "--predictions", text(&file)];
    crate::calls::printed(&[&args[..], &seconds[..]].concat());
    let programs = json_file(&folder.path().join("programs.json"));
    assert_eq!(programs[0]["output"], "70\n");
    assert_eq!(programs[1]["output"], "1000\n");
    assert!(!partial.exists());
}
