//! For which kind of processor a toolchain is: the one of its compiler, as the ELF header says. Pure.
//!
//! A toolchain is a gzipped tar archive (POSIX.1-1988 ustar, as sccache writes it). Of each file only the first bytes are
//! looked at; `e_machine` is the half-word at offset 18 (System V ABI, chapter 4).

use super::pool::Machine;
use flate2::write::GzDecoder;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

const BLOCK: usize = 512;
/// Bytes of a file that tell.
const HEAD: usize = 20;
const MAGIC: &[u8] = b"\x7fELF";
/// Most files and links that are remembered.
const FILES: usize = 1 << 16;
/// Most links that are followed.
const LINKS: usize = 16;

/// Reads an archive piece by piece.
pub(super) struct Archive {
    decoder: GzDecoder<Tar>,
}

impl Archive {
    pub(super) fn new() -> Archive {
        Archive {
            decoder: GzDecoder::new(Tar::default()),
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// It is no gzip.
    pub(super) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.decoder.write_all(bytes)
    }

    /// The kind of the program at this path; where it is none, that of all programs, if it is the same.
    pub(super) fn machine(&mut self, executable: &str) -> Option<Machine> {
        // What the decoder still holds. An archive that was cut off tells what it can.
        let _ = self.decoder.try_finish();
        let tar = self.decoder.get_ref();
        let mut path = normal(Path::new(executable));
        for _ in 0..LINKS {
            if let Some(machine) = tar.programs.get(&path) {
                return Some(*machine);
            }
            let Some(target) = tar.links.get(&path) else {
                break;
            };
            let parent = path.parent().unwrap_or(Path::new(""));
            path = normal(&parent.join(target));
        }
        let mut all = tar.programs.values();
        let first = all.next()?;
        all.all(|other| other == first).then_some(*first)
    }
}

/// Without a root, `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => normal.push(part),
            Component::ParentDir => {
                normal.pop();
            }
            // An absolute link begins anew.
            Component::RootDir => normal.clear(),
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
    normal
}

/// What a tar archive holds.
#[derive(Default)]
struct Tar {
    /// The part of a header, or of a file's head, that is there.
    pending: Vec<u8>,
    file: Option<File>,
    /// The name that a GNU extension has given to the next file.
    long_name: Option<Vec<u8>>,
    programs: HashMap<PathBuf, Machine>,
    links: HashMap<PathBuf, PathBuf>,
}

struct File {
    name: Vec<u8>,
    kind: u8,
    /// Bytes of its content that were not looked at.
    left: u64,
    /// Bytes up to the next header.
    skip: u64,
}

impl Write for Tar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = self.step(rest)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Tar {
    fn step<'a>(&mut self, bytes: &'a [u8]) -> io::Result<&'a [u8]> {
        let Some(file) = &mut self.file else {
            let rest = fill(&mut self.pending, bytes, BLOCK);
            if self.pending.len() == BLOCK {
                let header = std::mem::take(&mut self.pending);
                self.file = self.header(&header)?;
            }
            return Ok(rest);
        };
        if file.left > 0 {
            let most = if file.kind == b'L' { 4096 } else { HEAD };
            let wanted = usize::try_from(file.left).unwrap_or(most).min(most);
            let before = self.pending.len();
            let rest = fill(&mut self.pending, bytes, wanted);
            file.skip -= (self.pending.len() - before) as u64;
            if self.pending.len() == wanted {
                file.left = 0;
                let head = std::mem::take(&mut self.pending);
                self.look_at(&head);
            }
            return Ok(rest);
        }
        let skipped = usize::try_from(file.skip)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        file.skip -= skipped as u64;
        if file.skip == 0 {
            self.file = None;
        }
        Ok(&bytes[skipped..])
    }

    fn look_at(&mut self, head: &[u8]) {
        let Some(file) = &self.file else { return };
        match file.kind {
            b'L' => {
                let end = head.iter().position(|byte| *byte == 0);
                self.long_name = Some(head[..end.unwrap_or(head.len())].to_vec());
            }
            b'0' | 0 => {
                if let Some((machine, _)) = head.get(18..).and_then(<[u8]>::split_first_chunk)
                    && head.starts_with(MAGIC)
                    && self.programs.len() < FILES
                {
                    // EI_DATA tells the order of bytes.
                    let machine = match head[5] {
                        2 => u16::from_be_bytes(*machine),
                        _ => u16::from_le_bytes(*machine),
                    };
                    let path = normal(&path_of(&file.name));
                    self.programs.insert(path, Machine(machine));
                }
            }
            _ => {}
        }
    }

    /// The file that a header begins; none where it is empty, or only a block of zeros.
    fn header(&mut self, header: &[u8]) -> io::Result<Option<File>> {
        if header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let size = number(&header[124..136])
            .ok_or_else(|| io::Error::other("the archive has a file without a size"))?;
        let kind = header[156];
        let name = match self.long_name.take() {
            Some(name) => name,
            None => {
                let (name, prefix) = (text(&header[..100]), text(&header[345..500]));
                let is_ustar = header[257..].starts_with(b"ustar\0");
                match is_ustar && !prefix.is_empty() {
                    true => [prefix, b"/", name].concat(),
                    false => name.to_vec(),
                }
            }
        };
        if matches!(kind, b'1' | b'2') && self.links.len() < FILES {
            let target = path_of(text(&header[157..257]));
            // A hard link names its target from the root.
            let target = match kind {
                b'1' => Path::new("/").join(target),
                _ => target,
            };
            self.links.insert(normal(&path_of(&name)), target);
        }
        let skip = size.div_ceil(BLOCK as u64).saturating_mul(BLOCK as u64);
        Ok((size > 0).then_some(File {
            name,
            kind,
            left: size,
            skip,
        }))
    }
}

