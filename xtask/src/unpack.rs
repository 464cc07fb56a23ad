//! Compressed kernels and modules, told apart by their first bytes.

use anyhow::{Context, Result};
use std::io::Read as _;

const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
/// The old frame of `lz4 -l`, which kernels are packed with.
const LZ4_LEGACY: &[u8] = b"\x02\x21\x4c\x18";
const LZ4_LEGACY_BLOCK_BYTES: usize = 8 << 20;

/// Unpacks xz, zstd or old lz4; `None` when it is none of them.
pub(crate) fn unpack(bytes: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut out = Vec::with_capacity(bytes.len() * 4);
    if bytes.starts_with(XZ) {
        lzma_rust2::XzReader::new(bytes, false).read_to_end(&mut out).context("bad xz data")?;
    } else if bytes.starts_with(ZSTD) {
        let mut reader = ruzstd::decoding::StreamingDecoder::new(bytes).context("bad zstd data")?;
        reader.read_to_end(&mut out).context("bad zstd data")?;
    } else if let Some(blocks) = bytes.strip_prefix(LZ4_LEGACY) {
        unpack_lz4(blocks, &mut out).context("bad lz4 data")?;
    } else {
        return Ok(None);
    }
    Ok(Some(out))
}

/// Blocks, each behind its packed size. A size that is larger than what is left is no size: a
/// kernel's payload ends with the four bytes of its unpacked length.
fn unpack_lz4(mut blocks: &[u8], out: &mut Vec<u8>) -> Result<()> {
    while let Some((size, rest)) = blocks.split_first_chunk::<4>() {
        let size = usize::try_from(u32::from_le_bytes(*size))?;
        let Some((block, rest)) = rest.split_at_checked(size) else {
            anyhow::ensure!(rest.is_empty(), "a block of {size} bytes where {} are", rest.len());
            break;
        };
        out.extend(lz4_flex::block::decompress(block, LZ4_LEGACY_BLOCK_BYTES)?);
        blocks = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_format_is_not_an_error() {
        assert_eq!(unpack(b"\x7fELF").unwrap(), None);
        assert_eq!(unpack(b"").unwrap(), None);
    }

    #[test]
    fn old_lz4_is_unpacked_block_by_block() {
        // One literal run of three bytes, twice, and the unpacked length behind.
        let block = [4, 0, 0, 0, 0x30, b'a', b'b', b'c'];
        let packed = [LZ4_LEGACY, &block, &block, &6u32.to_le_bytes()].concat();
        assert_eq!(unpack(&packed).unwrap().unwrap(), b"abcabc");
        assert!(unpack(&packed[..packed.len() - 6]).is_err());
    }

    #[test]
    fn broken_data_is() {
        assert!(unpack(&[XZ, b"nonsense"].concat()).is_err());
        assert!(unpack(&[ZSTD, b"nonsense"].concat()).is_err());
    }
}
