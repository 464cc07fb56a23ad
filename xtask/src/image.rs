//! The kernel image: the ELF inside a bzImage, for a boot that does not unpack under emulation.

use crate::cmd::say;
use crate::{cache, unpack};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

const ELF: &[u8] = b"\x7fELF";

/// A path QEMU can boot: the unpacked ELF, kept at `keep`, or the image itself where its
/// compression is not one we know (slower, not wrong).
pub(crate) fn bootable(vmlinuz: &Path, keep: &Path) -> Result<PathBuf> {
    if keep.exists() {
        return Ok(keep.to_owned());
    }
    let bytes = fs::read(vmlinuz).with_context(|| format!("cannot read {}", vmlinuz.display()))?;
    if bytes.starts_with(ELF) {
        return Ok(vmlinuz.to_owned());
    }
    match payload(&bytes).map(unpack::unpack) {
        Some(Ok(Some(elf))) if elf.starts_with(ELF) => {
            cache::write_file(keep, &elf)?;
            Ok(keep.to_owned())
        }
        other => {
            let why = other.and_then(Result::err).map(|e| format!(" ({e:#})")).unwrap_or_default();
            say!("{}: booting it compressed{why}", vmlinuz.display());
            Ok(vmlinuz.to_owned())
        }
    }
}

/// The compressed part, by the boot protocol's header
/// (<https://docs.kernel.org/arch/x86/boot.html>: `setup_sects`, `payload_offset`, `payload_length`).
fn payload(bytes: &[u8]) -> Option<&[u8]> {
    const SECTOR_BYTES: usize = 512;
    if bytes.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let word = |at: usize| {
        let word = <[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?;
        usize::try_from(u32::from_le_bytes(word)).ok()
    };
    let sectors = match *bytes.get(0x1f1)? {
        0 => 4, // as the protocol has it
        n => usize::from(n),
    };
    let start = ((sectors + 1) * SECTOR_BYTES).checked_add(word(0x248)?)?;
    bytes.get(start..start.checked_add(word(0x24c)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bz_image(sectors: u8, offset: u32, payload: &[u8]) -> Vec<u8> {
        let start = (usize::from(sectors) + 1) * 512 + offset as usize;
        let mut image = vec![0; start];
        image[0x1f1] = sectors;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&offset.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn the_payload_is_where_the_header_says() {
        assert_eq!(payload(&bz_image(3, 7, b"inside")), Some(b"inside".as_slice()));
    }

    #[test]
    fn a_header_that_lies_gives_nothing() {
        let mut image = bz_image(3, 7, b"inside");
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(payload(&image), None);
        assert_eq!(payload(&image[..0x203]), None);
        assert_eq!(payload(b"no kernel"), None);
    }

    #[test]
    fn an_image_we_cannot_unpack_is_booted_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("vmlinuz");
        fs::write(&file, bz_image(1, 0, b"\x1f\x8bgzip")).unwrap();
        assert_eq!(bootable(&file, &dir.path().join("vmlinux")).unwrap(), file);
    }
}
