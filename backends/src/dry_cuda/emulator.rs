//! Executes CUDA C++ on the CPU: a kernel's source is compiled by the system's C++ compiler against headers that stand for
//! CUDA's (`emulator/`), and its threads run as fibers. It is slow, and meant for tensors of some thousand values.

#![allow(
    unsafe_code,
    reason = "compiled kernels are opened as shared libraries and called by address"
)]

use std::ffi::{CStr, c_char, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};

use super::record::KernelRecord;

/// The folder of the headers and of the program that runs the threads.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/dry_cuda/emulator");

/// The compiler's options. The kernels read addresses as other types and let integers overflow, as they do on a card. Products are
/// rounded before they are added. glibc's check of `longjmp` is off, because it takes a jump to another stack for an error.
const OPTIONS: &str = "-std=c++17 -O1 -fPIC -fno-strict-aliasing -fwrapv -ffp-contract=off -march=native -U_FORTIFY_SOURCE -w";

/// The option with which the compiler reports each access to memory, to the functions of `emulator/races.h`.
const REPORT_ACCESSES: &str = "-fsanitize=thread";

/// The environment variable that, set to `1`, has every kernel searched for races. A launch takes some ten times as long then.
const RACES_VARIABLE: &str = "ARITHMO_RACES";

/// Kernels that are not ours and have a race. What a warp stores from its matrices, cubek 0.2 reads without `__syncwarp`, which CUDA
/// asks for; on a card, the threads of a warp are together there.
const KNOWN_RACES: [&str; 1] = ["cubek_matmul::matmul_entry"];

/// The header that every kernel includes first.
const FIRST_HEADER: &str = "cuda_runtime.h";

/// A kernel's function, with a pointer to each argument.
type Call = unsafe extern "C" fn(arguments: *mut *mut c_void);

/// The function `run` of `emulator/runner.cpp`.
type Run = unsafe extern "C" fn(Call, *mut *mut c_void, Size, Size, usize, bool) -> *const c_char;

/// The numbers of blocks of a grid or of threads of a block.
#[repr(C)]
struct Size {
    x: u32,
    y: u32,
    z: u32,
}

/// A kernel that was compiled for the CPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct CompiledKernel {
    call: Call,
    block: (u32, u32, u32),
    shared_bytes: usize,
    has_barriers: bool,
}

/// Returns why nothing can be executed on this machine, if so.
///
/// # Errors
/// There is no C++ compiler, or it refuses the program that runs the threads.
pub fn start() -> Result<(), String> {
    runner().map(drop)
}

impl CompiledKernel {
    /// Compiles a kernel, which is searched for races if [`RACES_VARIABLE`] asks for it and it is not one of [`KNOWN_RACES`].
    ///
    /// # Errors
    /// The compiler's messages: the source may use what the headers do not have, such as PTX.
    pub(super) fn new(record: &KernelRecord) -> Result<Self, String> {
        let finds_races = std::env::var(RACES_VARIABLE).is_ok_and(|value| value == "1")
            && !KNOWN_RACES.contains(&record.name.as_str());
        Self::compile(record, finds_races)
    }

    fn compile(record: &KernelRecord, finds_races: bool) -> Result<Self, String> {
        start()?;
        let entry_point = &record.entry_point;
        let call = format!(
            "\nextern \"C\" void call(void **arguments) {{ call_kernel({entry_point}, arguments); }}\n"
        );
        let source = format!("{}{call}", record.source);
        let library = compile(&source, RTLD_LOCAL, finds_races)?;
        // SAFETY: the function was added above, with this signature.
        let call = unsafe { library.get::<Call>(b"call") }.map_err(|error| error.to_string())?;
        let call = *call;
        // The kernel is called until the program ends.
        std::mem::forget(library);
        let has_barriers = ["__sync", "_sync("].iter().any(|name| record.source.contains(name));
        let (block, shared_bytes) = (record.block, record.shared_bytes);
        Ok(Self { call, block, shared_bytes, has_barriers })
    }

    /// Runs a grid of blocks. `arguments` holds a pointer to each of the kernel's arguments.
    ///
    /// # Errors
    /// The threads of a block wait for one another for ever, it writes behind its shared memory, a matrix is not aligned, or there
    /// is a race.
    ///
    /// # Safety
    /// The arguments are those that the kernel takes, and all that it reads and writes through them is in memory.
    pub(super) unsafe fn run(
        &self,
        grid: (u32, u32, u32),
        arguments: &mut [*mut c_void],
    ) -> Result<(), String> {
        let run = runner()?;
        let size = |(x, y, z)| Size { x, y, z };
        let (grid, block) = (size(grid), size(self.block));
        let (shared_bytes, has_barriers) = (self.shared_bytes, self.has_barriers);
        let arguments = arguments.as_mut_ptr();
        // SAFETY: the caller promises that the arguments fit.
        let problem = unsafe { run(self.call, arguments, grid, block, shared_bytes, has_barriers) };
        if problem.is_null() {
            return Ok(());
        }
        // SAFETY: the runner returns a text that stays until its next call, which waits for the lock.
        Err(unsafe { CStr::from_ptr(problem) }.to_string_lossy().into_owned())
    }
}

