//! Finds NVIDIA's libraries where Python's wheels put them, which the system's loader does not search.
//!
//! cudarc opens the libraries by name. A library that is open already is found by its name wherever its file lies, so
//! opening a wheel's file first is enough.

#![allow(unsafe_code, reason = "opening a shared library runs its initializers")]

use std::fs::read_dir;
use std::path::{Path, PathBuf};
use std::sync::Once;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// The libraries, in the order in which they are opened: NVRTC opens its builtins by name when it compiles.
const LIBRARIES: [&str; 3] = ["libnvrtc-builtins.so.13", "libnvrtc.so.13", "libcublasLt.so.13"];

/// Opens each library that the loader does not find itself, from the first folder that has it, and keeps it open. A
/// library that is nowhere stays closed: whoever needs it says so. Later calls do nothing.
pub(super) fn open_from_wheels() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let folders = folders(&site_packages());
        for library in LIBRARIES {
            // SAFETY: these are NVIDIA's libraries, whose initializers have no preconditions.
            if unsafe { Library::open(Some(library), RTLD_NOW | RTLD_GLOBAL) }
                .map(std::mem::forget)
                .is_ok()
            {
                continue;
            }
            let file = folders.iter().find_map(|folder| file_of(library, folder));
            // SAFETY: as above.
            let opened =
                file.map(|file| unsafe { Library::open(Some(file), RTLD_NOW | RTLD_GLOBAL) });
            if let Some(Ok(opened)) = opened {
                std::mem::forget(opened);
            }
        }
    });
}

/// Returns the file in `folder` that is `library` or a later minor version of it (`libnvrtc-builtins.so.13.0`).
fn file_of(library: &str, folder: &Path) -> Option<PathBuf> {
    let mut files: Vec<PathBuf> = read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let rest = name.strip_prefix(library);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
        .collect();
    files.sort();
    files.into_iter().next()
}

/// Returns the folders of libraries below Python's `site_packages`, and of an installed toolkit.
fn folders(site_packages: &[PathBuf]) -> Vec<PathBuf> {
    let toolkit =
        std::env::var_os("CUDA_PATH").map_or_else(|| "/usr/local/cuda".into(), PathBuf::from);
    let mut folders = vec![toolkit.join("lib64"), toolkit.join("lib")];
    folders.extend(site_packages.iter().map(|packages| packages.join("nvidia/cu13/lib")));
    folders
}

/// Returns the folders in which Python looks for packages: of the active environment, of the first `python3` on the
/// PATH, of the user and of the system.
fn site_packages() -> Vec<PathBuf> {
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].map(std::env::var_os).into_iter().flatten();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = std::env::split_paths(&path).find(|folder| folder.join("python3").exists());
    let path_root = first.and_then(|folder| Some(folder.parent()?.to_path_buf()));
    let user = std::env::home_dir().map(|home| home.join(".local"));
    let roots: Vec<PathBuf> = environments
        .map(PathBuf::from)
        .chain(path_root)
        .chain(user)
        .chain(["/usr/local", "/usr"].map(PathBuf::from))
        .collect();
    roots.iter().flat_map(|root| packages_below(&root.join("lib"))).collect()
}

/// Returns `pythonX.Y/site-packages` and `pythonX.Y/dist-packages` in a `lib` folder, the latest Python first.
fn packages_below(lib: &Path) -> Vec<PathBuf> {
    let entries = read_dir(lib).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut pythons: Vec<PathBuf> = entries
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with("python3"))
        })
        .collect();
    pythons.sort();
    pythons.reverse();
    let names = ["site-packages", "dist-packages"];
    pythons.iter().flat_map(|python| names.map(|name| python.join(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_wheels_are_found_with_and_without_a_minor_version() {
        let root = std::env::temp_dir().join(format!("arithmo-wheels-{}", std::process::id()));
        let lib = root.join("lib/python3.11/site-packages/nvidia/cu13/lib");
        std::fs::create_dir_all(&lib).unwrap();
        for name in
            ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13", "libnvrtc.so.130", "libcublas.so.13"]
        {
            std::fs::write(lib.join(name), "").unwrap();
        }
        let folders = folders(&packages_below(&root.join("lib")));
        let find = |library: &str| folders.iter().find_map(|folder| file_of(library, folder));
        let name = |path: Option<PathBuf>| path.filter(|path| path.starts_with(&root));
        assert_eq!(name(find(LIBRARIES[0])), Some(lib.join("libnvrtc-builtins.so.13.0")));
        assert_eq!(name(find(LIBRARIES[1])), Some(lib.join("libnvrtc.so.13")));
        assert_eq!(name(find(LIBRARIES[2])), None);
        std::fs::remove_dir_all(root).unwrap();
    }
}
