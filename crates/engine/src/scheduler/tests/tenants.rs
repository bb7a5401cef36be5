//! Tenants get tokens by their weights, and none of them waits for another's abundance.

use super::*;

/// Sequences of a tenant that are part of a step.
fn of_tenant(scheduler: &Scheduler, plan: &Plan, tenant: u32) -> usize {
    let is_its = |item: &&PlanItem| scheduler.sequences[&item.id].rank.tenant == TenantId(tenant);
    plan.items.iter().filter(is_its).count()
}

/// Plans and carries out a step; each sequence ends after `tokens` of its own.
fn run(s: &mut Scheduler, left: &mut BTreeMap<SeqId, usize>) -> Plan {
    let plan = s.plan(|_| {});
    s.check_integrity().unwrap();
    s.commit(&plan);
    for item in plan.items.iter().filter(|i| i.completes) {
        let count = left.get_mut(&item.id).expect("planned sequences are alive");
        *count -= 1;
        if *count > 0 {
            s.push_token(item.id);
        }
    }
    plan
}

fn end_done(s: &mut Scheduler, left: &mut BTreeMap<SeqId, usize>) {
    left.retain(|id, count| {
        if *count == 0 {
            s.remove(*id, |_| {});
        }
        *count > 0
    });
}

#[test]
fn one_request_does_not_wait_behind_another_tenants_hundred() {
    let mut s = scheduler(400, 400, 4, true, true);
    for id in 0..100 {
        add_of(&mut s, (1, 1), id, 0, 8);
    }
    for _ in 0..3 {
        step(&mut s);
    }
    assert_eq!((s.n_running(), s.n_waiting()), (4, 96));
    add_of(&mut s, (2, 1), 200, 0, 8);
    let plan = s.plan(|_| {});
    assert_eq!(of_tenant(&s, &plan, 2), 1, "{plan:?}");
    assert_eq!(
        plan.preempted,
        [SeqId(3)],
        "the youngest of who has several gave way"
    );
    s.check_integrity().unwrap();
    s.commit(&plan);
    // A second one has to wait for its turn: its tenant has something running.
    add_of(&mut s, (2, 1), 201, 0, 8);
    assert!(s.plan(|_| {}).preempted.is_empty());
}

#[test]
fn nobody_gives_up_the_only_sequence_it_runs() {
    let mut s = scheduler(64, 64, 2, true, true);
    add_of(&mut s, (1, 1), 1, 0, 4);
    add_of(&mut s, (2, 1), 2, 0, 4);
    step(&mut s);
    add_of(&mut s, (3, 1), 3, -9, 4);
    let plan = s.plan(|_| {});
    assert!(plan.preempted.is_empty() && of_tenant(&s, &plan, 3) == 0);
}

#[test]
fn priority_counts_inside_a_tenant_alone() {
    let mut s = scheduler(64, 64, 1, true, true);
    // The one slot goes round: whoever has had least is next, however urgent others are to themselves.
    let mut left = BTreeMap::new();
    for id in 0..6 {
        left.insert(add_of(&mut s, (1, 1), id, -100, 4), 2);
    }
    left.insert(add_of(&mut s, (2, 1), 10, 100, 4), 2);
    left.insert(add_of(&mut s, (2, 1), 11, 0, 4), 2);
    let mut order = Vec::new();
    while !left.is_empty() {
        order.extend(run(&mut s, &mut left).admitted);
        end_done(&mut s, &mut left);
    }
    let of_second: Vec<usize> = order
        .iter()
        .enumerate()
        .filter(|(_, id)| id.0 >= 10)
        .map(|(at, _)| at)
        .collect();
    assert_eq!(
        of_second,
        [1, 3],
        "every other turn while it has something: {order:?}"
    );
    assert_eq!(order[1], SeqId(11), "the more urgent of its own goes first");
}

#[test]
fn a_long_prompt_shares_steps_with_other_tenants_prompts() {
    let mut s = scheduler(400, 400, 8, true, true);
    add_of(&mut s, (1, 1), 1, 0, 200);
    add_of(&mut s, (1, 1), 2, 0, 200);
    // 12 tokens a step, at most 8 of one prompt: the first tenant could fill it alone.
    assert_eq!(step(&mut s), [(1, 0, 8), (2, 0, 4)]);
    add_of(&mut s, (2, 1), 3, 0, 20);
    let next = step(&mut s);
    assert!(next.iter().any(|(id, _, n)| (*id, *n) == (3, 8)), "{next:?}");
}

proptest! {
    /// While all have something waiting, what was computed for them and because of them, by weight, differs by no more
    /// than what is under way can cost; most of it for the first time.
    #[test]
    fn tokens_go_by_weight(
        weights in proptest::collection::vec(1u32..5, 2..4),
        lengths in proptest::collection::vec((1usize..30, 1usize..12), 8..16),
        slots in 2usize..6,
    ) {
        const STEPS: usize = 800;
        let mut s = scheduler(2000, 2000, slots, true, true);
        let mut left = BTreeMap::new();
        let mut reached = BTreeMap::new();
        let (mut computed, mut fresh) = (0, 0);
        let mut next = 0u64;
        for _ in 0..STEPS {
            for (tenant, weight) in weights.iter().enumerate() {
                let tenant_id = TenantId(tenant as u32);
                while s.waiting.iter().filter(|rank| rank.tenant == tenant_id).count() < slots + 1 {
                    let (len, tokens) = lengths[next as usize % lengths.len()];
                    left.insert(add_of(&mut s, (tenant as u32, *weight), next, 0, len), tokens);
                    next += 1;
                }
            }
            let plan = run(&mut s, &mut left);
            prop_assert!(!plan.items.is_empty());
            for item in &plan.items {
                computed += item.n_tokens;
                let known = reached.entry(item.id).or_insert(0);
                fresh += (item.start + item.n_tokens).saturating_sub(*known);
                *known = (*known).max(item.start + item.n_tokens);
            }
            end_done(&mut s, &mut left);
        }
        let longest = lengths.iter().map(|(len, tokens)| len + tokens).max().unwrap_or(0);
        let time = |tenant: usize| s.shares.time(TenantId(tenant as u32)) as f64 / crate::shares::TOKEN as f64;
        let had: Vec<f64> = (0..weights.len()).map(time).collect();
        prop_assert!(fresh * 2 > computed, "{fresh} of {computed} tokens were computed for the first time");
        for (a, b) in (0..had.len()).flat_map(|a| (0..a).map(move |b| (a, b))) {
            // Each slot may hold a whole sequence of either, and one may have been recomputed.
            let under_way = (slots + 1) as f64 * longest as f64;
            let bound = under_way * (1.0 / f64::from(weights[a]) + 1.0 / f64::from(weights[b]));
            prop_assert!(
                (had[a] - had[b]).abs() <= bound,
                "{had:?} of weights {weights:?}: more than {bound} apart"
            );
        }
    }
}
