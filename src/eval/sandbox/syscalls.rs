//! The system calls that a generated program may make, each with the arguments allowed for it.
//!
//! A call that is not listed, or whose arguments break its rule, fails with "operation not permitted". A call belongs in the
//! list only if it changes nothing outside its own process: no file, no other process, no device. The 32-bit interfaces do
//! not bypass the list: `int 0x80` ends the program, and x32 numbers are not listed.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// A condition on one argument of a call, given by its index from 0.
enum When {
    /// The argument's low 32 bits, which the kernel reads, are one of these values.
    OneOf(u8, &'static [u32]),
    /// The argument's low 32 bits, which the kernel reads, are below this value.
    Below(u8, u32),
    /// All bits of this mask are zero in the argument.
    Zero(u8, u64),
}

/// A list of conditions that must all hold. An empty list allows any arguments.
type Rule = &'static [When];

const ANY: Rule = &[];

/// Flags of `open` for reading existing files. All others are forbidden: they write, create or lock, make the descriptor
/// send signals (`O_ASYNC`), or open without the permission to read (`O_PATH`).
const OPEN_FLAGS: u32 =
    (libc::O_CLOEXEC | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_NOCTTY | libc::O_NONBLOCK)
        as u32
        | LARGE_FILE;

/// The kernel's `O_LARGEFILE`, which 64-bit C libraries define as zero but musl passes nevertheless.
const LARGE_FILE: u32 = if cfg!(target_arch = "aarch64") { 0o400_000 } else { 0o100_000 };

const NOT_READING: u64 = !OPEN_FLAGS as u64;

/// Commands of `fcntl` on the process's own table of descriptors. Others must not be listed: `F_SETOWN`, `F_SETSIG` and
/// `F_SETFL` with `O_ASYNC` send any signal to any process; leases and locks stop others from opening a file; `F_NOTIFY`
/// watches a folder; `F_SETPIPE_SZ` takes kernel memory.
const FCNTL_COMMANDS: [u32; 5] = [
    libc::F_DUPFD as u32,
    libc::F_GETFD as u32,
    libc::F_SETFD as u32,
    libc::F_GETFL as u32,
    libc::F_DUPFD_CLOEXEC as u32,
];

/// Requests of `ioctl` that ask whether a descriptor is a terminal (`TCGETS`, `TCGETS2`) or set whether exec closes it
/// (`FIOCLEX`, `FIONCLEX`). Others would signal processes (`FIOASYNC`, `FIOSETOWN`) or type into a terminal (`TIOCSTI`).
const IOCTL_REQUESTS: [u32; 4] = [0x5401, 0x802c_542a, 0x5451, 0x5450];

/// `FUTEX_WAIT`, `_WAKE`, `_WAIT_BITSET` and `_WAKE_BITSET`, all with `FUTEX_PRIVATE_FLAG`. Without this flag, they act on
/// shared memory, where other processes may wait.
const FUTEX_OPERATIONS: [u32; 5] = [128, 129, 128 | 9, 128 | 10, 256 | 128 | 9];

/// `MADV_DONTNEED`, `_FREE`, `_HUGEPAGE` and `_NOHUGEPAGE` for the process's own pages. `MADV_HWPOISON` and
/// `MADV_SOFT_OFFLINE` would take memory from the whole machine.
const ADVICE: [u32; 4] = [4, 8, 14, 15];

/// Flags of `mmap` for memory that is scarce: reserved huge pages, and pages that cannot be swapped out.
const SCARCE_MEMORY: u64 = (libc::MAP_HUGETLB | libc::MAP_LOCKED) as u64;

/// End of the numbers of clocks of the machine and the calling process. Higher numbers are clocks of other processes, or
/// alarms.
const CLOCKS: u32 = 8;

const ALLOWED: &[(i64, Rule)] = &[
    // Starting and ending. Landlock allows only the interpreter to be executed. It keeps these rules, and gets no rights
    // from a set-user-ID bit (no_new_privs).
    (libc::SYS_execve, ANY),
    (libc::SYS_exit, ANY),
    (libc::SYS_exit_group, ANY),
    // Addresses in the process's own memory that the kernel writes to when a thread ends or is moved to another core.
    (libc::SYS_set_tid_address, ANY),
    (libc::SYS_set_robust_list, ANY),
    (libc::SYS_rseq, ANY),
    (libc::SYS_futex, &[When::OneOf(1, &FUTEX_OPERATIONS)]),
    // ARCH_SET_FS and ARCH_GET_FS: the register for thread-local variables.
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_arch_prctl, &[When::OneOf(0, &[0x1002, 0x1003])]),
    // The process's own memory, within RLIMIT_AS. Files are mapped as they were opened: for reading.
    (libc::SYS_brk, ANY),
    (libc::SYS_mmap, &[When::Zero(3, SCARCE_MEMORY)]),
    (libc::SYS_munmap, ANY),
    (libc::SYS_mremap, ANY),
    (libc::SYS_mprotect, ANY),
    (libc::SYS_madvise, &[When::OneOf(2, &ADVICE)]),
    // Opening for reading. Landlock determines which files.
    (libc::SYS_openat, &[When::Zero(2, NOT_READING & 0xffff_ffff)]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, &[When::Zero(1, NOT_READING & 0xffff_ffff)]),
    // Open files: the program's own, /dev/null and two pipes to the evaluation, which reads a limited number of bytes.
    (libc::SYS_read, ANY),
    (libc::SYS_readv, ANY),
    (libc::SYS_pread64, ANY),
    (libc::SYS_write, ANY),
    (libc::SYS_writev, ANY),
    (libc::SYS_lseek, ANY),
    (libc::SYS_close, ANY),
    (libc::SYS_close_range, ANY),
    (libc::SYS_fcntl, &[When::OneOf(1, &FCNTL_COMMANDS)]),
    (libc::SYS_ioctl, &[When::OneOf(1, &IOCTL_REQUESTS)]),
    (libc::SYS_dup, ANY),
    (libc::SYS_dup3, ANY),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_dup2, ANY),
    // Waiting for the same files, limited by the wall clock. Nothing can be added to an epoll set.
    (libc::SYS_ppoll, ANY),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, ANY),
    (libc::SYS_epoll_create1, ANY),
    // Metadata. Landlock cannot restrict it: a program can see that a file exists, its size, owner and times, but not its
    // content (docs/sandbox.md).
    (libc::SYS_fstat, ANY),
    (libc::SYS_newfstatat, ANY),
    (libc::SYS_statx, ANY),
    (libc::SYS_readlinkat, ANY),
    (libc::SYS_faccessat, ANY),
    (libc::SYS_faccessat2, ANY),
    (libc::SYS_getcwd, ANY),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_stat, ANY),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lstat, ANY),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_access, ANY),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_readlink, ANY),
    // Listing an open folder. Landlock determines which folders can be opened.
    (libc::SYS_getdents64, ANY),
    // Handling of signals by the process itself. It can send none: no kill, no timer, no message queue, no alarm.
    (libc::SYS_rt_sigaction, ANY),
    (libc::SYS_rt_sigprocmask, ANY),
    (libc::SYS_rt_sigreturn, ANY),
    (libc::SYS_sigaltstack, ANY),
    // Time, and sleeping.
    (libc::SYS_clock_gettime, &[When::Below(0, CLOCKS)]),
    (libc::SYS_clock_getres, &[When::Below(0, CLOCKS)]),
    (libc::SYS_clock_nanosleep, &[When::Below(0, CLOCKS)]),
    (libc::SYS_nanosleep, ANY),
    (libc::SYS_gettimeofday, ANY),
    // Information about the process and the machine. Calls that can name another process may only pass 0, itself.
    (libc::SYS_getrandom, ANY),
    (libc::SYS_getpid, ANY),
    (libc::SYS_getppid, ANY),
    (libc::SYS_gettid, ANY),
    (libc::SYS_getuid, ANY),
    (libc::SYS_geteuid, ANY),
    (libc::SYS_getgid, ANY),
    (libc::SYS_getegid, ANY),
    (libc::SYS_getrusage, ANY),
    (libc::SYS_times, ANY),
    (libc::SYS_uname, ANY),
    (libc::SYS_sysinfo, ANY),
    (libc::SYS_sched_getaffinity, &[When::OneOf(0, &[0])]),
    (libc::SYS_sched_yield, ANY),
    // Limits can be read but not set: the new limit must be a null pointer.
    (libc::SYS_prlimit64, &[When::OneOf(0, &[0]), When::Zero(2, u64::MAX)]),
];

