//! What a process gives up before Python starts in it: limits, files, system calls.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    path_beneath_rules,
};
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Where a system keeps the shared libraries every program needs.
const LIBRARIES: [&str; 6] =
    ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"];

/// Restricts this process, and what it becomes, for good. `program` can still be started.
///
/// # Errors
/// What could not be done.
pub(super) fn restrict(
    cpu_seconds: u64,
    memory_bytes: u64,
    readable: &[PathBuf],
    program: &Path,
) -> Result<(), String> {
    let filter = system_calls()?;
    // Should the evaluation be killed, its programs go with it.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(said("the parent's end"))?;
    limits(cpu_seconds, memory_bytes)?;
    files(readable, program)?;
    seccompiler::apply_filter(&filter).map_err(said("seccomp"))
}

fn said<E: Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}

fn limits(cpu_seconds: u64, memory_bytes: u64) -> Result<(), String> {
    for (resource, warned, most) in [
        // The warning ends a program that does not handle it, and says why it ended.
        (Resource::Cpu, cpu_seconds, cpu_seconds + 1),
        (Resource::As, memory_bytes, memory_bytes),
        (Resource::Fsize, 0, 0),
        (Resource::Core, 0, 0),
        (Resource::Nofile, 64, 64),
    ] {
        let limit = Rlimit { current: Some(warned), maximum: Some(most) };
        setrlimit(resource, limit).map_err(said("limits"))?;
    }
    Ok(())
}

/// Reading Python's own files is all that is left of the file system.
fn files(readable: &[PathBuf], program: &Path) -> Result<(), String> {
    let reading = AccessFs::from_read(ABI::V1);
    let libraries = LIBRARIES.iter().map(PathBuf::from);
    let paths: Vec<PathBuf> = libraries
        .chain(readable.iter().cloned())
        .chain([program.to_path_buf()])
        .filter(|path| path.exists())
        .collect();
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .and_then(|ruleset| {
            let newer = ruleset.set_compatibility(CompatLevel::BestEffort);
            newer.handle_access(AccessFs::from_all(ABI::V5))
        })
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.add_rules(path_beneath_rules(&paths, reading)))
        .and_then(landlock::RulesetCreated::restrict_self)
        .map(|_| ())
        .map_err(said("Landlock"))
}

/// Everything computing and reading takes; any other call fails with "operation not permitted".
fn system_calls() -> Result<BpfProgram, String> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let when = |argument: u8, operator: SeccompCmpOp, value: i64| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value as u64)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(said("seccomp"))
    };
    // Files are opened for reading, and only those that are there.
    let writing = i64::from(libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC);
    let reads = |argument| when(argument, SeccompCmpOp::MaskedEq(writing as u64), 0);
    rules.insert(libc::SYS_openat, vec![reads(2)?]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, vec![reads(1)?]);
    // Limits can be read, not set.
    rules.insert(libc::SYS_prlimit64, vec![when(2, SeccompCmpOp::Eq, 0)?]);
    let requests = REQUESTS.map(|request| when(1, SeccompCmpOp::Eq, request));
    rules.insert(libc::SYS_ioctl, requests.into_iter().collect::<Result<_, _>>()?);
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(said("seccomp"))?;
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)
        .and_then(BpfProgram::try_from)
        .map_err(said("seccomp"))
}

/// Whether a file is a terminal (`TCGETS`), and that it closes with exec (`FIOCLEX`, `FIONCLEX`).
const REQUESTS: [i64; 3] = [0x5401, 0x5451, 0x5450];

const ALLOWED: &[i64] = &[
    // starting, ending
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_futex,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    // memory
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    // reading files, printing
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    // its own signals
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // time, chance, who it is
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
];
