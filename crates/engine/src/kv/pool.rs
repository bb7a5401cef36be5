//! A pool of numbered things: blocks of one size, or state slots.

/// Hands out each of `0 .. total` to one owner at a time, lowest first after a fresh start.
#[derive(Debug)]
pub(crate) struct Pool {
    free: Vec<u32>,
    total: usize,
}

impl Pool {
    pub(crate) fn new(total: usize) -> Self {
        let total_u32 = u32::try_from(total).unwrap_or(u32::MAX);
        Self {
            free: (0..total_u32).rev().collect(),
            total: total_u32 as usize,
        }
    }

    pub(crate) fn n_free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn n_used(&self) -> usize {
        self.total - self.free.len()
    }

    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// All of `n` or nothing.
    pub(crate) fn take(&mut self, n: usize) -> Option<impl Iterator<Item = u32> + '_> {
        let keep = self.free.len().checked_sub(n)?;
        Some(self.free.drain(keep..).rev())
    }

    pub(crate) fn give_back(&mut self, ids: impl IntoIterator<Item = u32>) {
        self.free.extend(ids);
        debug_assert!(self.free.len() <= self.total, "more was given back than exists");
    }

    #[cfg(test)]
    /// Checks that `held` and the free list together name everything exactly once.
    pub(crate) fn check_integrity(&self, what: &str, held: impl Iterator<Item = u32>) -> Result<(), String> {
        let mut seen = vec![false; self.total];
        for id in self.free.iter().copied().chain(held) {
            match seen.get_mut(id as usize) {
                None => return Err(format!("{what} {id} does not exist")),
                Some(true) => return Err(format!("{what} {id} has two owners")),
                Some(entry) => *entry = true,
            }
        }
        match seen.iter().position(|s| !s) {
            Some(id) => Err(format!("{what} {id} has no owner")),
            None => Ok(()),
        }
    }
}
