//! The CUDA stream that CubeCL computes on.
//!
//! Work of this crate runs in order with CubeCL's, without waiting, only if it is on the same stream, and CubeCL 0.10
//! has no API that returns it. The server's `Debug` output contains the stream's address, though. It is read from
//! there once and checked with the driver. If the output has another form, no stream is found and this crate queues
//! no work on one.

use std::fmt::{self, Debug, Write};
use std::sync::Once;

use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use cudarc::driver::sys::{self, CUresult, CUstream, CUstream_flags};

/// The text before the address of the first stream.
const ADDRESS_PREFIX: &str = "StreamPool { streams: [Some(StreamWrapper { stream: Stream { sys: 0x";

/// Configures CubeCL to compute on a single stream, unless it has already started.
///
/// By default it has one stream per thread, each with its own memory. With a single one it is certain which stream is
/// meant, and memory that one thread frees can be reused by another.
pub(super) fn use_single_stream() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        config.streaming.max_streams = 1;
        // `set` would panic if another thread had set the configuration first.
        let mut current = CubeClRuntimeConfig::storage().lock();
        current.get_or_insert_with(|| config.into());
    });
}

/// Returns the stream of CubeCL's `server`. The calling thread must have the device's context.
pub(super) fn server_stream(server: &impl Debug) -> Result<CUstream, String> {
    let streams = CubeClRuntimeConfig::get().streaming.max_streams;
    if streams != 1 {
        return Err(format!("CubeCL was started with {streams} streams, not with one"));
    }
    let stream = address(server)? as CUstream;
    check_stream(stream)?;
    Ok(stream)
}

/// Returns the address of the first stream in the `Debug` output of `server`.
fn address(server: &impl Debug) -> Result<usize, String> {
    let mut scan = AddressScanner::default();
    // Formatting stops as soon as the address is complete: the rest is long.
    let _ = write!(scan, "{server:?}");
    let address = usize::from_str_radix(&scan.digits, 16).ok();
    let address = address.filter(|address| *address != 0 && scan.complete);
    address.ok_or_else(|| {
        "CubeCL's debug output does not show its stream where version 0.10.0 does".to_string()
    })
}

/// Scans text that is written piece by piece for the digits after [`ADDRESS_PREFIX`].
#[derive(Default)]
struct AddressScanner {
    /// The end of the text so far, in which the next pieces may complete [`ADDRESS_PREFIX`].
    last: String,
    found: bool,
    digits: String,
    complete: bool,
}

impl AddressScanner {
    fn read_digits(&mut self, text: &str) -> fmt::Result {
        let count = text.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(text.len());
        self.digits.push_str(&text[..count]);
        self.complete = count < text.len();
        if self.complete { Err(fmt::Error) } else { Ok(()) }
    }
}

impl Write for AddressScanner {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        if self.found {
            return self.read_digits(piece);
        }
        self.last.push_str(piece);
        if let Some(at) = self.last.find(ADDRESS_PREFIX) {
            self.found = true;
            let rest = self.last.split_off(at + ADDRESS_PREFIX.len());
            return self.read_digits(&rest);
        }
        let surplus = self.last.len().saturating_sub(ADDRESS_PREFIX.len());
        self.last.drain(..self.last.floor_char_boundary(surplus));
        Ok(())
    }
}

/// Asks the driver whether `stream` has the flags and the context of CubeCL's streams.
#[allow(unsafe_code, reason = "calls of the driver")]
fn check_stream(stream: CUstream) -> Result<(), String> {
    let (mut flags, mut stream_context, mut current) =
        (0, std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the results have the types that the driver writes. The stream was read from CubeCL's own handle, which
    // lives as long as the program.
    let results = unsafe {
        [
            sys::cuStreamGetFlags(stream, &mut flags),
            sys::cuStreamGetCtx(stream, &mut stream_context),
            sys::cuCtxGetCurrent(&mut current),
        ]
    };
    if let Some(error) = results.into_iter().find(|result| *result != CUresult::CUDA_SUCCESS) {
        return Err(format!(
            "the driver finds no stream at the address where CubeCL's should be ({error:?})"
        ));
    }
    if flags == CUstream_flags::CU_STREAM_NON_BLOCKING as u32 && stream_context == current {
        Ok(())
    } else {
        Err("the stream at the address where CubeCL's should be is not CubeCL's".to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text that is written in pieces of the given length when it is formatted.
    struct Text(String, usize);

    impl Debug for Text {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let characters: Vec<char> = self.0.chars().collect();
            characters
                .chunks(self.1)
                .try_for_each(|piece| f.write_str(&piece.iter().collect::<String>()))
        }
    }

    fn address_in(text: &str) -> Result<usize, String> {
        let found = [1, 2, 7, 1000].map(|length| address(&Text(text.to_string(), length)));
        assert!(found.iter().all(|f| *f == found[0]), "{found:?}");
        found[0].clone()
    }

    /// Types with the names of CubeCL's, down to the stream.
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
    fn the_address_of_the_first_stream_is_found() {
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
    fn malformed_addresses_are_refused() {
        assert_eq!(address_in(&format!("ä {ADDRESS_PREFIX}7fAb10, errors")), Ok(0x7f_ab10));
        for rest in ["", "7fab", ", errors", "0, errors", "xyz, ", "-1, "] {
            assert!(address_in(&format!("{ADDRESS_PREFIX}{rest}")).is_err(), "{rest}");
        }
        let too_long = "f".repeat(17);
        assert!(address_in(&format!("{ADDRESS_PREFIX}{too_long}, ")).is_err());
        assert!(address_in("Stream { sys: 0x7fab10, errors").is_err());
        assert!(address_in("").is_err());
    }
}
