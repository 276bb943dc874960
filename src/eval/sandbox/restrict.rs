//! Restricts this process before Python starts in it: resource limits, files, signals, system calls.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    Scope, path_beneath_rules,
};
use rustix::process::{
    Resource, Rlimit, Signal, getppid, set_parent_process_death_signal, setrlimit,
};

use super::{LIBRARIES, Restriction, syscalls};

/// Lowest descriptor number that `prelude.py` does not close before the program runs.
const MAX_DESCRIPTOR: u32 = 1 << 20;

/// Restricts this process and `program`, which it becomes, permanently.
///
/// # Errors
/// A restriction cannot be applied. The error says which and why.
pub(super) fn apply(restriction: &Restriction, program: &Path) -> Result<(), String> {
    let filter = syscalls::filter()?;
    end_with_parent(restriction.parent)?;
    check_no_high_descriptor()?;
    set_limits(restriction)?;
    restrict_files_and_signals(restriction.readable, program)?;
    seccompiler::apply_filter(&filter).map_err(failed("seccomp"))
}

/// Tells the kernel to kill this process when its parent, the evaluation, ends.
fn end_with_parent(expected: u32) -> Result<(), String> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("parent death signal"))?;
    // The parent may have ended before.
    let parent = getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    if parent == Some(expected) {
        Ok(())
    } else {
        Err("the evaluation that started this process has ended".to_string())
    }
}

fn set_limits(restriction: &Restriction) -> Result<(), String> {
    let (cpu, memory) = (restriction.cpu_seconds, restriction.memory_bytes);
    for (resource, soft, hard) in [
        // The soft limit ends the program with SIGXCPU, which shows the reason. The hard limit ends a program that handles
        // that signal.
        (Resource::Cpu, cpu, cpu.saturating_add(1)),
        (Resource::As, memory, memory),
        (Resource::Fsize, 0, 0),
        // With a limit of 0 the kernel still starts a program that collects core dumps. With 1 it does not.
        (Resource::Core, 1, 1),
        (Resource::Nofile, 64, 64),
    ] {
        let limit = Rlimit { current: Some(soft), maximum: Some(hard) };
        setrlimit(resource, limit).map_err(failed("limits"))?;
    }
    Ok(())
}

/// Restricts file access to reading Python's own files and executing the interpreter. From Linux 6.12 on, this also forbids
/// signals to processes outside and connections to abstract sockets. Older kernels are sufficient, because seccomp forbids
/// both too.
fn restrict_files_and_signals(readable: &[PathBuf], program: &Path) -> Result<(), String> {
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let libraries = LIBRARIES.iter().map(Path::new);
    let executable: Vec<&Path> = libraries.chain([program]).collect();
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .and_then(|ruleset| {
            let newer = ruleset.set_compatibility(CompatLevel::BestEffort);
            newer.handle_access(AccessFs::from_all(ABI::V5))
        })
        .and_then(|ruleset| ruleset.scope(Scope::from_all(ABI::V6)))
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.add_rules(path_beneath_rules(readable, reading)))
        .and_then(|ruleset| {
            // The dynamic loader is executed too. It is in one of the folders of shared libraries.
            ruleset.add_rules(path_beneath_rules(&executable, reading | AccessFs::Execute))
        })
        .and_then(landlock::RulesetCreated::restrict_self)
        .map(|_| ())
        .map_err(failed("Landlock"))
}

fn failed<E: Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}

/// Returns an error if a descriptor is open that is too high to be closed before the program runs.
fn check_no_high_descriptor() -> Result<(), String> {
    let open = std::fs::read_dir("/proc/self/fd").map_err(failed("open files"))?;
    let highest =
        open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max();
    match highest.filter(|number| *number >= MAX_DESCRIPTOR) {
        Some(number) => Err(format!("descriptor {number} was left open; close it")),
        None => Ok(()),
    }
}
