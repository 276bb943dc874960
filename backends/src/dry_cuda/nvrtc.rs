//! NVIDIA's run-time compiler (NVRTC), which needs no card. The loader must find it, and `NVRTC_FOLDER` must name the folder
//! that holds CUDA's headers: `scripts/nvrtc.sh` fetches both. It is not `CUDA_PATH`, because a build depends on that.

#![allow(unsafe_code, reason = "calls of NVRTC")]

use std::ffi::{CStr, CString};
use std::path::Path;

use cudarc::nvrtc::{result, sys};

use crate::cubecl::catch_panic;

/// What `ptxas` says of a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Registers per thread.
    pub registers: usize,
    /// Bytes per thread that are written to memory because registers ran out.
    pub spill_stores: usize,
    /// Bytes per thread that are read back.
    pub spill_loads: usize,
    /// Bytes per thread of local memory, spills included.
    pub stack: usize,
}

/// Returns NVRTC's version, major and minor.
///
/// # Errors
/// The library or CUDA's headers are not found.
pub fn version() -> Result<(i32, i32), String> {
    include_folder()?;
    catch_panic(|| {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are valid for the call.
        unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
        (major, minor)
    })
}

/// Compiles a kernel for an architecture (`sm_86`) as CubeCL does on a card, and returns what it uses.
///
/// # Errors
/// The compiler's messages, or why there is no compiler.
pub fn compile(source: &str, architecture: &str) -> Result<Usage, String> {
    let include = include_folder()?;
    let options = [
        format!("--gpu-architecture={architecture}"),
        format!("--include-path={include}"),
        "-lineinfo".to_string(),
        format!("--include-path={include}/cccl"),
        // The only option that CubeCL does not give.
        "--ptxas-options=-v".to_string(),
    ];
    let source = CString::new(source).map_err(|error| error.to_string())?;
    let program = Program::new(&source)?;
    // SAFETY: the program exists until it is dropped.
    let compiled = unsafe { result::compile_program(program.0, &options) };
    let log = program.log()?;
    match compiled {
        Ok(()) => parse(&log).ok_or(format!("ptxas does not say what the kernel uses:\n{log}")),
        Err(error) => Err(format!("{error}\n{log}")),
    }
}

fn include_folder() -> Result<String, String> {
    let folder =
        std::env::var_os("NVRTC_FOLDER").ok_or("NVRTC_FOLDER is not set: run scripts/nvrtc.sh")?;
    let folder = Path::new(&folder).join("include");
    if folder.join("cuda_bf16.h").is_file() {
        Ok(folder.display().to_string())
    } else {
        Err(format!("{} does not hold CUDA's headers: run scripts/nvrtc.sh", folder.display()))
    }
}

/// A program of NVRTC's.
struct Program(sys::nvrtcProgram);

impl Program {
    fn new(source: &CStr) -> Result<Self, String> {
        let program = result::create_program(source, None).map_err(|error| error.to_string())?;
        Ok(Self(program))
    }

    fn log(&self) -> Result<String, String> {
        // SAFETY: the program exists until it is dropped.
        let log = unsafe { result::get_program_log(self.0) }.map_err(|error| error.to_string())?;
        let bytes: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|c| *c != 0).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it was created by `new` and is destroyed nowhere else.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// Reads the messages of `ptxas -v`.
fn parse(log: &str) -> Option<Usage> {
    let words: Vec<&str> = log.split([' ', ',', '\n', '\t']).filter(|w| !w.is_empty()).collect();
    let before = |name: &[&str]| {
        let place = words.windows(name.len()).position(|window| window == name)?;
        words.get(place.checked_sub(1)?)?.parse().ok()
    };
    Some(Usage {
        registers: before(&["registers"])?,
        spill_stores: before(&["bytes", "spill", "stores"])?,
        spill_loads: before(&["bytes", "spill", "loads"])?,
        stack: before(&["bytes", "stack", "frame"])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_ptxas_are_read() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'attend' for 'sm_80'\n\
            ptxas info    : Function properties for attend\n    \
            16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads\n\
            ptxas info    : Used 64 registers, used 1 barriers, 480 bytes cmem[0]\n";
        let usage = Usage { registers: 64, spill_stores: 12, spill_loads: 20, stack: 16 };
        assert_eq!(parse(log), Some(usage));
        assert_eq!(parse("error"), None);
    }
}
