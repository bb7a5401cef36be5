//! Who runs in a step, who waits, who is preempted.

use super::*;
use crate::config::{CacheBudget, CacheConfig, EngineConfig};
use crate::kv::CacheSpec;
use proptest::prelude::*;

mod tenants;

const BLOCK: usize = 4;
const WINDOW: usize = 10;

/// `paged` and `rotating` say which layers there are.
fn scheduler(global: usize, window: usize, slots: usize, paged: bool, rotating: bool) -> Scheduler {
    let mut layers = vec![CacheSpec::State { bytes: 8 }];
    layers.extend(paged.then_some(CacheSpec::Paged { bytes_per_token: 8 }));
    layers.extend(rotating.then_some(CacheSpec::Rotating {
        window: WINDOW,
        bytes_per_token: 8,
    }));
    let config = EngineConfig {
        max_sequences: slots,
        cache: CacheConfig {
            block_tokens: BLOCK,
            budget: CacheBudget::Blocks { global, window },
            ..CacheConfig::default()
        },
        ..EngineConfig::default()
    };
    let plan = CachePlan::new(&layers, &config, 4096, 0).unwrap();
    Scheduler::new(
        StepLimits {
            max_step_tokens: 12,
            prefill_chunk_tokens: 8,
        },
        plan,
    )
}

fn add(scheduler: &mut Scheduler, id: u64, priority: i32, len: usize) -> SeqId {
    add_of(scheduler, (0, 1), id, priority, len)
}

/// Of a tenant of a weight.
fn add_of(
    scheduler: &mut Scheduler,
    (tenant, weight): (u32, u32),
    id: u64,
    priority: i32,
    len: usize,
) -> SeqId {
    let standing = Standing {
        tenant: TenantId(tenant),
        weight,
        priority,
    };
    scheduler.add(SeqId(id), standing, len, usize::MAX);
    SeqId(id)
}

/// Plans, carries out, and gives a token to whom it is due; the plan's items as (id, start, tokens).
fn step(scheduler: &mut Scheduler) -> Vec<(u64, usize, usize)> {
    let plan = scheduler.plan(|_| {});
    scheduler.check_integrity().unwrap();
    scheduler.commit(&plan);
    for item in plan.items.iter().filter(|item| item.completes) {
        scheduler.push_token(item.id);
    }
    plan.items.iter().map(|i| (i.id.0, i.start, i.n_tokens)).collect()
}

#[test]
fn decodes_go_first_and_a_long_prompt_comes_in_chunks() {
    let mut s = scheduler(64, 64, 8, true, true);
    add(&mut s, 1, 0, 3);
    assert_eq!(step(&mut s), [(1, 0, 3)]);
    add(&mut s, 2, 0, 30);
    add(&mut s, 3, 0, 5);
    // 12 tokens a step, 8 of one prompt: the decode, a chunk of the long prompt, what is left for the next.
    assert_eq!(step(&mut s), [(1, 3, 1), (2, 0, 8), (3, 0, 3)]);
    assert_eq!(step(&mut s), [(1, 4, 1), (2, 8, 8), (3, 3, 2)]);
    assert_eq!(step(&mut s), [(1, 5, 1), (3, 5, 1), (2, 16, 8)]);
}

#[test]
fn a_lower_priority_number_is_admitted_first_and_preempted_last() {
    let mut s = scheduler(64, 64, 1, true, true);
    add(&mut s, 1, 5, 4);
    add(&mut s, 2, -1, 4);
    assert_eq!(step(&mut s), [(2, 0, 4)]);

    let mut s = scheduler(3, 64, 8, true, true);
    add(&mut s, 1, 5, 4);
    assert_eq!(step(&mut s), [(1, 0, 4)]);
    add(&mut s, 2, -1, 4);
    assert_eq!(step(&mut s), [(1, 4, 1), (2, 0, 4)]);
    // Three blocks: the first holds two. The second, more urgent one needs one more.
    assert_eq!(step(&mut s), [(2, 4, 1)]);
    assert_eq!((s.n_running(), s.n_waiting()), (1, 1));
}

#[test]
fn the_youngest_gives_way_and_comes_back_when_it_fits_whole() {
    let mut s = scheduler(5, 64, 8, true, true);
    add(&mut s, 1, 0, 8);
    assert_eq!(step(&mut s), [(1, 0, 8)]);
    add(&mut s, 2, 0, 8);
    assert_eq!(step(&mut s), [(1, 8, 1), (2, 0, 8)]);
    assert_eq!(
        step(&mut s),
        [(1, 9, 1)],
        "five blocks are taken and the younger needs a sixth: it leaves"
    );
    // Nine tokens need three blocks and one to spare; two are free until the older one ends.
    for position in 10..12 {
        assert_eq!(step(&mut s), [(1, position, 1)]);
    }
    s.remove(SeqId(1), |_| {});
    assert_eq!(step(&mut s), [(2, 0, 8)]);
    assert_eq!(step(&mut s), [(2, 8, 1)]);
}

#[test]
fn nobody_overtakes_who_waits_first() {
    let mut s = scheduler(4, 64, 8, true, true);
    add(&mut s, 1, 0, 12);
    step(&mut s);
    step(&mut s);
    add(&mut s, 2, 0, 8); // needs two blocks, one is free
    add(&mut s, 3, 0, 1);
    assert_eq!(step(&mut s), [(1, 12, 1)]);
}

