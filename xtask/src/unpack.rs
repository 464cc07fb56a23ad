//! Compressed kernels and modules, told apart by their first bytes.

use anyhow::{Context, Result};
use std::io::Read as _;

const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

/// Unpacks xz or zstd; `None` when it is neither.
pub(crate) fn unpack(bytes: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut out = Vec::with_capacity(bytes.len() * 4);
    if bytes.starts_with(XZ) {
        lzma_rust2::XzReader::new(bytes, false).read_to_end(&mut out).context("bad xz data")?;
    } else if bytes.starts_with(ZSTD) {
        let mut reader = ruzstd::decoding::StreamingDecoder::new(bytes).context("bad zstd data")?;
        reader.read_to_end(&mut out).context("bad zstd data")?;
    } else {
        return Ok(None);
    }
    Ok(Some(out))
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
    fn broken_data_is() {
        assert!(unpack(&[XZ, b"nonsense"].concat()).is_err());
        assert!(unpack(&[ZSTD, b"nonsense"].concat()).is_err());
    }
}