/// Takes bytes until there are `wanted`; gives the rest.
fn fill<'a>(pending: &mut Vec<u8>, bytes: &'a [u8], wanted: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(bytes.len().min(wanted - pending.len()));
    pending.extend_from_slice(taken);
    rest
}

fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    &field[..end.unwrap_or(field.len())]
}

fn path_of(name: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(name))
}

/// An octal number, or one in base 256 where its first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let bytes = field[4..].first_chunk()?;
        return Some(u64::from_be_bytes(*bytes));
    }
    let digits = std::str::from_utf8(text(field)).ok()?.trim();
    u64::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(name: &str, kind: u8, link: &str, content: &[u8]) -> Vec<u8> {
        let mut header = vec![0; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
        let size = format!("{:011o}", content.len());
        header[124..135].copy_from_slice(size.as_bytes());
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[257..263].copy_from_slice(b"ustar\0");
        let mut entry = [&header, content].concat();
        entry.resize(entry.len().div_ceil(BLOCK) * BLOCK, 0);
        entry
    }

    fn elf(machine: u16, length: usize) -> Vec<u8> {
        let mut elf = vec![0; length];
        elf[..4].copy_from_slice(MAGIC);
        elf[5] = 1;
        elf[18..20].copy_from_slice(&machine.to_le_bytes());
        elf
    }

    fn machine(entries: &[Vec<u8>], executable: &str) -> Option<u16> {
        let tar = [&entries.concat()[..], &[0; 2 * BLOCK]].concat();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&tar).unwrap();
        let packed = packed.finish().unwrap();
        let mut whole = Archive::new();
        whole.push(&packed).unwrap();
        let mut pieces = Archive::new();
        packed
            .chunks(7)
            .for_each(|piece| pieces.push(piece).unwrap());
        let found = whole.machine(executable);
        assert_eq!(found, pieces.machine(executable));
        found.map(|machine| machine.0)
    }

    #[test]
    fn compiler_counts_and_not_what_it_compiles_for() {
        let entries = [
            entry("usr/aarch64/lib/libc.so", b'0', "", &elf(183, 700)),
            entry("usr/bin/", b'5', "", b""),
            entry("usr/bin/cc", b'2', "gcc-14", b""),
            entry("usr/bin/gcc-14", b'0', "", &elf(62, 5000)),
            entry("usr/bin/script", b'0', "", b"#!/bin/sh\n"),
        ];
        assert_eq!(machine(&entries, "/usr/bin/gcc-14"), Some(62));
        assert_eq!(machine(&entries, "/usr/bin/cc"), Some(62));
        assert_eq!(machine(&entries, "/usr/aarch64/lib/libc.so"), Some(183));
        // A script could run either.
        assert_eq!(machine(&entries, "/usr/bin/script"), None);
        assert_eq!(machine(&entries[1..], "/usr/bin/script"), Some(62));
        let absolute = [
            entry("opt/cc", b'2', "/usr/bin/cc", b""),
            entry("usr/bin/cc", b'0', "", &elf(183, 64)),
        ];
        assert_eq!(machine(&absolute, "/opt/cc"), Some(183));
        let round = [entry("a", b'2', "b", b""), entry("b", b'2', "a", b"")];
        assert_eq!(machine(&round, "/a"), None);
    }

    proptest! {
        #[test]
        fn any_archive_is_read(headers in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..BLOCK), any::<[u8; 12]>(), any::<u8>()), 0..8,
        )) {
            let mut tar = Tar::default();
            for (mut block, size, kind) in headers {
                block.resize(BLOCK, 7);
                block[124..136].copy_from_slice(&size);
                block[156] = kind;
                let _ = tar.write(&block);
            }
        }
    }

    #[test]
    fn what_is_no_archive_has_no_machine() {
        let mut archive = Archive::new();
        assert!(archive.push(b"nothing that gzip would write").is_err());
        assert_eq!(machine(&[], "/usr/bin/cc"), None);
    }
}