/// Builds the filter that allows the listed calls.
///
/// # Errors
/// There is no filter for this processor.
pub(super) fn filter() -> Result<BpfProgram, String> {
    let rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED
        .iter()
        .map(|(call, rule)| Ok((*call, alternatives(rule)?)))
        .collect::<Result<_, seccompiler::BackendError>>()
        .map_err(described)?;
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(described)?;
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)
        .and_then(BpfProgram::try_from)
        .map_err(described)
}

fn described(error: impl std::fmt::Display) -> String {
    format!("seccomp: {error}")
}

/// Converts `rule` to seccompiler's form: a list of rules of which one must match, each a list of conditions that must all
/// hold. An empty list of rules allows any arguments.
fn alternatives(rule: Rule) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let mut rules: Vec<Vec<SeccompCondition>> = vec![Vec::new()];
    for condition in rule {
        let choices = conditions(condition)?;
        rules = rules
            .iter()
            .flat_map(|before| {
                choices
                    .iter()
                    .map(|choice| [before.as_slice(), std::slice::from_ref(choice)].concat())
            })
            .collect();
    }
    rules.into_iter().filter(|conditions| !conditions.is_empty()).map(SeccompRule::new).collect()
}

/// Converts `when` to a list of conditions of which one must hold.
fn conditions(when: &When) -> Result<Vec<SeccompCondition>, seccompiler::BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    match *when {
        When::OneOf(argument, values) => values
            .iter()
            .map(|value| {
                SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, u64::from(*value))
            })
            .collect(),
        When::Below(argument, end) => {
            SeccompCondition::new(argument, Dword, SeccompCmpOp::Lt, u64::from(end))
                .map(|condition| vec![condition])
        }
        When::Zero(argument, bits) => {
            SeccompCondition::new(argument, Qword, SeccompCmpOp::MaskedEq(bits), 0)
                .map(|condition| vec![condition])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_listed_once() {
        let numbers: BTreeMap<i64, usize> =
            ALLOWED.iter().enumerate().map(|(index, (call, _))| (*call, index)).collect();
        assert_eq!(numbers.len(), ALLOWED.len());
        assert!(filter().is_ok());
    }

    #[test]
    fn conditions_on_two_arguments_hold_together() {
        assert_eq!(alternatives(ANY).unwrap().len(), 0);
        assert_eq!(alternatives(&[When::OneOf(1, &[1, 2, 3])]).unwrap().len(), 3);
        // 2 values x 1 = two rules of two conditions each.
        let both = alternatives(&[When::OneOf(0, &[1, 2]), When::Zero(2, 1)]).unwrap();
        assert_eq!(both.len(), 2);
    }
}