#[test]
fn a_ring_never_holds_more_than_the_window_in_whole_blocks() {
    let mut s = scheduler(64, 64, 8, true, true);
    let id = add(&mut s, 1, 0, 45);
    let mut most = 0;
    for _ in 0..10 {
        step(&mut s);
        most = most.max(s.cache(id).unwrap().window().len());
    }
    assert_eq!(most, 3, "a window of 10 in blocks of 4");
    assert_eq!(s.window_rows_peak(), 12);
}

#[test]
fn a_copy_holds_its_own_blocks_and_runs_at_once() {
    let mut s = scheduler(64, 64, 8, true, true);
    let parent = add(&mut s, 1, 0, 7);
    let plan = s.plan(|_| {});
    s.commit(&plan);
    let copy = s.fork(parent, SeqId(2)).unwrap();
    s.check_integrity().unwrap();
    let copy = copy.as_copy();
    assert_eq!((copy.global.len(), copy.window.len()), (2, 2));
    s.push_token(parent);
    s.push_token(SeqId(2));
    assert_eq!(step(&mut s), [(1, 7, 1), (2, 7, 1)]);
}

#[test]
fn a_copy_without_room_waits_and_computes_for_itself() {
    let mut s = scheduler(3, 64, 8, true, true);
    let parent = add(&mut s, 1, 0, 7);
    let plan = s.plan(|_| {});
    s.commit(&plan);
    assert!(s.fork(parent, SeqId(2)).is_none());
    s.check_integrity().unwrap();
    s.push_token(parent);
    s.push_token(SeqId(2));
    s.remove(parent, |_| {});
    assert_eq!(step(&mut s), [(2, 0, 8)]);
}

#[derive(Clone, Debug)]
enum Act {
    Add { tenant: u32, priority: i32, len: usize },
    Fork,
    Cancel(prop::sample::Index),
    Step,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0..3u32, -1..2i32, 1..24usize).prop_map(|(tenant, priority, len)| Act::Add { tenant, priority, len }),
        1 => Just(Act::Fork),
        1 => any::<prop::sample::Index>().prop_map(Act::Cancel),
        6 => Just(Act::Step),
    ]
}

proptest! {
    /// Whatever happens, accounts balance, and once nothing new comes everybody gets the tokens due.
    #[test]
    fn everybody_advances_and_all_memory_comes_back(
        acts in proptest::collection::vec(act(), 1..80),
        global in 12usize..24,
        window in 3usize..12,
        slots in 1usize..6,
        layers in prop_oneof![Just((true, true)), Just((true, false)), Just((false, true))],
    ) {
        const TOKENS: usize = 16;
        let mut s = scheduler(global, window, slots, layers.0, layers.1);
        let mut left: BTreeMap<SeqId, usize> = BTreeMap::new();
        let mut next = 0;
        let advance = |s: &mut Scheduler, left: &mut BTreeMap<SeqId, usize>, fork_as: Option<u64>| {
            let plan = s.plan(|_| {});
            s.check_integrity().map_err(TestCaseError::fail)?;
            prop_assert!(left.is_empty() || !plan.items.is_empty(), "nothing advances");
            let total: usize = plan.items.iter().map(|i| i.n_tokens).sum();
            prop_assert!(total <= 12 && plan.items.iter().all(|i| (1..=8).contains(&i.n_tokens)));
            s.commit(&plan);
            let mut fork_as = fork_as;
            for item in plan.items.iter().filter(|i| i.completes) {
                if let Some(child) = fork_as.take() {
                    s.fork(item.id, SeqId(child));
                    s.push_token(SeqId(child));
                    left.insert(SeqId(child), left[&item.id]);
                }
                let count = left.get_mut(&item.id).expect("planned sequences are alive");
                *count -= 1;
                if *count == 0 {
                    left.remove(&item.id);
                    s.remove(item.id, |_| {});
                } else {
                    s.push_token(item.id);
                }
            }
            s.check_integrity().map_err(TestCaseError::fail)
        };
        for act in acts {
            next += 1;
            match act {
                Act::Add { tenant, priority, len } => {
                    add_of(&mut s, (tenant, tenant + 1), next, priority, len);
                    left.insert(SeqId(next), TOKENS);
                }
                Act::Cancel(which) if !left.is_empty() => {
                    let id = *left.keys().nth(which.index(left.len())).expect("not empty");
                    left.remove(&id);
                    s.remove(id, |_| {});
                }
                Act::Fork => advance(&mut s, &mut left, Some(next))?,
                Act::Cancel(_) | Act::Step => advance(&mut s, &mut left, None)?,
            }
        }
        let mut steps = 0;
        while !left.is_empty() {
            advance(&mut s, &mut left, None)?;
            steps += 1;
            prop_assert!(steps < 100_000, "it never ends");
        }
        prop_assert_eq!(s.accounts().global().n_used(), 0);
        prop_assert_eq!(s.accounts().window().n_used(), 0);
        prop_assert_eq!(s.accounts().slots().n_used(), 0);
    }
}
