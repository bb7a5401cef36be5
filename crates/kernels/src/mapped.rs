//! Files in memory without reading them first.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

/// A file's bytes, mapped read-only: pages are read when they are first touched, and shared with every process
/// that maps the same file.
///
/// The file must not be changed while it is mapped. Nothing can enforce that, short of copying it: bytes changed
/// behind the mapping change in it, and a file cut short ends the process when a lost page is touched. Files of
/// weights are replaced, not edited.
#[derive(Clone, Debug)]
pub struct MappedFile(Arc<Mmap>);

impl MappedFile {
    /// Maps the whole file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is private and read-only; that nobody changes the file is demanded of the operator,
        // as by every program that maps its weights.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self(Arc::new(map)))
    }

    /// Some of the bytes, for as long as anybody needs them.
    ///
    /// # Panics
    /// If the file is shorter.
    pub fn slice(&self, range: Range<usize>) -> MappedBytes {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "bytes {range:?} of a file of {}",
            self.len()
        );
        MappedBytes {
            file: self.clone(),
            range,
        }
    }

    /// Lets go of the memory that holds these bytes, which are read from the file again when they are touched again:
    /// for what was read once, so that it does not count as this process's memory.
    pub fn forget(&self, range: Range<usize>) {
        #[cfg(unix)]
        if !range.is_empty() && range.end <= self.len() {
            // SAFETY: the pages are a file's, mapped read-only: dropped ones come back as they were.
            let dropped = unsafe {
                self.0
                    .unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
            };
            // What the system does not take back costs memory only.
            let _ = dropped;
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Bytes of a mapped file, which stays mapped as long as they are.
#[derive(Clone, Debug)]
pub struct MappedBytes {
    file: MappedFile,
    range: Range<usize>,
}

impl MappedBytes {
    /// The first `len` of them, or all if they are fewer.
    pub fn first(&self, len: usize) -> Self {
        let end = self.range.end.min(self.range.start.saturating_add(len));
        Self {
            file: self.file.clone(),
            range: self.range.start..end,
        }
    }
}

impl Deref for MappedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.file[self.range.clone()]
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
            let file = MappedFile::open(&path).unwrap();
            assert_eq!(&*file, content);
            file.forget(0..content.len());
            assert_eq!(&*file, content);
            let part = file.slice(content.len() / 3..content.len());
            drop(file);
            assert_eq!(&*part, &content[content.len() / 3..]);
        }
    }

    #[test]
    fn an_absent_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = MappedFile::open(&folder.path().join("absent")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
