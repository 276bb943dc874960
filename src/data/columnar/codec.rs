//! Decompresses a page to exactly the size that its header states, so that a crafted page cannot take more memory.

use std::io::Read;

use parquet::basic::Compression;
use parquet::errors::Result;

use super::general;

/// Decompresses `input`.
///
/// # Errors
/// The data is damaged or does not decompress to exactly `size` bytes.
pub(super) fn decompress(codec: Compression, input: &[u8], size: usize) -> Result<Vec<u8>> {
    // An empty page may have no compressed form at all.
    if size == 0 {
        return Ok(Vec::new());
    }
    match codec {
        Compression::UNCOMPRESSED => read_exactly(input, size),
        Compression::SNAPPY => snappy(input, size),
        Compression::GZIP(_) => read_exactly(flate2::read::MultiGzDecoder::new(input), size),
        Compression::BROTLI(_) => {
            read_exactly(brotli_decompressor::Decompressor::new(input, 4096), size)
        }
        Compression::ZSTD(_) => zstd(input, size),
        Compression::LZ4_RAW => lz4_block(input, size),
        Compression::LZ4 => lz4(input, size),
        Compression::LZO => Err(general("compressed with LZO, which is not supported")),
    }
}

fn read_exactly(decoder: impl Read, size: usize) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    // The size in the header may be wrong, so the buffer grows with the data instead of being allocated in advance.
    let read = decoder.take(size as u64 + 1).read_to_end(&mut out);
    read.map_err(|e| general(format!("a page cannot be decompressed: {e}")))?;
    check_size(out, size)
}

/// Checks that `out` has `size` bytes and returns it.
fn check_size(out: Vec<u8>, size: usize) -> Result<Vec<u8>> {
    match out.len() {
        length if length == size => Ok(out),
        length if length > size => {
            Err(general(format!("a page decompresses to more than the {size} bytes in its header")))
        }
        length => Err(general(format!("a page has {length} bytes, but its header says {size}"))),
    }
}

fn snappy(input: &[u8], size: usize) -> Result<Vec<u8>> {
    let fail = |e| general(format!("a page cannot be decompressed: {e}"));
    let length = snap::raw::decompress_len(input).map_err(fail)?;
    if length != size {
        return Err(general(format!("a page has {length} bytes, but its header says {size}")));
    }
    let decoded = snap::raw::Decoder::new().decompress_vec(input);
    check_size(decoded.map_err(fail)?, size)
}

/// Decompresses one or more zstd frames.
fn zstd(mut input: &[u8], size: usize) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    while !input.is_empty() && out.len() <= size {
        let decoder = ruzstd::decoding::StreamingDecoder::new(&mut input)
            .map_err(|e| general(format!("a page cannot be decompressed: {e}")))?;
        let max_read = (size - out.len()) as u64 + 1;
        let read = decoder.take(max_read).read_to_end(&mut out);
        read.map_err(|e| general(format!("a page cannot be decompressed: {e}")))?;
    }
    check_size(out, size)
}

fn lz4_block(input: &[u8], size: usize) -> Result<Vec<u8>> {
    let mut out = vec![0; size];
    let length = lz4_flex::block::decompress_into(input, &mut out)
        .map_err(|e| general(format!("a page cannot be decompressed: {e}")))?;
    out.truncate(length);
    check_size(out, size)
}

/// Decompresses the codec called LZ4, of which writers produced three forms: Hadoop's blocks, a bare block, and LZ4 frames.
fn lz4(input: &[u8], size: usize) -> Result<Vec<u8>> {
    hadoop_lz4(input, size)
        .or_else(|_| lz4_block(input, size))
        .or_else(|_| read_exactly(lz4_flex::frame::FrameDecoder::new(input), size))
}

/// Decompresses Hadoop's LZ4 blocks. Each block follows two big-endian `u32` values: its decompressed and its compressed
/// size.
fn hadoop_lz4(mut input: &[u8], size: usize) -> Result<Vec<u8>> {
    let number = |bytes: &[u8; 4]| u32::from_be_bytes(*bytes) as usize;
    let damaged = || general("a block of a page is damaged");
    let mut out = Vec::new();
    while !input.is_empty() {
        let (length, rest) = input.split_first_chunk().ok_or_else(damaged)?;
        let (compressed, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
        let (length, compressed) = (number(length), number(compressed));
        if length > size - out.len() {
            return Err(damaged());
        }
        let (block, rest) = rest.split_at_checked(compressed).ok_or_else(damaged)?;
        out.extend(lz4_block(block, length)?);
        input = rest;
    }
    check_size(out, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `b"abc" * 1000` compressed by the reference implementation of zstd at level 3.
    const ZSTD: [u8; 20] = [
        0x28, 0xb5, 0x2f, 0xfd, 0x60, 0xb8, 0x0a, 0x55, 0x00, 0x00, 0x18, 0x61, 0x62, 0x63, 0x01,
        0x00, 0xb2, 0xd3, 0x77, 0x43,
    ];

    #[test]
    fn a_page_that_decompresses_to_another_size_is_refused() {
        let text = b"abc".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, &text).unwrap();
        let mut hadoop = [3000u32.to_be_bytes(), [0; 4]].concat();
        let block = lz4_flex::block::compress(&text);
        hadoop[4..].copy_from_slice(&(block.len() as u32).to_be_bytes());
        hadoop.extend(&block);
        for (codec, bytes) in [
            (Compression::UNCOMPRESSED, text.clone()),
            (Compression::GZIP(Default::default()), gzip.finish().unwrap()),
            (Compression::SNAPPY, snap::raw::Encoder::new().compress_vec(&text).unwrap()),
            (Compression::ZSTD(Default::default()), ZSTD.to_vec()),
            (Compression::LZ4_RAW, block.clone()),
            (Compression::LZ4, block),
            (Compression::LZ4, hadoop),
        ] {
            assert_eq!(decompress(codec, &bytes, 3000).unwrap(), text, "{codec}");
            for size in [1, 2999, 3001, 1 << 20] {
                assert!(decompress(codec, &bytes, size).is_err(), "{codec}, {size}");
            }
            assert!(decompress(codec, &bytes[..bytes.len() / 2], 3000).is_err(), "{codec}");
        }
        let twice = [ZSTD, ZSTD].concat();
        assert_eq!(
            decompress(Compression::ZSTD(Default::default()), &twice, 6000).unwrap().len(),
            6000
        );
    }
}
