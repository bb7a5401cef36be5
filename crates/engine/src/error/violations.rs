//! Every field of a request that cannot be accepted, as far as anybody wants to read them.
//!
//! A small request can have millions of wrong fields. So only the first ones are kept in words, the rest are counted.

use std::fmt;

use super::Violation;

/// So many violations are kept; more are counted.
pub const MAX_VIOLATIONS: usize = 20;

/// The fields of a request that cannot be accepted, gathered so that a client learns of all of them at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations {
    listed: Vec<Violation>,
    more: usize,
}

impl Violations {
    /// A violation of `field` unless it `holds`. What is wrong is put into words only where there is room for it.
    pub fn that(&mut self, holds: bool, field: impl AsRef<str>, message: impl FnOnce() -> String) {
        if holds {
            return;
        }
        match self.listed.len() < MAX_VIOLATIONS {
            true => self.listed.push(Violation::new(field.as_ref(), message())),
            false => self.more += 1,
        }
    }

    /// Takes those of a part of the request too.
    pub fn append(&mut self, part: Self) {
        self.extend(part.listed);
        self.more += part.more;
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    /// The first ones, at most [`MAX_VIOLATIONS`].
    pub fn listed(&self) -> &[Violation] {
        &self.listed
    }

    /// The same, to be renamed.
    pub fn listed_mut(&mut self) -> &mut [Violation] {
        &mut self.listed
    }

    /// How many there are beside the listed ones.
    pub fn n_more(&self) -> usize {
        self.more
    }

    /// What was checked, if there is no violation of it.
    ///
    /// # Errors
    /// There is one.
    pub fn or<T>(self, valid: T) -> Result<T, Self> {
        match self.is_empty() {
            true => Ok(valid),
            false => Err(self),
        }
    }
}

impl std::error::Error for Violations {}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, violation) in self.listed.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", violation.field, violation.message)?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, "; {more} more violations"),
        }
    }
}

impl From<Violation> for Violations {
    fn from(violation: Violation) -> Self {
        Self {
            listed: vec![violation],
            more: 0,
        }
    }
}

impl Extend<Violation> for Violations {
    fn extend<I: IntoIterator<Item = Violation>>(&mut self, violations: I) {
        for violation in violations {
            if self.listed.len() < MAX_VIOLATIONS {
                self.listed.push(violation);
            } else {
                self.more += 1;
            }
        }
    }
}

impl FromIterator<Violation> for Violations {
    fn from_iter<I: IntoIterator<Item = Violation>>(violations: I) -> Self {
        let mut all = Self::default();
        all.extend(violations);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_violations_are_put_into_words_and_the_rest_are_counted() {
        let mut worded = 0;
        let mut all = Violations::default();
        for i in 0..1_000_000 {
            all.that(i % 2 == 0, "f", || {
                worded += 1;
                format!("wrong: {i}")
            });
        }
        assert_eq!((worded, all.listed().len()), (MAX_VIOLATIONS, MAX_VIOLATIONS));
        assert_eq!(all.n_more(), 500_000 - MAX_VIOLATIONS);
        assert!(all.to_string().len() < 1000, "{all}");
        assert!(all.to_string().ends_with("499980 more violations"), "{all}");

        let mut whole = Violations::from(Violation::new("g", "wrong"));
        whole.append(all);
        assert_eq!(whole.listed().len(), MAX_VIOLATIONS);
        assert_eq!(whole.n_more(), 500_000 - MAX_VIOLATIONS + 1);
        assert!(whole.or(()).is_err() && Violations::default().or(()).is_ok());
    }
}
