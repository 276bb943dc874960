//! The CUDA stream that CubeCL computes on.
//!
//! Work of ours joins CubeCL's without waiting only on its own stream, which CubeCL 0.10 hands out nowhere. Its server
//! writes the stream's address when it is formatted for debugging, though, and there it is read, once, and checked
//! with the driver. Where the form has changed, nothing is found, and nothing of ours is put on a stream.

use std::fmt::{self, Debug, Write};
use std::sync::Once;

use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use cudarc::driver::sys::{self, CUresult, CUstream, CUstream_flags};

/// What stands before the address of the first stream.
const BEFORE: &str = "StreamPool { streams: [Some(StreamWrapper { stream: Stream { sys: 0x";

/// Lets CubeCL compute on one stream, unless it has begun to compute.
///
/// By default it has one for each thread, each with memory of its own. With one there is no doubt which it is, and what
/// a thread gives back another can take.
pub(super) fn one() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        config.streaming.max_streams = 1;
        // `set` would panic where somebody was faster.
        let mut current = CubeClRuntimeConfig::storage().lock();
        current.get_or_insert_with(|| config.into());
    });
}

/// The stream of `server`, CubeCL's. The calling thread must have the device's context.
pub(super) fn of(server: &impl Debug) -> Result<CUstream, String> {
    let streams = CubeClRuntimeConfig::get().streaming.max_streams;
    if streams != 1 {
        return Err(format!("CubeCL was started with {streams} streams, not with one"));
    }
    let stream = address(server)? as CUstream;
    check(stream)?;
    Ok(stream)
}

/// The address of the first stream in what `server` writes.
fn address(server: &impl Debug) -> Result<usize, String> {
    let mut scan = Scan::default();
    // Stopped as soon as the address is complete: what follows is long.
    let _ = write!(scan, "{server:?}");
    let address = usize::from_str_radix(&scan.digits, 16).ok();
    let address = address.filter(|address| *address != 0 && scan.complete);
    address.ok_or_else(|| "CubeCL's stream is not where version 0.10.0 has it".to_string())
}

/// Looks for the digits after [`BEFORE`] in what is written to it, piece by piece.
#[derive(Default)]
struct Scan {
    /// Of what was written, the last, in which the next pieces may complete [`BEFORE`].
    last: String,
    found: bool,
    digits: String,
    complete: bool,
}

impl Scan {
    fn read_digits(&mut self, text: &str) -> fmt::Result {
        let count = text.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(text.len());
        self.digits.push_str(&text[..count]);
        self.complete = count < text.len();
        match self.complete {
            true => Err(fmt::Error),
            false => Ok(()),
        }
    }
}

impl Write for Scan {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        if self.found {
            return self.read_digits(piece);
        }
        self.last.push_str(piece);
        if let Some(at) = self.last.find(BEFORE) {
            self.found = true;
            let rest = self.last.split_off(at + BEFORE.len());
            return self.read_digits(&rest);
        }
        let done = self.last.len().saturating_sub(BEFORE.len());
        self.last.drain(..self.last.floor_char_boundary(done));
        Ok(())
    }
}

/// Asks the driver whether `stream` is one as CubeCL makes them.
#[allow(unsafe_code, reason = "calls of the driver")]
fn check(stream: CUstream) -> Result<(), String> {
    let (mut flags, mut of_stream, mut current) = (0, std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the results are places of the types that the driver writes. The stream was read where CubeCL writes its
    // own, which lives as long as the program.
    let asked = unsafe {
        [
            sys::cuStreamGetFlags(stream, &mut flags),
            sys::cuStreamGetCtx(stream, &mut of_stream),
            sys::cuCtxGetCurrent(&mut current),
        ]
    };
    if let Some(error) = asked.into_iter().find(|result| *result != CUresult::CUDA_SUCCESS) {
        return Err(format!("the driver knows no stream where CubeCL's should be ({error:?})"));
    }
    match flags == CUstream_flags::CU_STREAM_NON_BLOCKING as u32 && of_stream == current {
        true => Ok(()),
        false => Err("what was taken for CubeCL's stream is another".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written as it is, in pieces of some length.
    struct Text(String, usize);

    impl Debug for Text {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let characters: Vec<char> = self.0.chars().collect();
            characters
                .chunks(self.1)
                .try_for_each(|piece| f.write_str(&piece.iter().collect::<String>()))
        }
    }

    fn in_text(text: &str) -> Result<usize, String> {
        let found = [1, 2, 7, 1000].map(|length| address(&Text(text.to_string(), length)));
        assert!(found.iter().all(|f| *f == found[0]), "{found:?}");
        found[0].clone()
    }

    /// The names of CubeCL's types, down to the stream.
    #[allow(dead_code, reason = "formatted, not read")]
    mod like_cubecl {
        #[derive(Debug)]
        pub(super) struct CudaServer {
            pub(super) ctx: CudaContext,
            pub(super) streams: MultiStream,
            pub(super) comm_stream: *mut u8,
        }
        #[derive(Debug)]
        pub(super) struct CudaContext {
            pub(super) context: *mut u8,
            pub(super) sys: *mut u8,
        }
        #[derive(Debug)]
        pub(super) struct MultiStream {
            pub(super) streams: StreamPool,
        }
        #[derive(Debug)]
        pub(super) struct StreamPool {
            pub(super) streams: Vec<Option<StreamWrapper>>,
        }
        #[derive(Debug)]
        pub(super) struct StreamWrapper {
            pub(super) stream: Stream,
        }
        #[derive(Debug)]
        pub(super) struct Stream {
            pub(super) sys: *mut u8,
            pub(super) errors: Vec<u8>,
        }
    }

    #[test]
    fn the_address_is_that_of_the_first_stream() {
        use like_cubecl::*;
        let at = |address: usize| address as *mut u8;
        let stream = |address| {
            let (sys, errors) = (at(address), Vec::new());
            let stream = Stream { sys, errors };
            Some(StreamWrapper { stream })
        };
        let server = |streams| CudaServer {
            ctx: CudaContext { context: at(0x1111), sys: at(0x2222) },
            streams: MultiStream { streams: StreamPool { streams } },
            comm_stream: at(0x3333),
        };
        let found = address(&server(vec![stream(0x7f3a_00c0_de10), stream(0x4444)]));
        assert_eq!(found, Ok(0x7f3a_00c0_de10));
        assert!(address(&server(vec![stream(0), stream(0x4444)])).is_err());
        assert!(address(&server(vec![None, stream(0x4444)])).is_err());
        assert!(address(&server(Vec::new())).is_err());
    }

    #[test]
    fn what_is_no_address_is_refused() {
        assert_eq!(in_text(&format!("ä {BEFORE}7fAb10, errors")), Ok(0x7f_ab10));
        for rest in ["", "7fab", ", errors", "0, errors", "xyz, ", "-1, "] {
            assert!(in_text(&format!("{BEFORE}{rest}")).is_err(), "{rest}");
        }
        let too_long = "f".repeat(17);
        assert!(in_text(&format!("{BEFORE}{too_long}, ")).is_err());
        assert!(in_text("Stream { sys: 0x7fab10, errors").is_err());
        assert!(in_text("").is_err());
    }
}
