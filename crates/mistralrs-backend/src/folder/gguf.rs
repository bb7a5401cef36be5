//! Whether a GGUF file's header holds what it says, before it is given to those who take its word for it.
//!
//! Readers of GGUF make room for strings and lists by the lengths that the file names, and a length that was damaged asks for
//! more memory than there is, which nothing survives. The layout is that of ggml's `docs/gguf.md`.

use std::io::{self, BufReader, Read, Seek};

/// Bytes of a value by the number of its type; strings and lists say their own.
const SIZES: [u64; 13] = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
const STRING: u32 = 8;
const LIST: u32 = 9;
/// Lists in lists in lists: nobody writes them.
const MAX_DEPTH: usize = 4;
const MAX_DIMS: u32 = 8;

/// Reads the header to its end.
///
/// # Errors
/// What is wrong, if it says more than the file has, or what no reader knows.
pub(super) fn check(file: impl Read + Seek) -> io::Result<()> {
    let mut file = BufReader::new(file);
    let length = file.seek(io::SeekFrom::End(0))?;
    file.rewind()?;
    let mut header = Header {
        file,
        left: length,
        wide: true,
    };
    if header.bytes()? != *b"GGUF" {
        return Err(damaged("does not begin with GGUF"));
    }
    header.wide = match header.u32()? {
        1 => false,
        2 | 3 => true,
        version => return Err(damaged(format!("is of version {version}, known are 1, 2 and 3"))),
    };
    let (n_tensors, n_values) = (header.length()?, header.length()?);
    for _ in 0..n_values {
        header.string()?;
        let kind = header.u32()?;
        header.value(kind, 0)?;
    }
    for _ in 0..n_tensors {
        header.string()?;
        let n_dims = header.u32()?;
        if n_dims > MAX_DIMS {
            return Err(damaged(format!("has a tensor of {n_dims} dimensions")));
        }
        let mut elements = 1u64;
        for _ in 0..n_dims {
            elements = elements
                .checked_mul(header.length()?)
                .ok_or_else(|| damaged("has a tensor too large to count"))?;
        }
        // Type and place.
        header.skip(4 + 8)?;
    }
    Ok(())
}

fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

struct Header<R> {
    file: BufReader<R>,
    /// Bytes that the file still has.
    left: u64,
    /// Whether lengths have 64 bits.
    wide: bool,
}

impl<R: Read + Seek> Header<R> {
    fn take(&mut self, bytes: u64) -> io::Result<()> {
        self.left = self
            .left
            .checked_sub(bytes)
            .ok_or_else(|| damaged("ends within its header"))?;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        self.take(N as u64)?;
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn length(&mut self) -> io::Result<u64> {
        match self.wide {
            true => Ok(u64::from_le_bytes(self.bytes()?)),
            false => Ok(self.u32()?.into()),
        }
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.take(bytes)?;
        // Less than the file's length, which fits.
        self.file.seek_relative(bytes as i64)
    }

    fn string(&mut self) -> io::Result<()> {
        let length = self.length()?;
        self.skip(length)
    }

    fn value(&mut self, kind: u32, depth: usize) -> io::Result<()> {
        match kind {
            STRING => self.string(),
            LIST if depth < MAX_DEPTH => {
                let (kind, length) = (self.u32()?, self.length()?);
                match kind {
                    STRING | LIST => (0..length).try_for_each(|_| self.value(kind, depth + 1)),
                    _ => {
                        let bytes = length.checked_mul(size(kind)?);
                        self.skip(bytes.ok_or_else(|| damaged("has a list too long to count"))?)
                    }
                }
            }
            _ => self.skip(size(kind)?),
        }
    }
}

fn size(kind: u32) -> io::Result<u64> {
    match SIZES.get(kind as usize) {
        Some(size) if *size > 0 => Ok(*size),
        _ => Err(damaged(format!("has a value of type {kind}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// A header of one value and one tensor.
    fn header() -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        let string = |bytes: &mut Vec<u8>, text: &str| {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        string(&mut bytes, "tokens");
        bytes.extend(LIST.to_le_bytes());
        bytes.extend(STRING.to_le_bytes());
        bytes.extend(2u64.to_le_bytes());
        string(&mut bytes, "one");
        string(&mut bytes, "two");
        string(&mut bytes, "weight");
        bytes.extend(2u32.to_le_bytes());
        bytes.extend(4u64.to_le_bytes());
        bytes.extend(8u64.to_le_bytes());
        bytes.extend([0; 12]);
        bytes
    }

    #[test]
    fn a_whole_header_passes_and_none_that_is_cut() {
        let whole = header();
        check(Cursor::new(&whole)).unwrap();
        for length in 0..whole.len() {
            check(Cursor::new(&whole[..length])).unwrap_err();
        }
    }

    #[test]
    fn no_length_is_taken_at_its_word() {
        let whole = header();
        for at in 4..whole.len() {
            let mut bytes = whole.clone();
            for byte in bytes[at..].iter_mut().take(8) {
                *byte = 0xff;
            }
            // It may be a name that changed: what counts is that nothing is made room for and nothing runs long.
            let _ = check(Cursor::new(&bytes));
        }
        let mut bytes = whole;
        let length = bytes.len();
        // The tensor's dimensions.
        bytes[length - 28..length - 12].fill(0xff);
        let error = check(Cursor::new(&bytes)).unwrap_err();
        assert_eq!(error.to_string(), "has a tensor too large to count");
    }
}
