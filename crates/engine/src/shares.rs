//! Whose turn it is: tenants share an engine by tokens, in proportion to their weights.
//!
//! Fair queueing by virtual time. A tenant's time is what was computed for it, in tokens over its weight; whose time is
//! least is next. Who comes back from having had nothing to do starts no earlier than those who had, so that nobody
//! saves up turns, and who was ahead when it left is ahead when it comes back.

use std::collections::BTreeMap;

use crate::ids::TenantId;

/// Of one token at weight 1. An engine that computes a million tokens a second counts for half a million years.
pub(crate) const TOKEN: u64 = 1 << 10;

/// What each tenant has had.
#[derive(Debug, Default)]
pub struct Shares {
    tenants: BTreeMap<TenantId, Share>,
    /// The least time of who has something to do, as it was last; it only grows.
    floor: u64,
}

#[derive(Debug)]
struct Share {
    weight: u64,
    time: u64,
    /// Of the step that is being planned.
    pending: u64,
    /// Sequences it has, waiting or running.
    sequences: usize,
}

impl Shares {
    /// A tenant has one more sequence.
    pub fn enter(&mut self, tenant: TenantId, weight: u32) {
        let floor = self.floor;
        let share = self.tenants.entry(tenant).or_insert(Share {
            weight: 1,
            time: floor,
            pending: 0,
            sequences: 0,
        });
        share.weight = u64::from(weight.max(1));
        if share.sequences == 0 {
            share.time = share.time.max(floor);
        }
        share.sequences += 1;
    }

    /// A tenant has one sequence less.
    pub fn leave(&mut self, tenant: TenantId) {
        if let Some(share) = self.tenants.get_mut(&tenant) {
            share.sequences = share.sequences.saturating_sub(1);
        }
    }

    /// A step begins to be planned: what the last one cost is counted from here on.
    pub fn settle(&mut self) {
        for share in self.tenants.values_mut() {
            share.time = share.time.saturating_add(std::mem::take(&mut share.pending));
        }
        let active = self.tenants.values().filter(|share| share.sequences > 0);
        if let Some(least) = active.map(|share| share.time).min() {
            self.floor = self.floor.max(least);
        }
        // Who is neither here nor ahead would start at the floor anyway.
        let floor = self.floor;
        self.tenants
            .retain(|_, share| share.sequences > 0 || share.time > floor);
    }

    /// The step that is being planned computes so many tokens for a tenant, or because of it.
    pub fn charge(&mut self, tenant: TenantId, tokens: usize) {
        if let Some(share) = self.tenants.get_mut(&tenant) {
            share.pending = share.pending.saturating_add(share.cost(tokens));
        }
    }

    /// It does not, after all.
    pub(crate) fn refund(&mut self, tenant: TenantId, tokens: usize) {
        if let Some(share) = self.tenants.get_mut(&tenant) {
            share.pending = share.pending.saturating_sub(share.cost(tokens));
        }
    }

    /// A tenant's time when the step began to be planned.
    pub fn settled(&self, tenant: TenantId) -> u64 {
        self.tenants.get(&tenant).map_or(self.floor, |share| share.time)
    }

    /// A tenant's time with what the step already costs it.
    pub(crate) fn time(&self, tenant: TenantId) -> u64 {
        self.tenants
            .get(&tenant)
            .map_or(self.floor, |share| share.time.saturating_add(share.pending))
    }
}

impl Share {
    fn cost(&self, tokens: usize) -> u64 {
        (tokens as u64).saturating_mul(TOKEN) / self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: TenantId = TenantId(1);
    const B: TenantId = TenantId(2);

    fn use_up(shares: &mut Shares, tenant: TenantId, tokens: usize) {
        shares.charge(tenant, tokens);
        shares.settle();
    }

    #[test]
    fn time_passes_slower_for_who_weighs_more() {
        let mut shares = Shares::default();
        shares.enter(A, 1);
        shares.enter(B, 4);
        use_up(&mut shares, A, 100);
        use_up(&mut shares, B, 400);
        assert_eq!(shares.time(A), shares.time(B));
    }

    #[test]
    fn who_comes_back_has_saved_up_nothing() {
        let mut shares = Shares::default();
        shares.enter(A, 1);
        use_up(&mut shares, A, 1000);
        shares.enter(B, 1);
        assert_eq!(shares.time(B), shares.time(A));
    }

    #[test]
    fn who_leaves_ahead_comes_back_ahead() {
        let mut shares = Shares::default();
        shares.enter(A, 1);
        shares.enter(B, 1);
        use_up(&mut shares, B, 1000);
        shares.leave(B);
        use_up(&mut shares, A, 10);
        shares.enter(B, 1);
        assert!(shares.time(B) > shares.time(A));
        shares.leave(B);
        use_up(&mut shares, A, 2000);
        assert_eq!(
            shares.tenants.len(),
            1,
            "who is neither here nor ahead is forgotten"
        );
    }
}
