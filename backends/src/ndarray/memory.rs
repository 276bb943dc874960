//! The CPU as a device: its name, and its memory according to Linux's `/proc` and control groups.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Cpu;
use crate::device_info::dtypes_of;
use crate::{BackendKind, DeviceClass, DeviceInfo, DeviceMemory};

/// Returns the only device of this backend.
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

/// Returns the model name of the CPU, or its architecture if the system does not report one.
pub(crate) fn name() -> String {
    let info = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_string())
    });
    model.unwrap_or_else(|| format!("CPU ({})", std::env::consts::ARCH))
}

/// Returns the memory that this process can still allocate: `MemAvailable`, or the limit of its
/// control groups if that is lower.
pub(super) fn available_bytes() -> Option<u64> {
    let available = meminfo("MemAvailable:")?;
    let allowed = control_groups().into_iter().filter_map(|group| group_remaining_bytes(&group));
    Some(allowed.fold(available, u64::min))
}

/// Returns the largest resident set of this process so far (`VmHWM` on Linux).
///
/// The kernel computes it from counters that lag by some pages, so that it can fall a little; the
/// largest value reported is kept.
pub(super) fn peak_resident_bytes() -> Option<u64> {
    static PEAK: AtomicU64 = AtomicU64::new(0);
    let bytes = field(&read_to_string("/proc/self/status").ok()?, "VmHWM:")?;
    Some(PEAK.fetch_max(bytes, Ordering::Relaxed).max(bytes))
}

/// Returns a field of `/proc/meminfo` in bytes.
fn meminfo(key: &str) -> Option<u64> {
    field(&read_to_string("/proc/meminfo").ok()?, key)
}

/// Returns the folders of this process's control group and of its ancestors (version 2), as far as
/// they are visible.
fn control_groups() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let lines = read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = lines.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = root.join(own.unwrap_or_default());
    let around = own.ancestors().take_while(|folder| folder.starts_with(root));
    around.map(Path::to_path_buf).collect()
}

/// Returns the bytes that a control group can still allocate: its limit minus its usage, not
/// counting reclaimable files.
fn group_remaining_bytes(group: &Path) -> Option<u64> {
    let read = |name: &str| read_to_string(group.join(name)).ok();
    remaining_bytes(
        &read("memory.max")?,
        &read("memory.current")?,
        &read("memory.stat").unwrap_or_default(),
    )
}

/// Returns the remaining bytes; `None` for the limit `max`, which means no limit.
fn remaining_bytes(limit: &str, used: &str, stat: &str) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?;
    let used: u64 = used.trim().parse().ok()?;
    let files = stat.lines().find_map(|line| {
        let count = line.strip_prefix("inactive_file ")?;
        count.trim().parse::<u64>().ok()
    });
    let unreclaimable = used.saturating_sub(files.unwrap_or(0));
    Some(limit.saturating_sub(unreclaimable))
}

/// Returns the field `key` of a file in the format of `/proc/meminfo` in bytes.
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
    fn the_peak_covers_touched_memory() {
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
        assert_eq!(remaining_bytes("10000\n", "5300\n", stat), Some(5000));
        assert_eq!(remaining_bytes("1000\n", "5300\n", stat), Some(0));
        assert_eq!(remaining_bytes("max\n", "5300\n", stat), None);
    }
}