/// Returns the function that runs launches, locked: threads of all devices share its built-in variables.
fn runner() -> Result<MutexGuard<'static, Run>, String> {
    static RUNNER: OnceLock<Result<Mutex<Run>, String>> = OnceLock::new();
    let open = || {
        let file = Path::new(FOLDER).join("runner.cpp");
        let source =
            std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        // The kernels find its variables and functions.
        let library = compile(&source, RTLD_GLOBAL, false)?;
        // SAFETY: runner.cpp defines it so.
        let run = unsafe { library.get::<Run>(b"run") }.map_err(|error| error.to_string())?;
        let run = *run;
        std::mem::forget(library);
        Ok(Mutex::new(run))
    };
    let runner = RUNNER.get_or_init(open).as_ref().map_err(Clone::clone)?;
    Ok(runner.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Compiles and opens a shared library, whose symbols later libraries find if `visibility` says so.
fn compile(source: &str, visibility: i32, finds_races: bool) -> Result<Library, String> {
    let (object, file) = (temporary_file("o"), temporary_file("so"));
    let mut command = compiler(finds_races);
    command.arg("-c").arg("-I").arg(compiled_headers(finds_races)?);
    command.args(["-I", FOLDER, "-x", "c++", "-"]);
    call(command.arg("-o").arg(&object), source)?;
    // Linked in a step of its own, without the library that the compiler would add.
    let linked = call(compiler(false).arg("-shared").arg(&object).arg("-o").arg(&file), "");
    let _ = std::fs::remove_file(&object);
    linked?;
    // SAFETY: what was compiled has no initializers of its own.
    let library = unsafe { Library::open(Some(&file), RTLD_NOW | visibility) };
    // The library stays open without its file.
    let _ = std::fs::remove_file(&file);
    library.map_err(|error| error.to_string())
}

/// Returns a folder in which the compiler finds all headers compiled in advance, which halves its time. Processes share it.
fn compiled_headers(find_races: bool) -> Result<&'static Path, String> {
    static COMPILED: [OnceLock<Result<PathBuf, String>>; 2] = [OnceLock::new(), OnceLock::new()];
    let compile = || {
        let mut hasher = DefaultHasher::new();
        (OPTIONS, find_races).hash(&mut hasher);
        for name in ["runner.h", FIRST_HEADER, "cuda_half.h", "mma.h", "all.h"] {
            let file = Path::new(FOLDER).join(name);
            std::fs::read(&file)
                .map_err(|error| format!("{}: {error}", file.display()))?
                .hash(&mut hasher);
        }
        let folder = std::env::temp_dir().join(format!("arithmo-emulator-{:x}", hasher.finish()));
        let compiled = folder.join(format!("{FIRST_HEADER}.gch"));
        let failed = |error: std::io::Error| format!("{}: {error}", compiled.display());
        if !compiled.exists() {
            let file = temporary_file("gch");
            let mut command = compiler(find_races);
            command.args(["-I", FOLDER, "-x", "c++-header"]).arg(Path::new(FOLDER).join("all.h"));
            call(command.arg("-o").arg(&file), "")?;
            std::fs::create_dir_all(&folder).map_err(failed)?;
            std::fs::rename(&file, &compiled).map_err(failed)?;
        }
        Ok(folder)
    };
    COMPILED[usize::from(find_races)].get_or_init(compile).as_deref().map_err(Clone::clone)
}

/// Returns a call of the C++ compiler with the options of all its calls.
fn compiler(reports_accesses: bool) -> Command {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_string());
    let mut command = Command::new(compiler);
    command.args(OPTIONS.split(' '));
    command.args(reports_accesses.then_some(REPORT_ACCESSES));
    command
}

/// Runs a compiler on a source, and returns its first messages if it fails.
fn call(command: &mut Command, source: &str) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |error: std::io::Error| format!("{name}: {error}");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut process = command.spawn().map_err(failed)?;
    if let Some(mut input) = process.stdin.take() {
        // A compiler that ends early says why.
        let _ = input.write_all(source.as_bytes());
    }
    let output = process.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let messages = String::from_utf8_lossy(&output.stderr);
    let first: Vec<_> = messages.lines().take(12).collect();
    Err(format!("{name}: {}", first.join("\n")))
}

