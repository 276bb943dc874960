//! The CPU as a device: its name, and what memory there is, from the files of Linux's `/proc` and control groups.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Cpu;
use crate::devices::dtypes_of;
use crate::{BackendKind, DeviceClass, DeviceInfo, DeviceMemory};

/// The one device of this backend.
pub(crate) fn devices() -> Vec<DeviceInfo> {
    let memory = meminfo("MemTotal:").zip(available_bytes());
    vec![DeviceInfo {
        backend: BackendKind::NdArray,
        index: 0,
        name: name(),
        class: DeviceClass::Cpu,
        memory: memory.map(|(total, free)| DeviceMemory { total, free }),
        dtypes: dtypes_of::<Cpu>(&Default::default()),
        limits: None,
        is_default: true,
    }]
}

/// What the CPU's maker calls it, as far as the system tells.
pub(crate) fn name() -> String {
    let info = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_string())
    });
    model.unwrap_or_else(|| format!("CPU ({})", std::env::consts::ARCH))
}

/// Memory the system could still give to this process: `MemAvailable`, or what its control groups allow it, if less.
pub(super) fn available_bytes() -> Option<u64> {
    let available = meminfo("MemAvailable:")?;
    let allowed = groups().into_iter().filter_map(|group| room_in(&group));
    Some(allowed.fold(available, u64::min))
}

/// The largest resident set of this process so far (`VmHWM` on Linux).
///
/// The kernel reads it from counters that lag by some pages, so that it can fall a little; what was once reported stays.
pub(super) fn peak_resident_bytes() -> Option<u64> {
    static PEAK: AtomicU64 = AtomicU64::new(0);
    let bytes = field(&read_to_string("/proc/self/status").ok()?, "VmHWM:")?;
    Some(PEAK.fetch_max(bytes, Ordering::Relaxed).max(bytes))
}

fn meminfo(key: &str) -> Option<u64> {
    field(&read_to_string("/proc/meminfo").ok()?, key)
}

/// The folders of this process's control group and of those around it (version 2), as far as they are visible here.
fn groups() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let lines = read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = lines.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = root.join(own.unwrap_or_default());
    let around = own.ancestors().take_while(|folder| folder.starts_with(root));
    around.map(Path::to_path_buf).collect()
}

/// Bytes a control group can still take: its limit less what it holds, but for files it would give up.
fn room_in(group: &Path) -> Option<u64> {
    let read = |name: &str| read_to_string(group.join(name)).ok();
    room(&read("memory.max")?, &read("memory.current")?, &read("memory.stat").unwrap_or_default())
}

/// `None` for a limit of `max`, which is none.
fn room(limit: &str, held: &str, stat: &str) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?;
    let held: u64 = held.trim().parse().ok()?;
    let files = stat.lines().find_map(|line| {
        let count = line.strip_prefix("inactive_file ")?;
        count.trim().parse::<u64>().ok()
    });
    let kept = held.saturating_sub(files.unwrap_or(0));
    Some(limit.saturating_sub(kept))
}

/// The field called `key` of a file in the form of `/proc/meminfo`.
fn field(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_covers_what_was_touched() {
        let block = vec![1u8; 64 << 20];
        assert!(peak_resident_bytes() >= Some(block.len() as u64));
    }

    #[test]
    fn fields_are_kibibytes() {
        let text =
            "MemTotal:       24607844 kB\nMemAvailable:      1024 kB\nHugePages_Total:       0\n";
        assert_eq!(field(text, "MemAvailable:"), Some(1 << 20));
        assert_eq!(field(text, "HugePages_Total:"), None);
        assert_eq!(field(text, "MemFree:"), None);
    }

    #[test]
    fn a_group_gives_up_files_before_it_is_full() {
        let stat = "anon 5000\ninactive_file 300\nactive_file 70\n";
        assert_eq!(room("10000\n", "5300\n", stat), Some(5000));
        assert_eq!(room("1000\n", "5300\n", stat), Some(0));
        assert_eq!(room("max\n", "5300\n", stat), None);
    }
}
