//! Tests of programs that a model writes: what they may do, how they end, and how their output is judged.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use arithmo::eval::pot::{POT_SCORERS, program};
use arithmo::eval::sandbox::{Limits, Outcome, Sandbox};

use crate::support::shared;

/// Returns whether `python3` runs. If not, prints a note.
pub(crate) fn python_is_there() -> bool {
    let python = Command::new("python3").arg("--version").stdout(Stdio::null()).status();
    let there = python.is_ok_and(|status| status.success());
    if !there {
        eprintln!("SKIPPED: no python3");
    }
    there
}

/// Opens a sandbox with small limits, if `python3` runs.
fn sandbox() -> Option<Sandbox> {
    let limits = Limits {
        cpu_seconds: 1,
        wall: Duration::from_secs(4),
        memory_bytes: 256 << 20,
        output_bytes: 1000,
    };
    let launcher = Path::new(env!("CARGO_BIN_EXE_arithmo"));
    python_is_there().then(|| Sandbox::open(launcher, "python3", limits).unwrap())
}

#[test]
fn harmless_programs_print_their_answer() {
    let Some(sandbox) = sandbox() else { return };
    for (program, output) in [
        ("print(3 * 6)", "18\n"),
        (
            "import math, random, itertools, fractions\nprint(fractions.Fraction(1, 3), math.floor(2.5))",
            "1/3 2\n",
        ),
        ("def f(n): return n if n < 2 else f(n - 1) + f(n - 2)\nprint(f(15))", "610\n"),
        (
            "import datetime, decimal, re, collections, statistics\nprint(decimal.Decimal('0.1') * 3)",
            "0.3\n",
        ),
        ("print('é')", "é\n"),
        ("", ""),
    ] {
        let outcome = sandbox.run(program).unwrap();
        assert_eq!(outcome, Outcome::Printed { output: output.into() }, "{program}");
    }
}

