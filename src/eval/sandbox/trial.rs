//! The trial: a Python program that tries everything that must not work in the sandbox, run before any generated program.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::LIBRARIES;

/// System calls that reach other processes, files or devices. The trial makes each with harmless arguments.
/// `prlimit64`, `sched_getaffinity`, `clock_gettime` and `madvise` are allowed, but not with the trial's arguments.
#[cfg(all(target_os = "linux", target_endian = "little"))]
const CALLS: &[(&str, i64)] = &[
    // other processes
    ("kill", libc::SYS_kill),
    ("tkill", libc::SYS_tkill),
    ("tgkill", libc::SYS_tgkill),
    ("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo),
    ("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo),
    ("pidfd_open", libc::SYS_pidfd_open),
    ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
    ("pidfd_getfd", libc::SYS_pidfd_getfd),
    ("ptrace", libc::SYS_ptrace),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("process_madvise", libc::SYS_process_madvise),
    ("kcmp", libc::SYS_kcmp),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("setpriority", libc::SYS_setpriority),
    ("ioprio_set", libc::SYS_ioprio_set),
    ("sched_setaffinity", libc::SYS_sched_setaffinity),
    ("sched_getaffinity", libc::SYS_sched_getaffinity),
    ("sched_setscheduler", libc::SYS_sched_setscheduler),
    ("sched_setattr", libc::SYS_sched_setattr),
    ("prlimit64", libc::SYS_prlimit64),
    ("clock_gettime", libc::SYS_clock_gettime),
    ("clone3", libc::SYS_clone3),
    ("execveat", libc::SYS_execveat),
    // timers, queues and shared memory
    ("timer_create", libc::SYS_timer_create),
    ("setitimer", libc::SYS_setitimer),
    ("timerfd_create", libc::SYS_timerfd_create),
    ("mq_open", libc::SYS_mq_open),
    ("mq_notify", libc::SYS_mq_notify),
    ("msgget", libc::SYS_msgget),
    ("semget", libc::SYS_semget),
    ("shmget", libc::SYS_shmget),
    ("memfd_create", libc::SYS_memfd_create),
    ("inotify_init1", libc::SYS_inotify_init1),
    ("fanotify_init", libc::SYS_fanotify_init),
    ("madvise", libc::SYS_madvise),
    // ways around the filter, and the kernel's own machinery
    ("prctl", libc::SYS_prctl),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("bpf", libc::SYS_bpf),
    ("seccomp", libc::SYS_seccomp),
    ("keyctl", libc::SYS_keyctl),
    ("add_key", libc::SYS_add_key),
    ("unshare", libc::SYS_unshare),
    ("setns", libc::SYS_setns),
    ("personality", libc::SYS_personality),
    ("mount", libc::SYS_mount),
    ("chroot", libc::SYS_chroot),
    ("clock_settime", libc::SYS_clock_settime),
    ("syslog", libc::SYS_syslog),
    // files
    ("openat2", libc::SYS_openat2),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("getxattr", libc::SYS_getxattr),
    ("ftruncate", libc::SYS_ftruncate),
    ("fchmod", libc::SYS_fchmod),
    ("recvmsg", libc::SYS_recvmsg),
    ("splice", libc::SYS_splice),
];

#[cfg(not(all(target_os = "linux", target_endian = "little")))]
const CALLS: &[(&str, i64)] = &[];

/// Returns the trial program for a sandbox in which `readable` and the system's libraries may be read. It prints
/// "closed", or the names of the attempts that succeed.
pub(super) fn trial(readable: &[PathBuf]) -> String {
    let calls: Map<String, Value> =
        CALLS.iter().map(|(name, number)| (name.to_string(), json!(number))).collect();
    let libraries = LIBRARIES.iter().map(PathBuf::from);
    let readable: Vec<String> = libraries
        .filter_map(|path| path.canonicalize().ok())
        .chain(readable.iter().cloned())
        .map(|path| path.display().to_string())
        .collect();
    let home = std::env::home_dir().unwrap_or_default();
    let facts = json!({
        "calls": calls,
        "readable": readable,
        "home": home.display().to_string(),
    });
    // Without booleans and nulls, JSON is a Python literal.
    format!("FACTS = {facts}\n{}", include_str!("trial.py"))
}