/// Returns a file that nothing else uses.
fn temporary_file(extension: &str) -> PathBuf {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("arithmo-emulator-{}-{number}.{extension}", std::process::id());
    std::env::temp_dir().join(name)
}

#[cfg(test)]
#[allow(clippy::print_stderr, reason = "a test says that it is skipped")]
mod tests {
    use burn::tensor::{bf16, f16};
    use cubecl_runtime::id::KernelId;

    use super::*;

    /// The threads of the blocks in these tests.
    const THREADS: usize = 64;

    /// Runs a kernel with two buffers on one block of [`THREADS`] threads. Returns nothing where there is no compiler.
    fn run<I, O>(
        body: &str,
        input: &[I],
        output: &mut [O],
        types: [&str; 2],
    ) -> Option<Result<(), String>> {
        run_blocks(body, input, output, types, 1, false)
    }

    /// Runs a kernel as [`run`] does, on some blocks.
    fn run_blocks<I, O>(
        body: &str,
        input: &[I],
        output: &mut [O],
        types: [&str; 2],
        blocks: u32,
        finds_races: bool,
    ) -> Option<Result<(), String>> {
        if let Err(reason) = start() {
            eprintln!("SKIPPED: {reason}");
            return None;
        }
        let [input_type, output_type] = types;
        let source = format!(
            "#include <cuda_runtime.h>\n#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n#include <mma.h>\n
             extern \"C\" __global__ void kernel(const {input_type} *in, {output_type} *out) {{
                 extern __shared__ __align__(16) unsigned char dynamic_shared_mem[];
                 float *shared = reinterpret_cast<float *>(dynamic_shared_mem);
                 unsigned i = threadIdx.x;
                 {body}
             }}"
        );
        let record = KernelRecord {
            id: KernelId::new::<()>(),
            name: "kernel".to_string(),
            entry_point: "kernel".to_string(),
            source,
            block: (THREADS as u32, 1, 1),
            shared_bytes: THREADS * size_of::<f32>(),
            launches: 0,
            max_grid: (1, 1, 1),
        };
        let mut buffers = [input.as_ptr() as usize, output.as_mut_ptr() as usize];
        let mut arguments = buffers.each_mut().map(|buffer| std::ptr::from_mut(buffer).cast());
        let kernel = CompiledKernel::compile(&record, finds_races).unwrap();
        // SAFETY: the kernel takes two buffers, and `body` stays within them.
        Some(unsafe { kernel.run((blocks, 1, 1), &mut arguments) })
    }

    /// Returns whether a race is found in a kernel on two blocks.
    fn has_race(body: &str) -> Option<bool> {
        let mut output = vec![0.0f32; 4 * THREADS];
        let (input, types) = ([0.0f32; THREADS], ["float", "float"]);
        match run_blocks(body, &input, &mut output, types, 2, true)? {
            Ok(()) => Some(false),
            Err(error) => Some(error.starts_with("a race")),
        }
    }

    #[test]
    fn races_are_found() {
        let product = |between: &str| {
            format!(
                "nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 8, 8, 16, float> m;
                 nvcuda::wmma::fill_fragment(m, 1.0f);
                 if (i < 32) {{ nvcuda::wmma::store_matrix_sync(shared, m, 8, nvcuda::wmma::mem_row_major); }}
                 {between}
                 out[blockIdx.x * 64 + i] = shared[i];"
            )
        };
        for (body, expected) in [
            // Every thread has its own values.
            ("shared[i] = in[i]; out[blockIdx.x * 64 + i] = shared[i];".to_string(), false),
            ("shared[i] = in[i]; __syncthreads(); out[blockIdx.x * 64 + i] = shared[63 - i];".into(), false),
            // Within a warp.
            ("shared[i] = in[i]; __syncwarp(); out[blockIdx.x * 64 + i] = shared[i ^ 1];".into(), false),
            ("shared[i] = in[i]; out[blockIdx.x * 64 + i] = shared[i ^ 1];".into(), true),
            // A barrier of the warp does not order other warps.
            ("shared[i] = in[i]; __syncwarp(); out[blockIdx.x * 64 + i] = shared[63 - i];".into(), true),
            // Written after all have read, but before the barrier.
            ("shared[i] = in[i]; __syncthreads(); float x = shared[i ^ 32]; shared[i] = x; out[i] = 0;".into(), true),
            // All write the same memory.
            ("shared[0] = in[i];".into(), true),
            // Blocks write the same tensor, and others read it.
            ("out[i] = in[i];".into(), true),
            ("out[blockIdx.x * 64 + i] = in[i] + out[(1 - blockIdx.x) * 64 + i];".into(), true),
            ("atomicAdd(out, in[i]);".into(), false),
            // An exchange of values does not order memory.
            ("shared[i] = in[i]; float x = __shfl_xor_sync(-1, in[i], 1); out[blockIdx.x * 64 + i] = x + shared[i ^ 1];".into(), true),
            (product("__syncthreads();"), false),
            (product(""), true),
        ] {
            let Some(found) = has_race(&body) else { return };
            assert_eq!(found, expected, "{body}");
        }
    }

    #[test]
    fn matrices_must_be_aligned() {
        for (place, is_right) in [("shared + 8", true), ("shared + 4", false)] {
            let body = format!(
                "nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 4, 8, 16, float> m;
                 nvcuda::wmma::fill_fragment(m, 1.0f);
                 if (i < 32) {{ nvcuda::wmma::store_matrix_sync({place}, m, 8, nvcuda::wmma::mem_row_major); }}"
            );
            let mut output = vec![0.0f32; THREADS];
            let result = run(&body, &[0.0f32; THREADS], &mut output, ["float", "float"]);
            let Some(result) = result else { return };
            assert_eq!(result.is_ok(), is_right, "{result:?}");
        }
    }

    /// Reverses the input through shared memory, with `barrier` between the write and the read.
    fn reversed(barrier: &str) -> Option<(Vec<f32>, Result<(), String>)> {
        let input: Vec<f32> = (0..THREADS).map(|i| i as f32).collect();
        let mut output = vec![0.0f32; THREADS];
        let body = format!("shared[i] = in[i]; {barrier} out[i] = shared[63 - i];");
        let result = run(&body, &input, &mut output, ["float", "float"])?;
        Some((output, result))
    }

    #[test]
    fn a_missing_barrier_gives_wrong_results() {
        let expected: Vec<f32> = (0..THREADS).rev().map(|i| i as f32).collect();
        let Some((with, result)) = reversed("__syncthreads();") else { return };
        assert_eq!((with, result), (expected.clone(), Ok(())));
        let Some((without, result)) = reversed("__syncwarp();") else { return };
        assert_eq!(result, Ok(()));
        assert_ne!(without, expected);
    }

    #[test]
    fn faults_of_a_block_are_errors() {
        let mut output = vec![0.0f32; THREADS];
        let mut error = |body: &str| {
            let result = run(body, &[0.0f32; THREADS], &mut output, ["float", "float"])?;
            Some(result.unwrap_err())
        };
        let Some(barriers) =
            error("if (i < 5) {\n __syncthreads();\n } else {\n __syncthreads();\n }")
        else {
            return;
        };
        assert!(barriers.contains("wait at different barriers"), "{barriers}");
        let Some(behind) = error("shared[64] = in[i];") else { return };
        assert!(behind.contains("behind its shared memory"), "{behind}");
    }

    #[test]
    fn warps_exchange_values() {
        let input: Vec<f32> = (0..THREADS).map(|i| (i * i) as f32).collect();
        let mut output = vec![0.0f32; THREADS];
        let body = "out[i] = __shfl_xor_sync(-1, in[i], 3) + __shfl_down_sync(-1, in[i], 4)
                           + float(__ballot_sync(-1, i % 32 == 7 || i % 32 == 9));";
        let Some(result) = run(body, &input, &mut output, ["float", "float"]) else { return };
        assert_eq!(result, Ok(()));
        for (i, value) in output.into_iter().enumerate() {
            let down = if i % 32 < 28 { i + 4 } else { i };
            assert_eq!(
                value,
                input[i ^ 3] + input[down] + f32::from((1u16 << 7) | (1 << 9)),
                "{i}"
            );
        }
    }

    #[test]
    fn sixteen_bit_types_are_rounded_as_everywhere() {
        // Each f16 and bf16, what lies between two of them, and what is larger than all.
        let bits = (0..=u16::MAX).flat_map(|bits| {
            let (half, brain) = (f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32());
            [half, half * 1.0002, half * 1.000_488_3, brain, brain * 1.002, brain * 1.003_906_3]
        });
        let mut input: Vec<f32> = bits.collect();
        input.extend([65_519.9, 65_520.0, 1e30, -1e30, f32::MAX, 2.98e-8, 2.99e-8]);
        let count = input.len();
        for (name, round) in [
            ("__half", (|x| f16::from_f32(x).to_f32()) as fn(f32) -> f32),
            ("__nv_bfloat16", |x| bf16::from_f32(x).to_f32()),
        ] {
            let mut output = vec![0.0f32; count];
            let body = format!("for (; i < {count}; i += 64) out[i] = float({name}(in[i]));");
            let Some(result) = run(&body, &input, &mut output, ["float", "float"]) else { return };
            assert_eq!(result, Ok(()));
            for (x, ours) in input.iter().zip(output) {
                let expected = round(*x);
                let equal = ours == expected || (ours.is_nan() && expected.is_nan());
                assert!(equal, "{name}({x:e}) is {ours:e}, not {expected:e}");
            }
        }
    }
}
