//! Turns a stream of bytes into whole characters.

/// Collects bytes until they are characters; what can never become one turns into U+FFFD.
#[derive(Debug, Clone, Default)]
pub(super) struct Utf8Stream {
    pending: Vec<u8>,
}

/// How many replacement characters broken bytes become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// One for every byte, as SentencePiece does.
    EachByte,
    /// One for every longest prefix of a character, as [`String::from_utf8_lossy`] does.
    EachPrefix,
}

impl Utf8Stream {
    /// Takes bytes in and writes every character that is complete by now to `out`.
    pub(super) fn push(&mut self, bytes: &[u8], broken: Broken, out: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut start = 0;
        while start < self.pending.len() {
            let error = match std::str::from_utf8(&self.pending[start..]) {
                Ok(text) => {
                    out.push_str(text);
                    start = self.pending.len();
                    break;
                }
                Err(error) => error,
            };
            let valid = start + error.valid_up_to();
            out.push_str(&String::from_utf8_lossy(&self.pending[start..valid]));
            start = valid;
            let Some(invalid) = error.error_len() else { break };
            out.push(char::REPLACEMENT_CHARACTER);
            start += match broken {
                Broken::EachByte => 1,
                Broken::EachPrefix => invalid,
            };
        }
        self.pending.drain(..start);
    }

    /// Ends the stream: what is still incomplete becomes U+FFFD.
    pub(super) fn flush(&mut self, broken: Broken, out: &mut String) {
        let n_replacements = match broken {
            Broken::EachByte => self.pending.len(),
            Broken::EachPrefix => usize::from(!self.pending.is_empty()),
        };
        out.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, n_replacements));
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_in_any_portions_become_what_lossy_decoding_makes_of_the_whole(
            portions in prop::collection::vec(prop::collection::vec(prop_oneof![
                any::<u8>(), Just(0xE4), Just(0xBD), Just(0xA0), Just(0xF0), Just(0x9F), Just(0x41)
            ], 0..5), 0..8)
        ) {
            let mut stream = Utf8Stream::default();
            let mut out = String::new();
            for portion in &portions {
                stream.push(portion, Broken::EachPrefix, &mut out);
            }
            stream.flush(Broken::EachPrefix, &mut out);
            let whole = portions.concat();
            prop_assert_eq!(out, String::from_utf8_lossy(&whole));
        }
    }

    #[test]
    fn a_broken_character_is_replaced_byte_by_byte_or_once() {
        for (broken, expected) in [
            (Broken::EachByte, "\u{FFFD}\u{FFFD}A"),
            (Broken::EachPrefix, "\u{FFFD}A"),
        ] {
            let mut stream = Utf8Stream::default();
            let mut out = String::new();
            for byte in [0xE4, 0xBD, 0x41] {
                stream.push(&[byte], broken, &mut out);
            }
            assert_eq!(out, expected);
        }
    }
}
