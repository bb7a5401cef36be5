//! What else is in a step does not show in any result, to the bit.

use baichuan_engine::model::{HiddenRows, Wants};

use crate::driver::{Driver, Sequence, Setup, bits, likeliest, rounded_and_not};
use crate::golden::{CASES, folder, prompts};

/// Runs all prompts of a case side by side: each joins one step after the one before it, comes in chunks of its own
/// length, then goes on greedily. Gives every logit that each of them saw.
fn side_by_side(driver: &mut Driver, prompts: &[Vec<u32>], n_greedy: usize) -> Vec<Vec<f32>> {
    let mut running: Vec<(Sequence, Vec<u32>, Vec<f32>)> = Vec::new();
    let vocab = driver.vocab_size();
    let mut seen: Vec<Vec<f32>> = Vec::new();
    for step in 0.. {
        if let Some(prompt) = prompts.get(step) {
            running.push((driver.start(), prompt.clone(), Vec::new()));
        }
        let chunk_of = |i: usize, tokens: &[u32]| tokens.len().min(i * 3 + 2);
        let mut work: Vec<(&mut Sequence, &[u32], Wants)> = Vec::new();
        for (i, (sequence, tokens, _)) in running.iter_mut().enumerate() {
            let chunk = chunk_of(i, tokens);
            work.push((sequence, &tokens[..chunk], Wants::AllLogits));
        }
        let outputs = driver.step(&mut work);
        for (i, (logits, (_, tokens, all))) in outputs.into_iter().zip(&mut running).enumerate() {
            tokens.drain(..chunk_of(i, tokens));
            if tokens.is_empty() {
                tokens.push(likeliest(&logits[logits.len() - vocab..]));
            }
            all.extend(logits);
        }
        let enough = |i: usize| (prompts[i].len() + n_greedy) * vocab;
        if running.len() == prompts.len()
            && running
                .iter()
                .enumerate()
                .all(|(i, run)| run.2.len() >= enough(i))
        {
            for (i, (sequence, _, mut all)) in running.into_iter().enumerate() {
                all.truncate(enough(i));
                seen.push(all);
                driver.free(sequence);
            }
            return seen;
        }
    }
    unreachable!("the loop ends by returning")
}

#[test]
fn mixed_steps_give_every_sequence_the_bits_it_has_alone() {
    for (case, setup) in CASES
        .into_iter()
        .flat_map(|case| rounded_and_not().map(|setup| (case, setup)))
    {
        let prompts: Vec<Vec<u32>> = prompts(case).into_iter().map(|golden| golden.tokens).collect();
        let mut driver = Driver::load(&folder(case), setup);
        let together = side_by_side(&mut driver, &prompts, 20);
        for (prompt, together) in prompts.iter().zip(together) {
            let alone = side_by_side(&mut driver, std::slice::from_ref(prompt), 20).remove(0);
            assert_eq!(bits(&together), bits(&alone), "{case}, {} tokens", prompt.len());
        }
    }
}

#[test]
fn the_number_of_threads_does_not_show() {
    let prompts: Vec<Vec<u32>> = prompts("alternating")
        .into_iter()
        .map(|golden| golden.tokens)
        .collect();
    let [one, two, three] = [1, 2, 3].map(|n_threads| {
        let setup = Setup {
            n_threads,
            ..Setup::default()
        };
        let mut driver = Driver::load(&folder("alternating"), setup);
        side_by_side(&mut driver, &prompts, 10)
            .iter()
            .map(|logits| bits(logits))
            .collect::<Vec<_>>()
    });
    assert!(one == two && two == three);
}

#[test]
fn each_entry_of_a_step_gets_what_it_wants_and_no_more() {
    let mut driver = Driver::load(&folder("alternating"), Setup::default());
    let tokens = prompts("alternating").pop().unwrap().tokens;
    let wants = [
        Wants::Hidden(HiddenRows::Last),
        Wants::AllLogits,
        Wants::Nothing,
        Wants::Hidden(HiddenRows::All),
        Wants::LastLogits,
        Wants::Hidden(HiddenRows::First),
    ];
    let alone: Vec<Vec<f32>> = wants
        .iter()
        .map(|&wants| {
            let mut sequence = driver.start();
            let rows = driver.run(&mut sequence, &tokens[..9], wants);
            driver.free(sequence);
            rows
        })
        .collect();
    let mut sequences: Vec<Sequence> = wants.iter().map(|_| driver.start()).collect();
    let mut work: Vec<_> = sequences
        .iter_mut()
        .zip(wants)
        .map(|(sequence, wants)| (sequence, &tokens[..9], wants))
        .collect();
    let together = driver.step(&mut work);
    let (vocab, hidden) = (driver.vocab_size(), driver.hidden_size());
    let lengths: Vec<usize> = together.iter().map(Vec::len).collect();
    assert_eq!(lengths, [hidden, 9 * vocab, 0, 9 * hidden, vocab, hidden]);
    assert!(
        together
            .iter()
            .zip(&alone)
            .all(|(together, alone)| bits(together) == bits(alone))
    );
}
