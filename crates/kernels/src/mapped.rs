//! Files in memory without reading them first.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// A file's bytes, mapped read-only: pages are read when they are first touched, and shared with every process
/// that maps the same file.
///
/// The file must not be changed while it is mapped. Nothing can enforce that, short of copying it: bytes changed
/// behind the mapping change in it, and a file cut short ends the process when a lost page is touched. Files of
/// weights are replaced, not edited.
#[derive(Debug)]
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps the whole file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is private and read-only; that nobody changes the file is demanded of the operator,
        // as by every program that maps its weights.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self(map))
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_reads_as_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        for content in [&b""[..], b"x", &[7; 70_000]] {
            let path = folder.path().join("file");
            std::fs::write(&path, content).unwrap();
            assert_eq!(&*MappedFile::open(&path).unwrap(), content);
        }
    }

    #[test]
    fn an_absent_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = MappedFile::open(&folder.path().join("absent")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