#[test]
fn forbidden_actions_fail() {
    let Some(sandbox) = sandbox() else { return };
    let outside = tempfile::tempdir().unwrap();
    let precious = outside.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    let path = precious.display();
    for (what, program) in [
        ("an endless loop", "while True: pass".to_string()),
        ("waiting", "import time\ntime.sleep(1000)".into()),
        ("a large allocation", "x = bytearray(10 ** 10)\nprint(18)".into()),
        ("a growing list", "x = [0]\nwhile True: x += x".into()),
        ("a fork", "import os\nos.fork()\nprint(18)".into()),
        ("a fork bomb", "import os\nwhile True: os.fork()".into()),
        ("a process", "import subprocess\nprint(subprocess.run(['true']))".into()),
        ("a shell", "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo 18'])".into()),
        ("system", "import os, sys\nsys.exit(os.system('true') != 0)".into()),
        ("a thread", "import threading\nthreading.Thread(target=print).start()".into()),
        ("writing a file", "open('answer', 'w').write('18')".into()),
        ("writing outside", format!("open({:?}, 'a').write('x')", path.to_string())),
        ("emptying a file", format!("import os\nos.truncate({:?}, 0)", path.to_string())),
        ("removing a file", format!("import os\nos.remove({:?})", path.to_string())),
        ("renaming a file", format!("import os\nos.rename({:?}, '/tmp/x')", path.to_string())),
        ("reading a file", format!("print(open({:?}).read())", path.to_string())),
        ("making a folder", "import os\nos.mkdir('folder')".into()),
        ("a link", "import os\nos.symlink('/etc', 'etc')".into()),
        ("memory files", "import os\nos.memfd_create('x')".into()),
        ("a socket", "import socket\nsocket.socket()".into()),
        ("the web", "import urllib.request\nurllib.request.urlopen('http://127.0.0.1')".into()),
        ("a pair of sockets", "import socket\nsocket.socketpair()".into()),
        (
            "a socket past Python",
            "import ctypes, sys\nsys.exit(ctypes.CDLL(None).socket(2, 1, 0) != 3)".into(),
        ),
        ("the environment", "import os\nprint(os.environ['PATH'])".into()),
        (
            "the parent's environment",
            "import os\nprint(open(f'/proc/{os.getppid()}/environ').read())".into(),
        ),
        ("ending the parent", "import os\nos.kill(os.getppid(), 9)".into()),
        (
            "more CPU time",
            "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (50, 50))".into(),
        ),
        ("asking the user", "print(input())".into()),
        ("much output", "print('x' * 2000)".into()),
        ("endless output", "while True: print('x' * 100)".into()),
        ("an exception", "print(18)\n1 / 0".into()),
        ("an exit status", "print(18)\nimport sys\nsys.exit(3)".into()),
        ("no Python", "She has 18.".into()),
        ("a crash", "import ctypes\nctypes.string_at(0)".into()),
        ("not UTF-8", "import sys\nsys.stdout.buffer.write(b'\\xff')".into()),
        ("a long program", format!("x = {:?}", "x".repeat(200_000))),
        ("a zero byte", "print(1)\0".into()),
    ] {
        match sandbox.run(&program).unwrap() {
            Outcome::Failed { reason } => eprintln!("{what}: {reason}"),
            Outcome::Printed { output } => panic!("{what}: printed {output:?}"),
        }
    }
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn a_program_has_no_environment() {
    let Some(sandbox) = sandbox() else { return };
    // Python itself sets LC_CTYPE if there is no locale.
    let outcome = sandbox.run("import os\nprint(set(os.environ) - {'LC_CTYPE'})").unwrap();
    assert_eq!(outcome.output(), Some("set()\n"));
}

#[test]
fn unusable_interpreters_and_launchers_are_refused() {
    let launcher = Path::new(env!("CARGO_BIN_EXE_arithmo"));
    let error = Sandbox::open(launcher, "no-such-python", Limits::default()).unwrap_err();
    assert!(error.to_string().contains("--python: no-such-python"), "{error}");
    // `true` starts and prints nothing.
    assert!(Sandbox::open(launcher, "true", Limits::default()).is_err());
    if python_is_there() {
        // The trial run notices a launcher that restricts nothing.
        let folder = tempfile::tempdir().unwrap();
        let open = folder.path().join("open");
        fs::write(&open, "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift\nexec \"$@\"\n")
            .unwrap();
        Command::new("chmod").arg("+x").arg(&open).status().unwrap();
        let error = Sandbox::open(&open, "python3", Limits::default()).unwrap_err().to_string();
        assert!(error.contains("does not prevent") && error.contains("the network"), "{error}");
    }
}

#[test]
fn programs_are_found_in_completions() {
    for (completion, expected) in [
        (" print(4)", "print(4)"),
        ("\nx = 4\nprint(x)\n", "x = 4\nprint(x)"),
        ("Here:\n```python\nprint(4)\n```\nIt prints 4.", "print(4)\n"),
        ("```\nprint(4)\n```", "print(4)\n"),
        ("```python\nprint(4)", "print(4)"),
        ("print(4)\n\nQuestion: next?", "print(4)"),
        ("print('Answer: ', 4)", "print('Answer: ', 4)"),
        ("```", ""),
    ] {
        assert_eq!(program(completion), expected, "{completion:?}");
    }
}

#[test]
fn outputs_are_judged_by_both_rules() {
    for (output, expected) in [
        ("18", [true, true]),
        ("18.0\n", [true, true]),
        ("36/2", [true, true]),
        ("17.999999999999996", [false, true]),
        ("18 eggs", [false, true]),
        ("The answer is 18", [false, true]),
        ("3\n18", [false, true]),
        ("18\n3", [true, false]),
        ("-18", [false, false]),
        ("18.001", [false, false]),
        ("120 - y", [false, false]),
        ("inf", [false, false]),
        ("", [false, false]),
        ("1/0", [false, false]),
    ] {
        let verdicts = POT_SCORERS.map(|scorer| scorer.judge("#### 18", output).correct);
        assert_eq!(verdicts, expected, "{output:?}");
    }
    assert!(POT_SCORERS[0].judge("#### 1,000", "1000.0").correct);
}

/// Checks that 932 of Arithmo's 1,309 published outputs are correct, as published. As in the authors' reading, the
/// first line after a line of `=` is an output, and every further line is a known answer. One program printed before it
/// failed, so one of the 1,308 records counts twice.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn the_published_record_scores_as_published() {
    let Some(path) = shared("data/arithmo/gsm8k_zero_shot_PoT_results.txt") else {
        return;
    };
    let (mut output, mut correct, mut total, mut programs) = (None, [0, 0], 0, 0);
    for line in fs::read_to_string(path).unwrap().lines().map(str::trim) {
        if line.starts_with("===") {
            (output, programs) = (None, programs + 1);
        } else if let Some(output) = output {
            let known = format!("#### {line}");
            for (count, scorer) in correct.iter_mut().zip(POT_SCORERS) {
                *count += usize::from(scorer.judge(&known, output).correct);
            }
            total += 1;
        } else {
            output = Some(line);
        }
    }
    assert_eq!((correct[0], total, programs), (932, 1309, 1308));
    // The comparison by value accepts some more, such as 17.999999999999996 for 18.
    assert!((932..945).contains(&correct[1]), "{}", correct[1]);
}
